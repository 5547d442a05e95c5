"""Tests of outages of the tracking server: nothing is lost, and no training waits."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.tags import pointer
from mlflow_tfmon.watching import pipeline
from tests import trainings
from tests.servers import Between, Server
from tests.waiting import until

pytestmark = pytest.mark.thorough
FAULTS = ["refuses", "hangs", "slow", "500", "429", "half"]
EPOCHS = 20


@pytest.fixture(scope="module")
def server(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(store_template.read_bytes())
    one = Server(folder, f"sqlite:///{folder}/mlflow.db")
    yield one
    one.kill()


@pytest.fixture
def between(server: Server, fresh: None) -> Iterator[Between]:
    one = Between(server.port)
    mlflow.set_tracking_uri(one.uri)
    yield one
    one.close()


_asked: list[tuple[int, str]] = []  # by which thread, and what, of the network
_listens = False


def listen() -> None:
    """From here on `_asked` is filled."""
    global _listens
    if not _listens:
        _listens = True
        sys.addaudithook(  # which cannot be taken out again
            lambda event, _: event.startswith("socket.") and _asked.append((threading.get_ident(), event))
        )


@contextlib.contextmanager
def asking_nothing() -> Iterator[None]:
    """This thread asks nothing of the network meanwhile: so it waits for nothing there."""
    listen()
    before = len(_asked)
    yield
    assert [event for thread, event in _asked[before:] if thread == threading.get_ident()] == []


def train(step: Any, epochs: int = EPOCHS) -> list[float]:
    return [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), epochs)]


def check(client: mlflow.MlflowClient, run_id: str, losses: list[float]) -> None:
    until(lambda: not find_waiting())
    assert client.get_run(run_id).data.tags["tfmon.delivery"] == "complete"
    recorded = mlflow_tfmon.load_run(run_id, client.tracking_uri)
    assert recorded.steps.index.tolist() == list(range(1, len(losses) + 1))
    np.testing.assert_array_equal(recorded.steps.loss, losses)
    points = [(point.step, point.value) for point in client.get_metric_history(run_id, "batch/loss")]
    assert len(points) == len(set(points)) and set(points) <= set(enumerate(losses, 1))
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_goes_away_and_comes_back(fault: str, between: Between, server: Server) -> None:
    mlflow_tfmon.autolog(delivery_wait=0.5)
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.01))
    losses = train(step)
    client = mlflow.MlflowClient(server.uri)
    (run_id,) = pipeline._open
    until(lambda: "batch/loss" in client.get_run(run_id).data.metrics)
    between.fault = fault
    with asking_nothing():
        for _ in range(3):
            losses += train(step)
            time.sleep(1)
    mlflow_tfmon.end_run()
    between.fault = None
    check(client, run_id, losses)


@pytest.mark.parametrize(("how", "fault"), zip(["fit", "loop"] * 3, FAULTS, strict=True))
def test_a_server_that_is_away_at_the_start(how: str, fault: str, between: Between, server: Server) -> None:
    client = mlflow.MlflowClient(server.uri)
    before = {run.info.run_id for run in client.search_runs(["0"])}
    between.fault = fault
    mlflow_tfmon.autolog(delivery_wait=0.5, log_models=False)
    net = trainings.model()
    begun = time.time()
    if how == "loop":
        losses = train(trainings.custom_step(net, keras.optimizers.SGD(0.01)))
        mlflow_tfmon.end_run()
    else:
        net.compile("sgd", trainings.loss())
        x, y = trainings.data()
        net.fit(x, y, batch_size=trainings.BATCH, epochs=2, verbose=0)
    ended = time.time()
    made = [run for run in client.search_runs(["0"]) if run.info.run_id not in before]
    between.fault = None
    until(lambda: len(client.search_runs(["0"])) == len(before) + 1)
    (run,) = (run for run in client.search_runs(["0"]) if run.info.run_id not in before)
    if how == "loop":
        check(client, run.info.run_id, losses)
    until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED")
    until(lambda: not find_waiting())
    run = client.get_run(run.info.run_id)
    assert len(mlflow_tfmon.load_run(run.info.run_id, server.uri).steps) == (200 if how == "loop" else 20)
    assert begun - 1 <= run.info.start_time / 1e3 <= run.info.end_time / 1e3 <= ended + 1
    assert made == [] or fault == "slow"


@pytest.mark.parametrize("fault", ["hangs", "500", "429"])
def test_a_server_that_lives_and_whose_database_is_away_at_the_start(
    fault: str, between: Between, server: Server
) -> None:
    """It says that it lives: MLflow itself would then try for minutes to make the run."""
    between.fault, between.lives = fault, True
    mlflow_tfmon.autolog(delivery_wait=0.5, log_models=False)
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    x, y = trainings.data()
    before = {run.info.run_id for run in mlflow.MlflowClient(server.uri).search_runs(["0"])}
    asked = len(_asked)
    listen()
    net.fit(x, y, batch_size=trainings.BATCH, epochs=2, verbose=0)
    mine = [event for thread, event in _asked[asked:] if thread == threading.get_ident()]
    assert mine.count("socket.connect") <= 2
    between.fault = None
    until(lambda: not find_waiting())
    client = mlflow.MlflowClient(server.uri)
    (run,) = (run for run in client.search_runs(["0"]) if run.info.run_id not in before)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    assert mlflow_tfmon.load_run(run.info.run_id, server.uri).steps.index.tolist() == list(range(1, 21))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("away", [5, 30, 120, "to the end"])
def test_a_server_that_is_killed_and_started_again(away: int | str, server: Server, fresh: None) -> None:
    mlflow.set_tracking_uri(server.uri)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    with mlflow_tfmon.Monitor(net, delivery_wait=0.5, monitor="val_loss") as monitor:
        run_id = str(monitor.run_id)
        losses = train(step)
        monitor.log_epoch(0, {"val_loss": 1.0})
        server.kill()
        back = time.monotonic() + (away if isinstance(away, int) else 5)
        epochs = 1
        while time.monotonic() < back:
            with asking_nothing():
                losses += train(step)
                monitor.log(half=0.5)
                monitor.log_epoch(epochs, {"val_loss": 1 / (1 + epochs)})
            epochs += 1
            time.sleep(1)
        if isinstance(away, int):
            server.start()
            losses += train(step)
    if not isinstance(away, int):
        server.start()
    client = mlflow.MlflowClient(server.uri)
    check(client, run_id, losses)
    recorded = mlflow_tfmon.load_run(run_id, server.uri)
    assert recorded.epochs.val_loss.tolist() == [1 / (1 + epoch) for epoch in range(epochs)]
    points = client.get_metric_history(run_id, "val_loss")
    assert [(one.step, one.value) for one in points] == list(enumerate(recorded.epochs.val_loss))


def test_tags_that_are_no_texts_cost_no_run(server: Server, fresh: None) -> None:
    """A server refuses a number, and would refuse it for ever."""
    mlflow.set_tracking_uri(server.uri)
    mlflow_tfmon.autolog(extra_tags={"fold": 3, "who@": "ann"}, log_models=False)
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    x, y = trainings.data()
    net.fit(x, y, batch_size=trainings.BATCH, epochs=2, verbose=0)
    until(lambda: not find_waiting())
    run = mlflow.get_run(trainings.last_run())
    assert (run.data.tags["fold"], run.data.tags["who_"], run.info.status) == ("3", "ann", "FINISHED")


@pytest.mark.parametrize("fault", ["hangs", "half"])
def test_the_models_of_a_fit_arrive_once(
    fault: str, between: Between, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_AUTOLOGGING_TESTING")  # then MLflow itself asks for the run
    mlflow_tfmon.autolog(delivery_wait=0.5, monitor="loss")
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    told: dict[str, str] = {}
    away = contextlib.ExitStack()

    class Away(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                run = mlflow.active_run()
                assert run is not None
                told["run"] = run.info.run_id
                between.fault = fault
                away.enter_context(asking_nothing())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            time.sleep(0.5)

        def on_train_end(self, logs: Any = None) -> None:
            away.close()

    x, y = trainings.data()
    net.fit(x, y, batch_size=trainings.BATCH, epochs=6, verbose=0, callbacks=[Away()])
    between.fault = None
    until(lambda: not find_waiting())
    client = mlflow.MlflowClient(server.uri)
    run = client.get_run(told["run"])
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    models = [one for one in client.search_logged_models(["0"]) if one.source_run_id == told["run"]]
    assert {one.status.value for one in models} == {"READY"}
    kept = {run.data.tags[pointer(kind)] for kind in ("best_model", "last_model", "resume_model", "model")}
    assert sorted(one.model_id for one in models) == sorted(kept)


def test_what_waits_at_the_end_is_said(
    between: Between, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_tfmon.autolog(delivery_wait=0.5)
    between.fault = "refuses"
    train(trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.01)), 1)
    mlflow_tfmon.end_run()
    (line,) = (record.message for record in caplog.records if "still being uploaded" in record.message)
    (waiting,) = find_waiting()
    assert f"{waiting.records} records" in line and "mlflow-tfmon sync" in line
    between.fault = None
    until(lambda: not find_waiting())
