"""Benchmark of the cost per step: `python -m benchmarks.overhead [--cases …]`, or `make bench`.

Each figure is a ratio to the same training unwatched. The variants of a case take turns in random order, each in a
fresh process with an empty store; a ratio is that of two neighbours in time. Printed are the median ratio and the 90%
confidence interval of that median (bootstrap), and written as JSON and as a picture.

A training of a few seconds shares the machine with what is done once at its start (MLflow is loaded in delivery), and
its steps do. `--times 5` makes each training five times as long: then the step time is that of one that has settled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.side_by_side import interval, machine, rounds, run, write
from benchmarks.training import Case
from benchmarks.watchers import ONLY_FIT, WATCHERS

CASES = {
    "mlp, fit": Case("mlp", "fit"),
    "mlp, loop": Case("mlp", "loop"),
    "mlp, fit, XLA": Case("mlp", "fit", "xla"),
    "mlp, loop, XLA": Case("mlp", "loop", "xla"),
    "mlp, fit, mixed_float16": Case("mlp", "fit", "float16"),
    "mlp, fit, mixed_bfloat16": Case("mlp", "fit", "bfloat16"),
    "mlp, fit, MirroredStrategy": Case("mlp", "fit", "mirrored"),
    "mlp, loop, MirroredStrategy": Case("mlp", "loop", "mirrored"),
    "mlp, loop, two workers": Case("mlp", "loop", "workers", steps=200),
    "mlp, loop, two workers, endless": Case("mlp", "loop", "workers", endless=True),
    "3.2 million parameters, fit, XLA": Case("wide", "fit", "xla", steps=100),
    "cnn, fit": Case("cnn", "fit", steps=100),
    "resnet20, fit": Case("resnet20", "fit", steps=30, epochs=4),
    "transformer, fit": Case("transformer", "fit", steps=60),
    "1,000 variables, fit": Case("deep", "fit", steps=30, epochs=4),
}


def measure(
    case: Case, watchers: Sequence[str], repeats: int, store: str
) -> tuple[float, dict[str, dict[str, list[float]]]]:
    """The median step of the unwatched training in ms; of each watcher the ratios to it, by figure, a value a round."""
    unwatched: list[float] = []
    ratios: dict[str, dict[str, list[float]]] = {name: {"step_ms": [], "train_s": []} for name in watchers}

    def once(watcher: str) -> dict[str, float]:
        return run("benchmarks.training", asdict(replace(case, watcher=watcher)), store)

    for found in rounds(watchers, once, repeats):
        unwatched.append(found["unwatched"]["step_ms"])
        for name in watchers:
            for figure, values in ratios[name].items():
                values.append(found[name][figure] / found["unwatched"][figure])
    return statistics.median(unwatched), ratios


def draw(results: dict[str, dict[str, tuple[float, float, float]]], path: Path) -> None:
    """Draws the step times' ratios, a row a case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(case, name, *values) for case, found in results.items() for name, values in found.items()]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.32 * len(rows)))
    for at, (_, name, middle, low, high) in enumerate(rows):
        axes.errorbar(
            middle, at, xerr=[[middle - low], [high - middle]], fmt="o", capsize=3,
            color="tab:blue" if name.startswith("ours") else "tab:gray",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{case}: {name}" for case, name, *_ in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    if max(row[4] for row in rows) > 2:
        axes.set_xscale("log")
    axes.set_xlabel("step time, ratio to the same training unwatched (median, 90% confidence)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"any of: {'; '.join(CASES)}")  # fmt: skip
    parser.add_argument("--watchers", nargs="+", choices=list(WATCHERS)[1:], default=["ours"],
                        metavar="WATCHER", help=f"any of: {'; '.join(list(WATCHERS)[1:])}")  # fmt: skip
    parser.add_argument("--store", choices=("sqlite", "http"), default="sqlite",
                        help="an empty SQLite store each (default), or a local `mlflow server`")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each case (default 7)")
    parser.add_argument("--times", type=int, default=1, help="how often the epochs of each case (default 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: it takes one round at least")
    if options.times < 1:
        parser.error(f"--times {options.times}: a training takes its own epochs at least")
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    unwatched: dict[str, float] = {}
    for name in options.cases:
        case = replace(CASES[name], epochs=options.times * CASES[name].epochs)
        watchers = [one for one in options.watchers if case.way == "fit" or one not in ONLY_FIT]
        unwatched[name], ratios = measure(case, watchers, options.repeats, options.store)
        for watcher, figures in ratios.items():
            found = {figure: interval(values) for figure, values in figures.items()}
            results.setdefault(name, {})[watcher] = found
            step, whole = (
                "{:.3f} [{:.3f}, {:.3f}]".format(*found[figure]) for figure in ("step_ms", "train_s")
            )
            of = f"of {unwatched[name]:.3g} ms"
            print(f"{name:30} {watcher:18} step {step} {of}   whole training {whole}", flush=True)
    write(
        options.out / "overhead.json",
        {"store": options.store, "unwatched_step_ms": unwatched, "ratios": results},
    )
    steps = {case: {name: found["step_ms"] for name, found in one.items()} for case, one in results.items()}
    draw(steps, options.out / "overhead.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
