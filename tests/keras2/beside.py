"""Keras 2 beside Keras 3 (`import tf_keras`, with Keras 3 as `tf.keras`); run by `test_keras2.py` in its own process.

The tests build on each other's imports: the first is the one that imports Keras 2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from tests import trainings
from tests.promises.test_exactness import DEEP, compare


@pytest.fixture(autouse=True)
def fresh(store: str, home: Path) -> Iterator[None]:
    mlflow.set_tracking_uri(store)
    yield
    mlflow_tfmon.autolog(disable=True)


def test_imported_after_autolog() -> None:
    for _ in range(2):  # twice is once
        mlflow_tfmon.autolog(deep_every=DEEP, log_models=False)
    assert "tf_keras" not in sys.modules  # not ours to import
    from tests.keras2 import nets

    assert not nets.is_tf_keras()
    history = nets.fit(nets.compiled(nets.tf_keras.optimizers.SGD(0.1)))
    (run,) = mlflow.search_runs(output_format="list")
    seen = trainings.by_hand(nets.net(), nets.tf_keras.optimizers.SGD(), nets.batches(), lambda step: 0.1)
    compare(run.info.run_id, seen, clipped=False)
    epochs = mlflow_tfmon.load_run(run.info.run_id).epochs
    np.testing.assert_allclose(epochs.accuracy, history.history["accuracy"], rtol=1e-6)


def test_both_kerases_in_one_run() -> None:
    from tests.keras2 import nets

    mlflow_tfmon.autolog(log_models=False)
    third = trainings.model(name="third")
    third.compile("sgd", trainings.loss())
    with mlflow.start_run() as run:
        nets.fit(nets.compiled())
        history = nets.fit(third)
    metrics = mlflow.MlflowClient().get_metric_history(run.info.run_id, "third.loss")
    np.testing.assert_allclose([m.value for m in metrics], history.history["loss"], rtol=1e-6)
    for key in ("batch/loss", "third.batch/loss"):
        points = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
        assert [p.step for p in points] == list(range(1, 2 * nets.STEPS + 1))


def test_a_range_test_puts_all_back() -> None:
    from tests.keras2 import nets

    test = mlflow_tfmon.LearningRateRangeTest(1e-6, 30.0, 60)
    model = nets.compiled(nets.tf_keras.optimizers.Adam(0.02))
    nets.fit(model)
    before = [np.array(one) for one in (*model.variables, *model.optimizer.variables)]
    batches = tf.data.Dataset.from_tensor_slices(trainings.data()).batch(16)
    model.fit(batches, initial_epoch=1, epochs=1, verbose=0, callbacks=[test])  # Keras 2 takes no epochs=0
    for one, other in zip(before, (*model.variables, *model.optimizer.variables), strict=True):
        assert one.tobytes() == np.array(other).tobytes()
    assert test.suggested and test.diverged and len(test.losses) == len(test.rates) > 20


def test_all_is_as_it_was_when_disabled() -> None:
    from mlflow_tfmon import kerases
    from mlflow_tfmon.internals import find
    from mlflow_tfmon.probes.hooks import keras2
    from tests.keras2 import nets

    targets = [hook.target.rpartition(".") for hook in keras2.hooks(print)]
    methods = [(find(owner), name) for owner, _, name in targets]
    methods += [(module.Model, "fit") for module in kerases.imported()]
    before = [getattr(owner, name) for owner, name in methods]
    mlflow_tfmon.autolog()
    assert not any(
        getattr(owner, name) is method for (owner, name), method in zip(methods, before, strict=True)
    )
    mlflow_tfmon.autolog(disable=True)
    assert [getattr(owner, name) for owner, name in methods] == before
    nets.fit(nets.compiled())
    assert not mlflow.search_runs(output_format="list")


def test_a_model_that_mlflow_does_not_know_is_a_saved_model(caplog: pytest.LogCaptureFixture) -> None:
    from tests.keras2 import nets

    mlflow_tfmon.autolog(checkpoint=False)
    model = nets.compiled("adam")
    nets.fit(model)
    (logged,) = mlflow.search_logged_models(output_format="list")
    x, _ = nets.data()
    served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    np.testing.assert_allclose(served.predict(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    assert any("TF_USE_LEGACY_KERAS=1" in record.getMessage() for record in caplog.records)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{logged.model_id}"))
    restored = nets.net()
    restored.compile("adam", nets.loss())
    restored.load_weights(str(folder / "model.weights.h5"))
    np.testing.assert_array_equal(restored.get_weights()[0], model.get_weights()[0])


class Counting(mlflow_tfmon.MonitorCallback):
    batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


@pytest.mark.parametrize("which", ["Keras 2", "Keras 3"])
def test_the_callback_and_what_is_made_of_it(which: str) -> None:
    from tests.keras2 import nets

    model = nets.compiled()
    if which == "Keras 3":
        model = trainings.model()
        model.compile("sgd", trainings.loss())
    counting = Counting(monitor="loss")
    history = nets.fit(model, callbacks=[counting])
    assert counting.batches == 2 * nets.STEPS
    run = mlflow_tfmon.load_run(nets.last_run())
    assert list(run.steps.index) == list(range(1, 2 * nets.STEPS + 1))
    np.testing.assert_allclose(run.epochs.loss, history.history["loss"], rtol=1e-6)


def test_a_monitor_for_a_custom_loop() -> None:
    from tests.keras2 import nets

    model = nets.net()
    with mlflow_tfmon.Monitor(model, monitor="loss") as monitor:
        losses = nets.loop(model, nets.tf_keras.optimizers.Adam(), in_graph=True)
        monitor.log_epoch(0, {"loss": losses[-1]})
    run = mlflow_tfmon.load_run(nets.last_run())
    np.testing.assert_array_equal(run.steps.loss, losses)
    assert mlflow.get_run(nets.last_run()).data.metrics["best/loss"] == losses[-1]


def test_what_cannot_go_on_from_a_checkpoint_says_so_and_loses_none() -> None:
    from mlflow_tfmon.errors import SettingError
    from tests.keras2 import nets

    third = trainings.model(name="third")
    third.compile("sgd", trainings.loss())
    mlflow_tfmon.autolog()
    nets.fit(third)
    run = mlflow.last_active_run()
    mlflow_tfmon.autolog(resume=run.info.run_id)
    with pytest.raises(SettingError, match="not one of the Keras"):
        nets.fit(nets.compiled())
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert tags["mlflow.tfmon.resume_model"] == run.data.tags["mlflow.tfmon.resume_model"]
    mlflow_tfmon.autolog(resume=run.info.run_id)  # still there

    mlflow_tfmon.autolog()
    nets.fit(nets.compiled(nets.tf_keras.optimizers.legacy.SGD(0.1)))
    of_a_legacy_one = mlflow.last_active_run().info.run_id
    with pytest.raises(SettingError, match=r"no checkpoint to resume from.*legacy"):
        mlflow_tfmon.autolog(resume=of_a_legacy_one)
