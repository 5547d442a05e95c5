"""Tests of one run in several training processes: each recording is complete, and none is mixed with another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.watching import pipeline
from tests import trainings

OTHER = """
import sys
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.journal import Journal
folder = Journal.create().folder
assert life.claim_run(folder, sys.argv[1])
print("records", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def recorded_elsewhere(fresh: None) -> Iterator[str]:
    """Id of a run that another process is recording."""
    run_id = mlflow.MlflowClient().create_run("0", run_name="shared").info.run_id
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, run_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdin is not None
    other.stdout.readline()
    yield run_id
    other.kill()
    other.communicate()


def train(losses: list[float]) -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    losses += [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), 1)]


@pytest.mark.parametrize("how", ["monitor", "run"])
def test_the_second_process_records_in_a_run_below(
    how: str,
    recorded_elsewhere: str,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow_tfmon.errors import logger

    monkeypatch.setattr(logger, "propagate", True)
    losses: list[float] = []
    client = mlflow.MlflowClient()
    if how == "run":
        mlflow_tfmon.autolog(log_models=False)
        with mlflow.start_run(run_id=recorded_elsewhere):
            train(losses)
        mlflow_tfmon.autolog(disable=True)
    else:
        with mlflow_tfmon.Monitor(run_id=recorded_elsewhere, log_models=False) as monitor:
            train(losses)
        assert monitor.run_id is None
        of_run = pipeline.of_run(recorded_elsewhere)
        assert of_run is not None
        of_run.close("FINISHED")  # as at the script's end
    (below,) = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{recorded_elsewhere}'")
    assert below.info.run_id in caplog.text and "another process" in caplog.text
    assert below.info.run_name.startswith("shared, process ")
    run = mlflow_tfmon.load_run(below.info.run_id)
    assert run.steps.index.tolist() == list(range(1, len(losses) + 1)) and run.complete
    assert client.get_run(below.info.run_id).info.status == "FINISHED"
    assert "batch/loss" not in client.get_run(recorded_elsewhere).data.metrics
    assert [one for one in find_waiting() if one.run_id != recorded_elsewhere and not one.written] == []


def test_a_run_is_free_again_when_its_recording_is_over(fresh: None, home: Path) -> None:
    losses: list[float] = []
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    with mlflow_tfmon.Monitor(run_id=run_id, log_models=False):
        train(losses)
    assert len(list((home / "runs").iterdir())) == 1
    (home / "runs" / "left").touch()  # by a process that was killed
    open_one = pipeline.of_run(run_id)
    assert open_one is not None
    open_one.close("FINISHED")
    assert mlflow_tfmon.load_run(run_id).steps.index.tolist() == list(range(1, len(losses) + 1))
    with mlflow_tfmon.Monitor(log_models=False):
        pass
    assert list((home / "runs").iterdir()) == []
