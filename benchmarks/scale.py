"""Benchmark of long and large trainings: `python -m benchmarks.scale`, or `make bench-scale`.

For each number of steps and of variables: steps a second that were recorded (the steps are as short as TensorFlow makes
them), rows lost, growth of the trainer's memory, the most that the journal took on the disk, the size of the Parquet
files and of the store, and the seconds from the last step until all had arrived.

For large models (`--models`): ratios to the same training unwatched, in a fresh process each, of the step time, of the
time to the end of the first step and of the most memory of the process; medians and their 90% confidence intervals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from benchmarks.side_by_side import interval, machine, rounds, run, write
from benchmarks.training import Case

CASES = (
    (1_000, 10),
    (10_000, 10),
    (100_000, 10),
    (1_000_000, 10),
    (10_000, 100),
    (100_000, 100),
    (5_000, 1_000),
)

MODELS = {
    "161 variables, 23 million parameters": Case("resnet50", steps=12, epochs=3),
    "1,000 variables, 101 million parameters": Case("large transformer", steps=8, epochs=3),
}
WATCHER = "ours, no models"


def against_unwatched(case: Case, repeats: int) -> dict[str, tuple[float, float, float]]:
    """The ratios of a watched training to the same one unwatched."""

    def once(watcher: str, case: Case) -> dict[str, float]:
        return run("benchmarks.training", asdict(replace(case, watcher=watcher)))

    found = list(rounds([WATCHER], partial(once, case=case), repeats))
    return {
        figure: interval([one[WATCHER][figure] / one["unwatched"][figure] for one in found])
        for figure in ("step_ms", "first_step_s", "peak_mb")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=[f"{steps}x{count}" for steps, count in CASES],
                        metavar="STEPSxVARIABLES")  # fmt: skip
    parser.add_argument(
        "--per-second", type=int, default=0, help="steps a second; default: as many as there can be"
    )
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="MODEL",
                        help=f"any of: {'; '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each model (default 3)")
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
    models = {}
    for name in options.models:
        models[name] = against_unwatched(MODELS[name], options.repeats)
        print(f"{name:40} " + "   ".join(
            "{} {:.3f} [{:.3f}, {:.3f}]".format(figure, *values) for figure, values in models[name].items()
        ), flush=True)  # fmt: skip
    write(options.out / "scale.json", {"cases": results, "models": models})
    return 0


if __name__ == "__main__":
    sys.exit(main())
