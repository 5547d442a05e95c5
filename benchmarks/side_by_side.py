"""Shared code of the benchmarks: alternating trainings in fresh processes, and results with their uncertainty."""

from __future__ import annotations

import atexit
import json
import os
import platform
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]


@cache
def _migrated() -> bytes:
    """A SQLite store as MLflow makes it, in some seconds that are not the training's."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        make = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
        subprocess.run(
            [sys.executable, "-c", make, f"sqlite:///{folder}/mlflow.db"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        return Path(folder, "mlflow.db").read_bytes()


@contextmanager
def empty_store() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with an empty store, and the environment of a process whose store and recordings are there."""
    # The delivery process of a training that was killed may write a last time.
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        store = Path(folder, "mlflow.db")
        store.write_bytes(_migrated())
        with closing(sqlite3.connect(store)) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = ?", (Path(folder, "artifacts").as_uri(),)
            )
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        yield Path(folder), {
            **os.environ, **quiet, "PYTHONPATH": str(HERE), "MLFLOW_TFMON_HOME": f"{folder}/home",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip


@contextmanager
def serving(store_uri: str, folder: Path) -> Iterator[str]:
    """An MLflow server of a store, with its artifacts in a folder; gives its URI."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", uri.rpartition(":")[2], "--workers", "1",
        "--backend-store-uri", store_uri, "--artifacts-destination", f"{folder}/artifacts",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not _answers(f"{uri}/health"):
            if process.poll() is not None:
                raise RuntimeError("mlflow server did not start")
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers as well
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@cache
def server() -> str:
    """The URI of an MLflow server, with a SQLite store, that serves all trainings of this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-server-")))
    store = folder / "mlflow.db"
    store.write_bytes(_migrated())
    return stack.enter_context(serving(f"sqlite:///{store}", folder))


def run(
    module: str,
    case: Mapping[str, Any],
    store: str = "sqlite",
    change: Callable[[dict[str, str]], dict[str, str]] = dict,
) -> dict[str, Any]:
    """Runs a module in a fresh process; it gets a JSON object and prints one.

    Args:
        module: to run.
        case: what it gets.
        store: "sqlite", an empty store of its own; or "http", the server of all.
        change: makes its environment of the usual one.

    Returns:
        What it printed, and `ended`: the Unix time at which the process was over.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    with empty_store() as (folder, environment):
        if store == "http":
            environment["MLFLOW_TRACKING_URI"] = server()
        command = [sys.executable, "-m", module, json.dumps(case)]
        done = subprocess.run(command, cwd=folder, env=change(environment), capture_output=True, text=True)
        ended = time.time()
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise RuntimeError(f"{case}: {(done.stderr or done.stdout)[-2000:]}")
        return {**json.loads(lines[-1]), "ended": ended}


def rounds(
    names: Sequence[str], once: Callable[[str], dict[str, float]], repeats: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Rounds in which each variant, and "unwatched", has its turn, in random order."""
    for _ in range(repeats):
        order = ["unwatched", *names]
        random.shuffle(order)
        yield {name: once(name) for name in order}


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
    installed = packages_distributions()  # TensorFlow has several: tensorflow, tensorflow-cpu
    packages = {name: version(installed[name][0]) for name in ("tensorflow", "keras", "mlflow")}
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "load": load,
        "python": platform.python_version(),
        **packages,
    }


def write(path: Path, results: Any) -> None:
    """Writes results as JSON, with what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
