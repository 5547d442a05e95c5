"""Tests of trainings that Ray starts: one run for all workers, also when one is killed; trials below one parent."""

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

import mlflow_tfmon
from tests.promises.test_launchers import EPOCHS, OF_EPOCH, Job, check
from tests.waiting import until

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'mlflow-tfmon[ray]'"),
]
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def driver(store: str, folder: Path, case: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT), "PAUSE": "0.1"}
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


def test_fit_of_two_workers_is_one_run(store: str, home: Path, tmp_path: Path) -> None:
    with driver(store, tmp_path, "fit") as process:
        end(process)
    mlflow.set_tracking_uri(store)
    (found,) = mlflow.search_runs(output_format="list")
    assert found.info.status == "FINISHED" and found.data.tags["tfmon.delivery"] == "complete"
    run = mlflow_tfmon.load_run(found.info.run_id)
    for rank in (0, 1):
        assert len((tmp_path / f"steps{rank}.txt").read_text().split()) == len(run.steps) == 60
        assert run.steps[f"worker_{rank}/step_time_ms"][1:].gt(0).all()
    assert (run.steps.examples == 16).all() and run.steps.loss.notna().all()
    assert run.epochs.index.tolist() == [0, 1, 2]
    assert {"tfmon.best_model", "tfmon.model"} <= found.data.tags.keys()


@pytest.mark.parametrize("rank", [0, 1], ids=["the chief", "another worker"])
def test_a_killed_worker_goes_on_in_the_same_run(rank: int, store: str, home: Path, tmp_path: Path) -> None:
    job = Job([], store, tmp_path)
    with driver(store, tmp_path, "loop") as process:
        until(lambda: len(job.own(0)) > 2.5 * OF_EPOCH, seconds=300)
        os.kill(int((tmp_path / f"pid{rank}").read_text()), signal.SIGKILL)
        end(process)
    check(job, store, tmp_path)
    assert 0 <= len(job.own(0)) - EPOCHS * OF_EPOCH <= 2 * OF_EPOCH


def test_the_trials_of_a_search_are_below_one_run(store: str, home: Path, tmp_path: Path) -> None:
    with driver(store, tmp_path, "tune") as process:
        end(process)
    mlflow.set_tracking_uri(store)
    runs = mlflow.search_runs(output_format="list")
    (parent,) = (run for run in runs if run.data.tags.get("mlflow.runName") == "search")
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(trials) == 2 and len(runs) == 3
    for trial in trials:
        assert trial.info.status == "FINISHED" and trial.data.tags["tfmon.delivery"] == "complete"
        assert len(mlflow_tfmon.load_run(trial.info.run_id).steps) == 60
    rates = {mlflow_tfmon.load_run(trial.info.run_id).steps.learning_rate.iloc[0] for trial in trials}
    assert sorted(rates) == pytest.approx([0.01, 0.1])
