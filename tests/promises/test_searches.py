"""Tests of searches by Ray Tune and by Optuna: each trial is a run below one parent, with every step that it made.

Counted against what each trial has written down itself, in quiet and with a trial, the search, delivery or the MLflow
server killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest

import mlflow_tfmon
from mlflow_tfmon.cli import main
from tests.promises.test_launchers import kill_delivery
from tests.searches import EPOCHS, HELD, OF_EPOCH
from tests.servers import Server
from tests.waiting import until

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
ENGINES = [
    pytest.param("tune", marks=pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")),
    pytest.param("optuna", marks=pytest.mark.skipif(find_spec("optuna") is None, reason="needs Optuna")),
]


@contextlib.contextmanager
def searching(engine: str, index: int, store: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    # Sockets' paths must be short.
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": "/tmp"}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    del environment["MLFLOW_TFMON_EXIT_WAIT"]
    command = [sys.executable, "-m", "tests.searches", str(folder), engine, str(index)]
    with (folder / f"output{index}.txt").open("a") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def attempts(folder: Path, what: str = "steps") -> dict[str, Path]:
    """What trials have written, by their names; one that is tried again is another."""
    return {path.stem: path for path in folder.glob(f"*.{what}")}


def own(path: Path) -> list[tuple[int, float]]:
    return [
        (int(step), float(loss)) for step, loss in (line.split() for line in path.read_text().splitlines())
    ]


def made(folder: Path) -> int:
    return sum(len(own(path)) for path in attempts(folder).values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "event",
    ["none", "a trial is killed", "the search is killed", "delivery is killed", "the server is killed"],
)
def test_every_trial_is_below_one_run(
    engine: str, event: str, store: str, home: Path, tmp_path: Path
) -> None:
    server = Server(tmp_path, store) if "server" in event else None
    uri = server.uri if server else store
    with contextlib.ExitStack() as stack:

        def start(index: int) -> subprocess.Popen[str]:
            return stack.enter_context(searching(engine, index, uri, tmp_path))

        processes = {index: start(index) for index in range(1 if engine == "tune" else 2)}

        def over() -> list[int]:
            return [index for index, process in processes.items() if process.poll() is not None]

        until(lambda: over() or len(attempts(tmp_path, "held")) == 2, seconds=300)
        assert not over(), (tmp_path / f"output{over()[0]}.txt").read_text()[-6000:]
        time.sleep(2)  # what a ring holds when its process is killed is gone with it
        killed: list[str] = []
        if event == "a trial is killed":  # of Optuna, a process that is not the parent's
            pids = {name: int(name.rpartition("-")[2]) for name in attempts(tmp_path)}
            killed = [name for name, pid in pids.items() if pid != processes[0].pid][:1]
            os.kill(pids[killed[0]], signal.SIGKILL)
            if engine == "optuna":
                processes[1].wait()
                processes[1] = start(1)
        elif event == "the search is killed":
            held = attempts(tmp_path)
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].wait()
            pids = {name: int(name.rpartition("-")[2]) for name in held}
            gone = pids if engine == "tune" else {n: p for n, p in pids.items() if p == processes[0].pid}
            until(lambda: not any(psutil.pid_exists(pid) for pid in gone.values()))
            killed = list(gone)
            processes[0] = start(0)
        elif event == "delivery is killed":
            kill_delivery(tmp_path)
        elif server is not None:
            server.kill()
        before = made(tmp_path)
        (tmp_path / "go").touch()
        if server is not None:
            until(lambda: made(tmp_path) > before + OF_EPOCH)
            server.start()
        for index, process in processes.items():
            assert process.wait(400) == 0, (tmp_path / f"output{index}.txt").read_text()[-6000:]
        assert main(["sync"]) == 0  # of what Ray has ended delivery with the trial
        if server is not None:
            server.kill()
    check(store, tmp_path, killed)


def check(store: str, folder: Path, killed: list[str]) -> None:
    mlflow.set_tracking_uri(store)
    runs = mlflow.search_runs(output_format="list")
    above = (folder / "parent").read_text()
    trials = {run.data.tags.get("attempt", ""): run for run in runs if run.info.run_id != above}
    assert trials.keys() == attempts(folder).keys() and len(runs) == len(trials) + 1
    (parent,) = (run for run in runs if run.info.run_id == above)
    assert parent.info.status == "FINISHED" and parent.data.tags["mlflow.runName"] == "search"
    for name, path in attempts(folder).items():
        run, (numbers, losses) = trials[name], zip(*own(path), strict=True)
        assert run.data.tags["mlflow.parentRunId"] == above
        assert run.data.tags["tfmon.delivery"] == "complete"
        assert run.info.status == ("FAILED" if name in killed else "FINISHED")
        assert len(numbers) == (HELD if name in killed else EPOCHS * OF_EPOCH)
        steps = mlflow_tfmon.load_run(run.info.run_id).steps
        assert tuple(steps.index) == numbers == tuple(range(1, len(numbers) + 1))
        np.testing.assert_allclose(steps.loss, losses, rtol=1e-6)
