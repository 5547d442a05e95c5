"""Tests that monitoring changes no global state: random numbers, environment, signal handlers, logging and so on."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import mlflow.keras.autologging  # what is imported by `autolog` sets up its loggers as it is
import mlflow.tensorflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.detectors.problem import Problem
from tests import trainings
from tests.daily import thorough
from tests.global_state import changed, shared_state

pytestmark = pytest.mark.usefixtures("fresh")


def fit(model: Any, **kwargs: Any) -> None:
    x, y = trainings.data()
    model.fit(x, y, batch_size=trainings.BATCH, verbose=0, **kwargs)


def fresh_model() -> Any:
    """Built by its fit, as in most tutorials, with a layer that draws."""
    layers = [
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(trainings.CLASSES),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), trainings.loss())
    return model


def loop(epochs: int = 1, each: Callable[[int], None] = lambda _: None, model: Any = None) -> None:
    """A loop that chooses its examples by chance."""
    model = model or trainings.model(seed=random.randrange(100))
    step = trainings.custom_step(model, keras.optimizers.SGD(0.1))
    x, y = trainings.data()
    for epoch in range(epochs):
        for _ in range(3):
            rows = random.sample(range(len(x)), trainings.BATCH)
            step(tf.constant(x[rows]), tf.constant(y[rows]))
        each(epoch)


def plain_fits() -> None:
    for _ in range(2):
        fit(fresh_model())


def in_a_run() -> None:
    with mlflow.start_run(run_name="mine"):
        fit(fresh_model(), validation_data=trainings.data(32, seed=1))
        loop()


def loops() -> None:
    loop()
    mlflow_tfmon.end_run()
    loop()
    mlflow_tfmon.end_run()


def monitored() -> None:
    model = trainings.model()
    with mlflow_tfmon.Monitor(model, monitor="loss") as monitor:
        loop(2, lambda epoch: monitor.log_epoch(epoch, {"loss": 1.0 / (1 + epoch)}), model)


def by_callback() -> None:
    fit(
        fresh_model(),
        epochs=2,
        callbacks=[mlflow_tfmon.MonitorCallback(monitor="loss", registered_model_name="m")],
    )


def with_problems() -> None:
    told: list[Problem] = []
    model = trainings.model()
    model.compile(keras.optimizers.SGD(1e9), trainings.loss())
    x, y = trainings.data()
    model.fit(
        x * 1e4, y, epochs=2, verbose=0, callbacks=[mlflow_tfmon.MonitorCallback(on_problem=told.append)]
    )


def unwatched_twin(train: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(keras.callbacks.Callback):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

        def __enter__(self) -> Nothing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def log_epoch(self, *_: Any) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_tfmon, "Monitor", Nothing)
        patch.setattr(mlflow_tfmon, "MonitorCallback", Nothing)
        train()


def ends(train: Callable[[], None]) -> dict[str, Any]:
    """What the process shares after a training that begins with a seed."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    train()
    return shared_state()


@pytest.fixture
def undelivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivery is another process's affair, and takes its time."""
    for name in ("watch", "wait", "ensure_alive"):
        monkeypatch.setattr(DeliveryProcess, name, lambda *_, **__: True)
    monkeypatch.delenv("MLFLOW_AUTOLOGGING_TESTING", raising=False)  # a run ends when it is delivered


@pytest.mark.slow
@pytest.mark.usefixtures("undelivered")
@pytest.mark.parametrize(
    "train",
    thorough(
        [plain_fits, in_a_run, loops, monitored, by_callback, with_problems],
        [in_a_run, monitored, with_problems],
    ),
)
def test_a_training_leaves_behind_what_it_leaves_unwatched(
    train: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unwatched_twin(train, monkeypatch)  # what is imported or set up at the first use is not the watching's
    unwatched = ends(lambda: unwatched_twin(train, monkeypatch))
    if train in (plain_fits, in_a_run, loops):
        mlflow_tfmon.autolog()
    watched = ends(train)
    mlflow_tfmon.autolog(disable=True)
    assert not changed(unwatched, watched)


@pytest.mark.slow
def test_what_is_called_beside_a_training_changes_nothing() -> None:
    keras.utils.set_random_seed(7)
    before = shared_state()

    def same(after: str) -> None:
        assert not changed(before, shared_state()), after

    mlflow_tfmon.autolog(monitor="loss", registered_model_name="best")
    same("autolog()")
    mlflow_tfmon.autolog(disable=True)
    same("autolog(disable=True)")
    mlflow_tfmon.autolog(monitor="loss", registered_model_name="best")
    fit(fresh_model(), epochs=2)
    run = mlflow.last_active_run()
    fit(fresh_model())
    other = mlflow.last_active_run()
    assert run is not None and other is not None
    keras.utils.set_random_seed(7)
    before = shared_state()
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert len(recorded.steps) and len(recorded.layers) and len(recorded.epochs)
    same("load_run")
    mlflow_tfmon.compare([run.info.run_id, other.info.run_id])
    same("compare")
    mlflow_tfmon.promote(run.info.run_id, alias="production")
    same("promote")
    mlflow_tfmon.end_run()
    same("end_run")
    monitor = mlflow_tfmon.Monitor(trainings.model()).start()
    keras.utils.set_random_seed(7)
    before = shared_state()
    monitor.end()
    same("the end of a Monitor")


@pytest.mark.slow
@pytest.mark.usefixtures("undelivered")
def test_runs_of_scripts_with_one_seed_have_names_of_their_own() -> None:
    mlflow_tfmon.autolog(log_models=False)
    for _ in range(2):
        random.seed(7)
        fit(fresh_model())
    names = [run.info.run_name for run in mlflow.search_runs(output_format="list")]
    assert len(names) == len(set(names)) == 2
    mlflow_tfmon.autolog(log_models=False, extra_tags={"mlflow.runName": "mine"})
    fit(fresh_model())
    assert "mine" in [run.info.run_name for run in mlflow.search_runs(output_format="list")]


def test_what_a_library_draws_is_given_back() -> None:
    from mlflow_tfmon.random_state import same_random_numbers

    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.rand()
    random.seed(7)
    np.random.seed(7)
    with same_random_numbers():
        random.random()
        np.random.normal()
    assert (random.random(), np.random.rand()) == expected


def test_what_a_training_draws_while_a_checkpoint_is_written_is_not_drawn_again(tmp_path: Path) -> None:
    from mlflow_tfmon.checkpoints.writer import Queue
    from mlflow_tfmon.facts import saving

    begun, written = threading.Event(), threading.Event()

    def write(number: int, job: Path) -> bool:
        begun.set()
        saving.save_form(job, keras, frozenset(), None, None)
        written.set()
        return True

    np.random.seed(7)
    random.seed(7)
    queue: Queue[Path] = Queue(write)
    queue.put(0, tmp_path / "form", frozenset({0}))
    begun.wait()
    found = []
    while not written.is_set():
        found.append((np.random.random(), random.random()))
        time.sleep(0.001)
    assert queue.finish()
    found.append((np.random.random(), random.random()))
    np.random.seed(7)
    random.seed(7)
    assert found == [(np.random.random(), random.random()) for _ in found]
