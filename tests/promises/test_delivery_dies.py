"""Tests in which the delivery process dies or cannot start during a training: the trainer starts another one."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import keras
import mlflow
import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.delivery.sync import find_waiting
from tests import trainings
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery process of the test's own, however many were started before."""
    monkeypatch.setattr(DeliveryProcess, "_shared", None)


def kill() -> int:
    process = DeliveryProcess.shared()._process
    assert process is not None
    pid = process.pid()
    os.kill(pid, signal.SIGKILL)
    assert process.wait(150)
    return pid


def check(run_id: str, losses: list[float]) -> None:
    until(lambda: not find_waiting())
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    recorded = mlflow_tfmon.load_run(run_id)
    assert recorded.steps.index.tolist() == list(range(1, len(losses) + 1))
    assert recorded.steps.loss.tolist() == losses
    points = [point.step for point in mlflow.MlflowClient().get_metric_history(run_id, "batch/loss")]
    assert len(points) == len(set(points)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in mid-training", "at the end"])
def test_one_that_is_killed_is_followed_by_another(when: str) -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))

    def train() -> list[float]:
        return [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), 10)]

    client = mlflow.MlflowClient()
    with mlflow_tfmon.Monitor(net, delivery_wait=60.0) as monitor:
        run_id = str(monitor.run_id)
        losses = train()
        until(lambda: "batch/loss" in client.get_run(run_id).data.metrics)
        before = kill()
        if when == "in mid-training":
            delivery = DeliveryProcess.shared()
            until(lambda: delivery._process is not None and delivery._process.pid() != before)
            losses += train()
    check(run_id, losses)


@pytest.mark.slow
def test_one_that_cannot_be_started_is_started_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TFMON_RAISE_ERRORS")
    real, tries = subprocess.Popen, []

    def full(command: Any, *args: Any, **kwargs: Any) -> Any:
        if any("mlflow_tfmon.delivery" in str(one) for one in command) and len(tries) < 2:
            tries.append(command)
            raise BlockingIOError("Resource temporarily unavailable")
        return real(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", full)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    with mlflow_tfmon.Monitor(net, delivery_wait=60.0) as monitor:
        run_id = str(monitor.run_id)
        losses = [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), 2)]
    assert len(tries) == 2
    check(run_id, losses)
