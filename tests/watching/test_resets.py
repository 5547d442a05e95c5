"""Tests of models that are reset in mid-training: steps and epochs continue, each recorded once and in order."""

from __future__ import annotations

from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from tests import trainings

pytestmark = pytest.mark.usefixtures("fresh")
EPOCH = 10  # steps


def schedule() -> keras.optimizers.schedules.LearningRateSchedule:
    return keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9)


def rates(epochs: list[int]) -> list[float]:
    """The schedule's, over phases of so many epochs, each of which begins with the optimizer's step 0."""
    return [0.1 * 0.9**step for phase in epochs for step in range(phase * EPOCH)]


def reset(net: keras.Model, optimizer: keras.optimizers.Optimizer, weights: list[np.ndarray]) -> None:
    net.set_weights(weights)
    for variable in optimizer.variables:
        if variable is not optimizer.learning_rate:
            variable.assign(np.zeros(variable.shape))
    assert int(optimizer.iterations.numpy()) == 0


def check_order(run_id: str, key: str, values: list[float], first: int) -> None:
    """The points of a series are at steps that rise with time, each with the value of its step."""
    points = mlflow.MlflowClient().get_metric_history(run_id, key)
    by_time = sorted(points, key=lambda point: (point.timestamp, point.step))
    steps = [point.step for point in by_time]
    assert steps == sorted(set(steps)) and steps[-1] == first + len(values) - 1
    np.testing.assert_allclose(
        [p.value for p in by_time], np.array(values)[np.array(steps) - first], rtol=1e-6
    )


@pytest.mark.parametrize("how", ["graph", "eager"])
def test_a_loop_that_resets_its_model(how: str) -> None:
    net, optimizer = trainings.model(), keras.optimizers.Adam(schedule())
    weights, losses, told = net.get_weights(), [], []
    step = trainings.custom_step(net, optimizer)
    step = step.python_function if how == "eager" else step
    with mlflow_tfmon.Monitor(net, deep_every=4, monitor="val_loss") as monitor:
        run_id = str(monitor.run_id)
        for phase in (3, 2, 1):
            for epoch in range(phase):
                losses += [float(step(a, b)) for a, b in trainings.batches(*trainings.data(), 1)]
                told.append(1.0 / (1 + len(told)))
                monitor.log_epoch(epoch, {"val_loss": told[-1]})
                monitor.log_epoch(epoch, {"val_accuracy": told[-1] / 2})  # of the same epoch
            reset(net, optimizer, weights)
    recorded = mlflow_tfmon.load_run(run_id)
    assert recorded.steps.index.tolist() == list(range(1, 61))
    np.testing.assert_array_equal(recorded.steps.loss, losses)
    assert losses[:20] == losses[30:50] and losses[:10] == losses[50:60]  # so it was reset
    np.testing.assert_allclose(recorded.steps.learning_rate, rates([3, 2, 1]), rtol=1e-5)
    deep = recorded.layers.dropna(subset="weight_norm")
    assert deep.step.unique().tolist() == [1, *range(4, 61, 4)]
    assert recorded.epochs.index.tolist() == list(range(6))
    assert recorded.epochs.val_loss.tolist() == told
    assert recorded.epochs.val_accuracy.tolist() == [one / 2 for one in told]
    assert [seam.step for seam in recorded.seams] == [31, 51]
    check_order(run_id, "batch/loss", losses, 1)
    check_order(run_id, "val_loss", told, 0)
    run = mlflow.get_run(run_id)
    assert (run.data.metrics["best/val_loss"], run.data.metrics["best/epoch"]) == (told[-1], 5)
    assert run.data.tags["tfmon.delivery"] == "complete"


def test_a_fit_whose_model_is_reset_by_a_callback() -> None:
    net = trainings.model()
    net.compile(keras.optimizers.Adam(schedule()), trainings.loss())
    weights = net.get_weights()

    class Resets(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch in (3, 4):
                reset(net, net.optimizer, weights)

    mlflow_tfmon.autolog(deep_every=4)
    x, y = trainings.data()
    fitted = net.fit(
        x, y, batch_size=trainings.BATCH, epochs=6, verbose=0, shuffle=False, callbacks=[Resets()]
    )
    (run,) = mlflow.search_runs(output_format="list")
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert recorded.steps.index.tolist() == list(range(1, 61))
    losses = recorded.steps.loss.tolist()
    assert losses[:10] == losses[30:40] == losses[40:50] and losses[10:20] == losses[50:60] != losses[:10]
    np.testing.assert_allclose(recorded.steps.learning_rate, rates([3, 1, 2]), rtol=1e-5)
    assert recorded.epochs.index.tolist() == list(range(6))
    np.testing.assert_allclose(recorded.epochs.loss, fitted.history["loss"], rtol=1e-6)
    check_order(run.info.run_id, "batch/loss", losses, 1)
    check_order(run.info.run_id, "loss", fitted.history["loss"], 0)
    assert int(net.optimizer.iterations.numpy()) == 20  # which is the user's


def test_epochs_that_are_told_late_or_again_stay_where_they_are() -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net) as monitor:
        run_id = str(monitor.run_id)
        for epoch in range(3):
            for half in (0.5, 1.0):  # validated in mid-epoch, too
                for a, b in list(trainings.batches(*trainings.data(), 1))[:5]:
                    step(a, b)
                monitor.log_epoch(epoch, {"val_loss": epoch + half})
        monitor.log_epoch(1, {"test_loss": 7.0})
    recorded = mlflow_tfmon.load_run(run_id)
    assert recorded.epochs.val_loss.tolist() == [1.0, 2.0, 3.0]
    assert recorded.epochs.test_loss.dropna().to_dict() == {1: 7.0}
    assert recorded.seams == ()
