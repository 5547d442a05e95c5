"""Benchmark of the highest rate without lost steps: `python -m benchmarks.sustained`, or `make bench-sustained`.

For each number of variables, steps are made in a loop in the graph for so many seconds, first as fast as TensorFlow
makes them. If any is lost, the next try is at nine tenths of the rate of those that were kept, until none is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.side_by_side import machine, run, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variables", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--seconds", type=int, default=300, help="of each try (default 300)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results: dict[int, list[dict[str, float]]] = {}
    for variables in options.variables:
        rate, tries = 0, results.setdefault(variables, [])
        while not tries or tries[-1]["lost"]:
            case = {"steps": 0, "seconds": options.seconds, "variables": variables, "per_second": rate}
            found = run("benchmarks.long", case)
            tries.append(found)
            kept = 1 - found["lost"] / (found["steps_per_second"] * options.seconds)
            limit = f"at most {rate} a second" if rate else "as fast as they can be made"
            print(
                f"{variables:6} variables, {limit}: {found['steps_per_second']:.0f} steps a second, {found['lost']:.0f}"
                f" lost, trainer {found['trainer_mb']:+.0f} MB",
                flush=True,
            )
            rate = int(0.9 * kept * found["steps_per_second"])
    write(options.out / "sustained.json", {"seconds": options.seconds, "variables": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
