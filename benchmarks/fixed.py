"""Benchmark of the one-time cost of monitoring a training: `python -m benchmarks.fixed`, or `make bench-fixed`.

A toy training of five epochs, in no run and then within a run of the user's, `with mlflow.start_run()`: the first who
asks for a run waits until MLflow has imported and opened its store. Printed are the seconds that each watcher adds to
the same training unwatched (median of the differences within a round, and its 90% confidence interval): to the imports,
from the call of `fit` to the end of its first step, from the last step to the return of `fit`, and from the last step
to the end of the script.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.side_by_side import interval, machine, rounds, run, write
from benchmarks.watchers import WATCHERS

FIGURES = ("import_s", "first_step_s", "return_s", "script_end_s")


def once(watcher: str, within: bool) -> dict[str, float]:
    """The figures of one training, within a run of the user's or not."""
    found = run("benchmarks.toy", {"watcher": watcher, "within": within})
    return {**found, "script_end_s": found["ended"] - found["last"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(WATCHERS)[1:]
    parser.add_argument("--watchers", nargs="+", choices=names, default=["ours", "mlflow per epoch"])
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results = {}
    for within, where in ((False, "in no run"), (True, "within a run")):
        added: dict[str, dict[str, list[float]]] = {
            name: {figure: [] for figure in FIGURES} for name in options.watchers
        }
        for found in rounds(options.watchers, partial(once, within=within), options.repeats):
            for name, figures in added.items():
                for figure, values in figures.items():
                    values.append(found[name][figure] - found["unwatched"][figure])
        results[where] = {
            name: {figure: interval(values) for figure, values in figures.items()}
            for name, figures in added.items()
        }
        for name, result in results[where].items():
            print(f"{where:12} {name:18} " + "   ".join(
                "{} {:+.2f} [{:+.2f}, {:+.2f}]".format(figure, *values) for figure, values in result.items()
            ), flush=True)  # fmt: skip
    write(options.out / "fixed.json", {"added_seconds": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
