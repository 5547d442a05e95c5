"""Benchmark of a step in one process: `python -m benchmarks.turns [--cases …]`, or `make bench-turns`.

Two processes may differ by a tenth in the step time of the very same training (where its memory lies, what runs on
the other core). Here a model that is watched and its unwatched double are fitted in turns, a few epochs each, in one
process that has settled: a ratio is that of two neighbours in time. Printed are the median ratios of the time and of
the processor time of a step (all threads of the process), and their 90% confidence intervals (bootstrap). Delivery's
own processor time counts only in as far as it holds the training up.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import interval, machine, run, write

CASES = {
    "mlp": {"task": "mlp", "steps": 300},
    "3.2 million parameters, XLA": {"task": "wide", "steps": 30, "jit_compile": True},
    "cnn": {"task": "cnn", "steps": 60},
    "transformer": {"task": "transformer", "steps": 40},
    "resnet20": {"task": "resnet20", "steps": 8},
    "1,000 variables": {"task": "deep", "steps": 20},
}
EPOCHS = 3  # of a turn; the first is not timed, since a fit's beginning is in it


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Fits the two models in turns, in this process; the times of a step by turn, in ms: unwatched and watched."""
    import time

    import keras
    import mlflow
    import tensorflow as tf

    import mlflow_tfmon
    from benchmarks.models import TASKS, data

    task, steps = TASKS[case["task"]], case["steps"]
    dataset = tf.data.Dataset.from_tensor_slices(data(task, steps)).batch(task.batch).cache()
    settings: dict[str, dict[str, Any]] = {
        "unwatched": {"disable": True},
        "watched": {"log_models": False, "log_datasets": False, "report": False, "silent": True},
    }

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.took: list[tuple[float, float]] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._begun = time.perf_counter(), time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            now = time.perf_counter(), time.process_time()
            self.took.append((now[0] - self._begun[0], now[1] - self._begun[1]))

    def turn(name: str) -> tuple[float, float]:
        mlflow_tfmon.autolog(**settings[name])
        clock = Clock()
        models[name].fit(dataset, epochs=EPOCHS, verbose=0, callbacks=[clock])
        wall, processor = (sum(one[at] for one in clock.took[1:]) for at in (0, 1))
        return wall / (steps * (EPOCHS - 1)) * 1e3, processor / (steps * (EPOCHS - 1)) * 1e3

    models: dict[str, Any] = {}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    with mlflow.start_run():
        for name in settings:
            model = models[name] = task.model()
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=case.get("jit_compile", False))
            turn(name)
        time.sleep(3)  # delivery has loaded MLflow, and the files of the first fits are written
        for number in range(case["turns"]):
            for name in sorted(settings, reverse=bool(number % 2)):
                found[name].append(turn(name))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE",
                        help=f"any of: {'; '.join(CASES)}")  # fmt: skip
    parser.add_argument("--turns", type=int, default=12, help="pairs of turns of each case (default 12)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error(f"--turns {options.turns}: it takes one pair at least")
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results = {}
    for name in options.cases:
        found = run("benchmarks.turns", {**CASES[name], "turns": options.turns})
        pairs = list(zip(found["unwatched"], found["watched"], strict=True))
        time, processor = (interval([seen[at] / bare[at] for bare, seen in pairs]) for at in (0, 1))
        added, _, _ = interval([(seen[1] - bare[1]) * 1e3 for bare, seen in pairs])
        bare, _, _ = interval([one for one, _ in found["unwatched"]])
        results[name] = {"time": time, "processor": processor, "added_us": added, "unwatched_ms": bare}
        texts = ("{:.3f} [{:.3f}, {:.3f}]".format(*one) for one in (time, processor))
        print("{:28} of {:6.2f} ms: time {}   processor time {}   {:+.0f} us of processor".format(
            name, bare, *texts, added), flush=True)  # fmt: skip
    write(options.out / "turns.json", {"ratios": results})
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)
    else:
        sys.exit(main())
