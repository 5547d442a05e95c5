"""Tests of a script moved over from `mlflow.tensorflow.autolog`: MLflow's own functions find the same things."""

from __future__ import annotations

from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from tests import trainings

pytestmark = pytest.mark.usefixtures("fresh")


def fit(net: Any = None, epochs: int = 3, **options: Any) -> Any:
    net = net or compiled()
    x, y = trainings.data()
    net.fit(x, y, epochs=epochs, verbose=0, **options)
    return net


def compiled() -> Any:
    net = trainings.model()
    net.compile(keras.optimizers.SGD(0.05), trainings.loss(), metrics=["accuracy"])
    return net


def last_run() -> Any:
    found = mlflow.last_active_run()
    assert found is not None
    return found


@pytest.mark.parametrize("delivery_wait", [60.0, 0.0])
def test_the_last_logged_model_is_that_of_the_fit(delivery_wait: float) -> None:
    mlflow_tfmon.autolog(checkpoint=False, delivery_wait=delivery_wait)
    with mlflow.start_run() as run:
        net = fit(fit(epochs=1), epochs=1)  # for a while the run's tag has the first fit's
        model = mlflow.last_logged_model()
        assert model is not None and (model.name, model.source_run_id) == ("final", run.info.run_id)
    loaded = mlflow.tensorflow.load_model(f"models:/{model.model_id}")
    np.testing.assert_array_equal(loaded.get_weights()[0], net.get_weights()[0])
    by_hand = mlflow.initialize_logged_model("by hand")
    last = mlflow.last_logged_model()
    assert last is not None and last.model_id == by_hand.model_id  # what is logged later is the last one
    mlflow_tfmon.autolog(disable=True)
    assert mlflow.last_logged_model.__module__ == "mlflow.tracking.fluent"


def test_without_models_there_is_no_last_one() -> None:
    mlflow.tracking.fluent._reset_last_logged_model_id()
    mlflow_tfmon.autolog(log_models=False)
    fit(epochs=1)
    assert mlflow.last_logged_model() is None
    assert last_run().inputs.model_inputs == []


def test_datasets_are_linked_to_the_model() -> None:
    mlflow_tfmon.autolog()
    fit(validation_data=trainings.data(32, seed=1))
    model = mlflow.last_logged_model()
    assert model is not None
    inputs = last_run().inputs
    assert [one.model_id for one in inputs.model_inputs] == [model.model_id]
    digests = {one.tags[0].value: one.dataset.digest for one in inputs.dataset_inputs}
    linked = {metric.key: metric.dataset_digest for metric in model.metrics}
    assert (linked["loss"], linked["val_loss"]) == (digests["train"], digests["eval"])


class Weights(keras.callbacks.Callback):
    """Each epoch's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.seen.append(self.model.get_weights())


@pytest.mark.parametrize("weights_only", [False, True])
def test_load_checkpoint_finds_the_best(weights_only: bool) -> None:
    # The rate rises, so that the best epoch is not the last.
    mlflow_tfmon.autolog(monitor="loss", checkpoint_save_weights_only=weights_only)
    weights, rates = Weights(), keras.callbacks.LearningRateScheduler(lambda epoch: [0.05, 0.05, 50.0][epoch])
    net = fit(callbacks=[rates, weights])
    run = last_run()
    best = int(run.data.metrics["best/epoch"])
    assert best == 1 and run.data.tags["tfmon.best_model"] != run.data.tags["mlflow.tfmon.last_model"]
    given = {"model": compiled()} if weights_only else {}
    loaded = mlflow.tensorflow.load_checkpoint(run_id=run.info.run_id, **given)
    for one, expected in zip(loaded.get_weights(), weights.seen[best], strict=True):
        np.testing.assert_array_equal(one, expected)
    assert loaded.count_params() == net.count_params()


def test_a_loop_without_figures_has_its_last_checkpoint() -> None:
    net = trainings.model()
    optimizer = keras.optimizers.SGD(0.05)
    step = trainings.custom_step(net, optimizer, True)
    with mlflow.start_run() as run, mlflow_tfmon.Monitor(net) as monitor:
        for epoch, batch in enumerate(trainings.batches(*trainings.data(32), 1)):
            step(*batch)
            monitor.log_epoch(epoch)
    loaded = mlflow.tensorflow.load_checkpoint(run_id=run.info.run_id)
    np.testing.assert_array_equal(loaded.get_weights()[0], net.get_weights()[0])


@pytest.mark.slow
def test_an_explicit_callback_of_mlflow_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    mlflow_tfmon.autolog(log_models=False)
    for _ in range(2):
        with mlflow.start_run():
            fit(epochs=1, callbacks=[mlflow.tensorflow.MlflowCallback()])
    assert sum("MlflowCallback" in one.getMessage() for one in caplog.records) == 1
