"""What long and large trainings cost: `python -m benchmarks.scale`, or `make bench-scale`.

For each number of steps and of variables: steps a second that were recorded (the steps are as short as TensorFlow makes
them), rows lost, growth of the trainer's memory, the most that the journal took on the disk, the size of the Parquet
files and of the store, and the seconds from the last step until all had arrived.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.side_by_side import machine, run, write

CASES = (
    (1_000, 10),
    (10_000, 10),
    (100_000, 10),
    (1_000_000, 10),
    (10_000, 100),
    (100_000, 100),
    (5_000, 1_000),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[f"{steps}x{count}" for steps, count in CASES],
                        metavar="STEPSxVARIABLES")  # fmt: skip
    parser.add_argument(
        "--per-second", type=int, default=0, help="steps a second; default: as many as there can be"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results = {}
    for case in options.cases:
        try:
            steps, variables = (int(number) for number in case.split("x"))
        except ValueError:
            parser.error(f"--cases {case}: a case is written as 100000x10, steps and variables")
        found = run(
            "benchmarks.long", {"steps": steps, "variables": variables, "per_second": options.per_second}
        )
        found.pop("ended")
        results[case] = found
        print(f"{case:14} " + "   ".join(f"{name} {value:.6g}" for name, value in found.items()), flush=True)
    write(options.out / "scale.json", {"cases": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
