"""Benchmark of the delay until a step's row is readable in MLflow: `python -m benchmarks.lag`, or `make bench-lag`.

While a process trains, 500 steps a second, another asks MLflow again and again for the run's newest row, as
`mlflow_tfmon.load_run` gives it. Printed is the age of that row when it was there: the median, and the most.

With `--first`, printed is how long after the end of a fit's first step its loss is where a page can show it, by each of
the ways to watch that are named; a step takes 50 ms, an epoch 50 s. W&B is not among them: an offline run is on a page
only once it was sent to a server. With `--busy 20`, twenty processes that only compute keep the machine busy meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import empty_store, machine, serving, write

_WAIT = 120.0  # s, at most, for the first row
_BUSY_WAIT = (
    600.0  # s, at most, for the first figure on a busy machine: TensorFlow alone takes a minute to import
)
_FIRST = ("ours", "ours, no models", "mlflow per epoch", "mlflow per step", "tensorboard")
_FIT = """
import sys, time
import keras, numpy as np
from benchmarks.watchers import WATCHERS

class First(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if not self.params.pop("told", False):
            print(time.time(), flush=True)
            self.params["told"] = True
        time.sleep(0.05)

callbacks = [First(), *WATCHERS[sys.argv[1]]()]
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(np.ones((32_000, 64)), np.ones((32_000, 1)), batch_size=32, epochs=100, verbose=0, callbacks=callbacks)
"""


def ages(uri: str, seconds: float) -> list[float]:
    """The age of the newest row at each time of asking, in seconds, from when the first was there.

    Raises:
        RuntimeError: there is none.
    """
    import mlflow

    client, found = mlflow.MlflowClient(uri), list[float]()
    begun, until = time.monotonic(), 0.0
    while not until or time.monotonic() < until:
        time.sleep(0.3)
        newest = _newest(client, uri)
        if newest is not None:
            until = until or time.monotonic() + seconds
            found.append(time.time() - newest)
        elif time.monotonic() > begun + _WAIT:
            raise RuntimeError(f"nothing could be read in MLflow within {_WAIT:.0f} s")
    return found


def _newest(client: Any, uri: str) -> float | None:
    """Unix time of the newest row of the store's only run."""
    import mlflow_tfmon

    runs = client.search_runs(["0"])
    try:
        steps = mlflow_tfmon.load_run(runs[0].info.run_id, uri).steps if runs else None
    except ValueError:  # nothing has arrived
        return None
    return None if steps is None or not len(steps) else float(steps["time"].iloc[-1])


def first_figure(watcher: str, busy: int = 0) -> float:
    """How long after the end of a fit's first step its loss is in the store, or in the event files, in seconds.

    Args:
        watcher: key of `benchmarks.watchers.WATCHERS`.
        busy: how many processes keep the machine busy meanwhile.

    Raises:
        RuntimeError: it never was.
    """
    with empty_store() as (folder, environment), contextlib.ExitStack() as stack:
        for _ in range(busy):
            stack.callback(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
        command = [sys.executable, "-c", _FIT, watcher]
        fit = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        stack.callback(fit.wait)
        stack.callback(fit.kill)
        assert fit.stdout is not None
        stepped = float(fit.stdout.readline())
        there = _in_event_files if watcher == "tensorboard" else _in_store
        while time.time() < stepped + _BUSY_WAIT:
            if there(folder):
                return time.time() - stepped
            time.sleep(0.05)
    raise RuntimeError(f"{watcher}: the loss was never there")


def _in_store(folder: Path) -> bool:
    with (
        contextlib.suppress(sqlite3.OperationalError),  # it is locked for a moment
        contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store,
    ):
        found = store.execute("SELECT 1 FROM metrics WHERE key IN ('batch/loss', 'loss') LIMIT 1").fetchone()
        return found is not None
    return False


def _in_event_files(folder: Path) -> bool:
    return any(b"batch_loss" in one.read_bytes() for one in folder.glob("tensorboard/**/*tfevents*"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variables", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "http"), default=["sqlite", "http"])
    parser.add_argument("--seconds", type=float, default=30, help="of each training (default 30)")
    parser.add_argument(
        "--first", nargs="+", choices=_FIRST, help="the first figure instead, of each of these"
    )
    parser.add_argument(
        "--busy", type=int, metavar="N", help="on a machine that N processes keep busy: the first figure"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    if options.first or options.busy is not None:
        for watcher in options.first or ["ours, no models"]:
            seconds = first_figure(watcher, options.busy or 0)
            print(
                f"{watcher:16} {seconds:5.1f} s after the first step, beside {options.busy or 0} busy processes"
            )
        return 0
    results = {}
    for store in options.stores:
        for variables in options.variables:
            found = results[f"{store}, {variables} variables"] = _once(store, variables, options.seconds)
            median, most = statistics.median(found), max(found)
            print(f"{store:6} {variables:6} variables: {median:.1f} s, at most {most:.1f} s", flush=True)
    write(options.out / "lag.json", {"ages_s": results})
    return 0


def _once(store: str, variables: int, seconds: float) -> list[float]:
    with empty_store() as (folder, environment):
        if store == "http":
            with serving(environment["MLFLOW_TRACKING_URI"], folder) as uri:
                return _beside({**environment, "MLFLOW_TRACKING_URI": uri}, folder, variables, seconds)
        return _beside(environment, folder, variables, seconds)


def _beside(environment: dict[str, str], folder: Path, variables: int, seconds: float) -> list[float]:
    case = {"steps": 0, "seconds": 2 * _WAIT + seconds, "variables": variables, "per_second": 500}
    command = [sys.executable, "-m", "benchmarks.long", json.dumps(case)]
    training = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return ages(environment["MLFLOW_TRACKING_URI"], seconds)
    finally:
        training.kill()
        training.wait()


if __name__ == "__main__":
    sys.exit(main())
