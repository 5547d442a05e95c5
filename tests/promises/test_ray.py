"""Tests of trainings that Ray starts: one run for all workers, also when one is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest

from tests.promises.test_launchers import (
    EPOCHS,
    OF_EPOCH,
    PAUSE,
    check,
    kill_delivery,
    kill_for_an_epoch,
    made,
    own,
)
from tests.servers import Server

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'mlflow-tfmon[ray]'"),
]
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def driver(store: str, folder: Path, case: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT), "PAUSE": str(PAUSE)}
    environment |= {
        "RAY_TMPDIR": "/tmp",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # of sockets, whose paths must be short
    del environment["MLFLOW_TFMON_EXIT_WAIT"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_trainings", str(folder), case], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output[-6000:]
    return output


@pytest.mark.parametrize(
    ("case", "event"),
    [
        ("fit", "none"),
        ("fit", "another worker is killed"),
        ("fit", "the chief is killed"),
        ("fit", "delivery is killed"),
        ("fit", "the server is killed"),
        ("loop", "the chief is killed"),
    ],
)
def test_every_step_is_in_one_run(case: str, event: str, store: str, home: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, store) if "server" in event else None
    with driver(server.uri if server else store, tmp_path, case) as process:
        if event != "none":
            made(tmp_path, 2.5)
        if event == "delivery is killed":
            kill_delivery(tmp_path)
        elif server is not None:
            kill_for_an_epoch(server, tmp_path)
        elif event != "none":
            rank = int(event != "the chief is killed")
            os.kill(int((tmp_path / f"pid{rank}").read_text()), signal.SIGKILL)
        end(process)
    if server is not None:
        server.kill()
    check(store, tmp_path)
    again = len(own(tmp_path, 0)) - EPOCHS * OF_EPOCH
    lost = event in ("another worker is killed", "the chief is killed")
    assert 0 <= again <= 2 * OF_EPOCH if lost else again == 0  # since a checkpoint, not since the start
    (found,) = mlflow.search_runs(output_format="list")
    assert case == "loop" or {"tfmon.best_model", "mlflow.tfmon.model"} <= found.data.tags.keys()
