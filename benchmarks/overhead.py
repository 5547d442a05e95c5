"""What watching costs a step: `python -m benchmarks.overhead [--cases …]`, or `make bench`.

Each figure is a ratio to the same training unwatched. The variants of a case take turns in random order, each in a
fresh process with an empty store; a ratio is that of two neighbours in time. Printed are the median ratio and the 90%
confidence interval of that median (bootstrap), and written as JSON and as a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

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
    "cnn, fit": Case("cnn", "fit", steps=100),
    "resnet20, fit": Case("resnet20", "fit", steps=30, epochs=4),
    "transformer, fit": Case("transformer", "fit", steps=60),
    "1,000 variables, fit": Case("deep", "fit", steps=30, epochs=4),
}


def run(case: Case) -> dict[str, float]:
    """Trains a case in a fresh process with an empty store of its own.

    Raises:
        RuntimeError: the training failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        here = str(Path(__file__).resolve().parents[1])
        environment = {
            **os.environ, **quiet, "PYTHONPATH": here, "MLFLOW_TFMON_HOME": f"{folder}/home",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.training", json.dumps(asdict(case))]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise RuntimeError(f"{case}: {(done.stderr or done.stdout)[-2000:]}")
        found: dict[str, float] = json.loads(lines[-1])
        return found


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the 90% confidence interval of it by bootstrap."""
    values = np.asarray(ratios)
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [5, 95])
    return float(np.median(values)), float(low), float(high)


def machine() -> dict[str, str]:
    """What was measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    packages = {name: version(name) for name in ("tensorflow", "keras", "mlflow")}
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "load": load,
        "python": platform.python_version(),
        **packages,
    }


def measure(case: Case, watchers: Sequence[str], repeats: int) -> dict[str, dict[str, list[float]]]:
    """The ratios of each watcher to unwatched, by figure, a value a round."""
    ratios: dict[str, dict[str, list[float]]] = {name: {"step_ms": [], "train_s": []} for name in watchers}
    for _ in range(repeats):
        order = ["unwatched", *watchers]
        random.shuffle(order)
        found = {name: run(replace(case, watcher=name)) for name in order}
        for name in watchers:
            for figure, values in ratios[name].items():
                values.append(found[name][figure] / found["unwatched"][figure])
    return ratios


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
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each case (default 7)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: it takes one round at least")
    about = machine()
    print(" · ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    for name in options.cases:
        case = CASES[name]
        watchers = [one for one in options.watchers if case.way == "fit" or one not in ONLY_FIT]
        for watcher, figures in measure(case, watchers, options.repeats).items():
            found = {figure: interval(values) for figure, values in figures.items()}
            results.setdefault(name, {})[watcher] = found
            step, whole = (
                "{:.3f} [{:.3f}, {:.3f}]".format(*found[figure]) for figure in ("step_ms", "train_s")
            )
            print(f"{name:30} {watcher:18} step {step}   whole training {whole}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overhead.json").write_text(
        json.dumps({"machine": about, "ratios": results}, indent=1) + "\n"
    )
    steps = {case: {name: found["step_ms"] for name, found in one.items()} for case, one in results.items()}
    draw(steps, options.out / "overhead.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
