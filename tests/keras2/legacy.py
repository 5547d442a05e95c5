"""Keras 2 as `tf.keras` (`TF_USE_LEGACY_KERAS=1`); run by `test_keras2.py` in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.optimizers import SGD, Adam, legacy

import mlflow_tfmon
from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.geometry import total_steps
from tests import trainings
from tests.keras2 import nets
from tests.promises.test_exactness import DEEP, by_global_norm, by_norm, by_value, compare

# Two, for replicas; to be said before TensorFlow is used.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def fresh(store: str, home: Path) -> Iterator[None]:
    assert nets.is_tf_keras()
    mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(deep_every=DEEP, log_models=False)
    yield
    mlflow_tfmon.autolog(disable=True)
    mlflow.tensorflow.autolog(disable=True)


def seen(optimizer: Any, rate: Any = lambda step: 0.1, clip: Any = None) -> trainings.Reference:
    return trainings.by_hand(nets.net(), optimizer, nets.batches(), rate, clip)


class Halve(tf_keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.05


def halved(step: int) -> float:
    return 0.1 if step < nets.STEPS else 0.05


FITS = {
    "schedule, clipped": (
        lambda: Adam(nets.decay(), global_clipnorm=0.1), {"steps_per_execution": 2}, Adam, nets.decayed, by_global_norm,
    ),
    "XLA": (lambda: Adam(0.1, clipvalue=0.01), {"jit_compile": True}, Adam, halved, by_value),
    "legacy": (lambda: legacy.SGD(0.1, decay=0.125, clipnorm=0.1), {}, legacy.SGD, nets.decayed, by_norm),
}  # fmt: skip


@pytest.mark.parametrize("kind", FITS)
def test_fit(kind: str) -> None:
    make, options, by_hand, rate, clip = FITS[kind]
    nets.fit(nets.compiled(make(), **options), callbacks=[Halve()] if rate is halved else [])
    compare(nets.last_run(), seen(by_hand(), rate, clip), clipped=clip is not None)


LOOPS = {
    "in a graph": (lambda: Adam(nets.decay(), weight_decay=0.01, clipnorm=0.1), True, lambda: Adam(weight_decay=0.01),
                   by_norm),
    "legacy, eager": (lambda: legacy.SGD(nets.decay(), momentum=0.9), False, lambda: legacy.SGD(momentum=0.9), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOPS)
def test_custom_loop(kind: str) -> None:
    make, in_graph, by_hand, clip = LOOPS[kind]
    losses = nets.loop(nets.net(), make(), in_graph)
    mlflow_tfmon.end_run()
    compare(nets.last_run(), seen(by_hand(), nets.decayed, clip), clipped=clip is not None)
    np.testing.assert_array_equal(mlflow_tfmon.load_run(nets.last_run()).steps.loss, losses)


@pytest.mark.parametrize(("make", "by"), [(SGD, "fit"), (legacy.SGD, "minimize")], ids=["new", "legacy"])
def test_loss_scaling(make: Any, by: str) -> None:
    """Loss and gradients are the unscaled ones; a float16 holds 3 digits, so 1% apart from those of float32."""
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        if by == "fit":
            nets.fit(nets.compiled(make(0.1)))
        else:
            model = nets.net()
            optimizer = tf_keras.mixed_precision.LossScaleOptimizer(make(0.1))
            for x, y in nets.batches():
                optimizer.minimize(lambda x=x, y=y: nets.loss()(y, model(x)), model.trainable_variables)
            mlflow_tfmon.end_run()
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    steps, expected = mlflow_tfmon.load_run(nets.last_run()).steps, seen(SGD())
    np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-2)
    np.testing.assert_allclose(steps.grad_norm, expected.grad_norm, rtol=1e-2)
    np.testing.assert_allclose(steps.learning_rate, 0.1, rtol=1e-6)


@pytest.mark.parametrize("loop", ["fit", "custom"])
def test_watching_changes_nothing(loop: str) -> None:
    def train() -> list[np.ndarray]:
        if loop == "fit":
            model = nets.compiled(tf_keras.optimizers.AdamW(0.01, global_clipnorm=0.5), noise=0.3)
            nets.fit(model, shuffle=True, validation_split=0.2)
        else:
            model = nets.net(noise=0.3)
            nets.loop(model, legacy.Adam(0.01, clipnorm=0.5), in_graph=True)
            mlflow_tfmon.end_run()
        return list(model.get_weights())

    watched = train()
    assert len(mlflow_tfmon.load_run(nets.last_run()).steps) > 0
    mlflow_tfmon.autolog(disable=True)
    for before, after in zip(train(), watched, strict=True):
        assert before.tobytes() == after.tobytes()


def test_what_mlflow_records_of_a_fit_is_recorded() -> None:
    mlflow_tfmon.autolog(deep_every=DEEP, log_models=False, mlflow_names=True)

    def train() -> tuple[Any, Any]:
        stop = tf_keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0, restore_best_weights=True)
        x, y = trainings.data(20)
        history = nets.fit(
            nets.compiled(Adam(nets.decay())), epochs=9, callbacks=[stop], validation_data=(x, y)
        )
        return history, mlflow.get_run(nets.last_run())

    history, ours = train()
    mlflow_tfmon.autolog(disable=True)
    mlflow.tensorflow.autolog(log_models=False, checkpoint=False)
    _, theirs = train()
    assert theirs.data.tags["mlflow.autologging"] == "tensorflow"
    assert ours.data.params == theirs.data.params
    assert set(theirs.data.metrics) <= set(ours.data.metrics)
    client = mlflow.MlflowClient()
    for name, values in history.history.items():
        points = client.get_metric_history(ours.info.run_id, name)
        assert [p.step for p in points] == [0, 1]
        np.testing.assert_allclose([p.value for p in points], values, rtol=1e-6)
    for name in ("stopped_epoch", "restored_epoch"):
        assert ours.data.metrics[name] == theirs.data.metrics[name]
    summaries = [
        mlflow.artifacts.load_text(f"{r.info.artifact_uri}/model_summary.txt") for r in (ours, theirs)
    ]
    assert summaries[0].split("\n")[1:] == summaries[1].split("\n")[1:]  # but for the model's name
    described = [{d.dataset.digest for d in r.inputs.dataset_inputs} for r in (ours, theirs)]
    assert described[0] == described[1] and len(described[0]) == 2


def test_the_model_is_logged_and_loads() -> None:
    mlflow_tfmon.autolog(checkpoint=False, log_input_examples=True)
    model = nets.compiled(Adam(0.1))
    nets.fit(model)
    (logged,) = mlflow.search_logged_models(output_format="list")
    folder = mlflow.artifacts.download_artifacts(f"models:/{logged.model_id}")
    assert f"tf_keras=={tf_keras.__version__}" in Path(folder, "requirements.txt").read_text().split()
    signature = mlflow.models.get_model_info(folder).signature
    assert signature.outputs.inputs[0].shape == (-1, trainings.CLASSES)
    x, _ = nets.data()
    loaded = mlflow.tensorflow.load_model(folder)
    assert isinstance(loaded.optimizer, Adam)
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_allclose(mlflow.pyfunc.load_model(folder).predict(x), model(x), rtol=1e-5)


class Registered(tf_keras.losses.Loss):
    """A loss of the user's own that is not registered, so that Keras could not load it."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return nets.loss()(y_true, y_pred)


def test_a_model_whose_loss_cannot_be_loaded_is_logged_without_it() -> None:
    mlflow_tfmon.autolog(checkpoint=False)
    model = nets.net()
    model.compile("sgd", Registered())
    nets.fit(model)
    assert model.optimizer is not None and model._is_compiled  # as it was
    (logged,) = mlflow.search_logged_models(output_format="list")
    loaded = mlflow.tensorflow.load_model(f"models:/{logged.model_id}")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    assert not loaded._is_compiled


def test_an_embedding_and_a_subclassed_model() -> None:
    """Rows that occur twice in a batch count once, summed; what gets no gradient is not among the variables."""

    class Words(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__(name="words")
            self.table = tf_keras.layers.Embedding(10, 4, name="table")
            self.out = tf_keras.layers.Dense(1, name="out")
            self.unused = self.add_weight(name="unused", shape=(2,))

        def call(self, rows: Any) -> Any:
            return self.out(tf.reduce_mean(self.table(rows), axis=1))

    rows, targets = np.array([[1, 1, 2], [2, 5, 1]]), np.array([[1.0], [0.0]], "float32")
    tf_keras.utils.set_random_seed(3)
    model = Words()
    with tf.GradientTape() as tape:
        value = tf_keras.losses.MeanSquaredError()(targets, model(rows))
    dense = tf.convert_to_tensor(tape.gradient(value, model.table.embeddings)).numpy()
    model.compile("sgd", tf_keras.losses.MeanSquaredError())
    model.fit(rows, targets, batch_size=2, verbose=0)
    layers = mlflow_tfmon.load_run(nets.last_run()).layers.set_index("variable")
    assert set(layers.index) == {"words.table.embeddings", "words.out.kernel", "words.out.bias"}
    found = layers.loc["words.table.embeddings"]
    np.testing.assert_allclose(found.grad_norm, np.linalg.norm(dense), rtol=1e-5)
    np.testing.assert_allclose(found.grad_zero_fraction, (dense == 0).mean(), rtol=1e-9)


def test_two_variables_of_one_name_are_told_apart() -> None:
    first, second, optimizer = nets.net("first"), nets.net("second"), SGD(0.1)
    variables = [*first.trainable_variables, *second.trainable_variables]
    (x, y), *_ = nets.batches()
    with tf.GradientTape() as tape:
        value = nets.loss()(y, first(x) + 2 * second(x))
    gradients = tape.gradient(value, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    mlflow_tfmon.end_run()
    layers = mlflow_tfmon.load_run(nets.last_run()).layers.set_index("variable").grad_norm
    for name, gradient in (("hidden.kernel", gradients[0]), ("hidden.kernel_2", gradients[4])):
        np.testing.assert_allclose(layers[name], np.linalg.norm(gradient), rtol=1e-5)


def test_one_replica_of_a_strategy() -> None:
    """A step is made in a thread of its own there."""
    with tf.distribute.MirroredStrategy(["cpu:0"]).scope():
        model = nets.compiled(legacy.Adam(0.1, clipvalue=0.01))
    nets.fit(model, callbacks=[Halve()])
    compare(nets.last_run(), seen(legacy.Adam(), halved, by_value), clipped=True)


@pytest.mark.parametrize("make", [SGD, legacy.SGD], ids=["new", "legacy"])
@pytest.mark.parametrize("clip", [None, by_global_norm])
def test_two_replicas(make: Any, clip: Any) -> None:
    """Keras 2 sums the replicas' gradients, then clips the sum: the figures are those of the whole batch."""
    clipping = {"global_clipnorm": 0.1} if clip else {}
    with tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]).scope():
        model = nets.compiled(make(0.1, **clipping))
    nets.fit(model)
    steps, expected = mlflow_tfmon.load_run(nets.last_run()).steps, seen(make(), clip=clip)
    assert list(steps.index) == list(range(1, 2 * nets.STEPS + 1))
    assert (steps.examples == trainings.BATCH).all()
    np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-5)
    applied = "grad_norm_clipped" if clip else "grad_norm"
    assert [name for name in steps if name in ("grad_norm", "grad_norm_clipped")] == [applied]
    np.testing.assert_allclose(steps[applied], expected.grad_norm_clipped, rtol=1e-5)
    for got, wanted in zip(model.get_weights(), trained(make, clip), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def trained(make: Any, clip: Any) -> list[np.ndarray]:
    """The weights after the same training by hand."""
    net = nets.net()
    trainings.by_hand(net, make(), nets.batches(), lambda step: 0.1, clip)
    return list(net.get_weights())


def test_a_sequence_and_a_callback_list() -> None:
    class Batches(tf_keras.utils.Sequence):
        def __len__(self) -> int:
            return nets.STEPS

        def __getitem__(self, index: int) -> Any:
            return nets.batches()[index]

    epochs: list[int] = []
    told = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    model = nets.compiled(steps_per_execution=2)
    own = tf_keras.callbacks.CallbackList([told], add_history=True, model=model, epochs=2, steps=3, verbose=0)
    arguments = bind_fit(
        tf_keras.Model.fit, model, (Batches(),), {"epochs": 2, "callbacks": own, "verbose": 0}
    )
    assert total_steps(arguments) == 2 * nets.STEPS
    mlflow_tfmon.autolog(disable=True)
    args, kwargs = arguments.with_callbacks([mlflow_tfmon.MonitorCallback()])
    model.fit(*args, **kwargs)
    run = mlflow_tfmon.load_run(nets.last_run())
    assert epochs == [0, 1] == list(run.epochs.index)
    assert list(run.steps.index) == list(range(1, 2 * nets.STEPS + 1))
    assert told in own.callbacks and len(own.callbacks) == 2  # as the user made it


def test_the_best_of_a_fit_is_kept() -> None:
    mlflow_tfmon.autolog(deep_every=DEEP)
    seen: list[np.ndarray] = []

    class Seen(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(self.model.predict(nets.data()[0], verbose=0))

    losses = nets.fit(nets.compiled("adam", noise=0.2), epochs=3, callbacks=[Seen()]).history["loss"]
    best = mlflow.get_run(nets.last_run()).data.tags["tfmon.best_model"]
    loaded = mlflow.tensorflow.load_model(f"models:/{best}")
    np.testing.assert_array_equal(loaded.predict(nets.data()[0], verbose=0), seen[int(np.argmin(losses))])


def test_metrics_of_ones_own_are_in_the_logs_of_all_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_AUTOLOGGING_TESTING", "false")  # which wants callbacks to be added last alone
    measured: list[float] = []

    def measure(model: Any) -> dict[str, float]:
        measured.append(float(np.abs(model.get_weights()[0]).sum()))
        return {"weight_sum": measured[-1]}

    mlflow_tfmon.autolog(log_models=False, epoch_metrics=measure, monitor="weight_sum", mode="max")
    seen: list[float] = []
    told = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["weight_sum"]))
    history = nets.fit(nets.compiled("adam"), epochs=3, callbacks=[told]).history
    assert seen == measured == history["weight_sum"] and len(measured) == 3
    points = mlflow.MlflowClient().get_metric_history(nets.last_run(), "weight_sum")
    assert [point.value for point in points] == measured


class Interrupted(Exception):
    pass


class Interrupt(tf_keras.callbacks.Callback):
    """Ends a fit in the middle of its fourth epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.params["epochs"] == EPOCHS and self.model.optimizer.iterations.numpy() == 4 * nets.STEPS + 2:
            raise Interrupted


EPOCHS = 9  # of the second fit; its EarlyStopping ends it in the fifth


def two_fits(*more: Any) -> Any:
    """A model after a fit of one epoch and a longer one, with the same data in another order at each epoch."""
    model = nets.compiled(Adam(0.05))
    batches = tf.data.Dataset.from_tensor_slices(nets.data()).shuffle(1000, seed=5).batch(trainings.BATCH)
    model.fit(batches, epochs=1, verbose=0)
    callbacks = [
        tf_keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=10),
        tf_keras.callbacks.EarlyStopping("loss", patience=4, min_delta=10),
    ]
    history = model.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[*callbacks, *more])
    return model, history


def test_a_fit_that_was_interrupted_goes_on_as_if_it_had_not_been() -> None:
    """In its run, with the same weights, learning rate, patience and order of data; the fit before it is left out."""
    mlflow_tfmon.autolog(disable=True)
    expected, _ = two_fits()
    mlflow_tfmon.autolog(monitor="loss")
    with pytest.raises(Interrupted):
        two_fits(Interrupt())
    run_id = nets.last_run()
    assert mlflow.get_run(run_id).info.status == "FAILED"
    mlflow_tfmon.autolog(monitor="loss", resume="latest")
    model, history = two_fits()
    assert history.epoch == [3, 4]
    for one, other in zip(
        [*model.weights, *model.optimizer.variables, model.optimizer.learning_rate],
        [*expected.weights, *expected.optimizer.variables, expected.optimizer.learning_rate],
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05 / 4)
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    recorded = mlflow_tfmon.load_run(run_id)
    assert recorded.steps.index.tolist() == list(range(1, 5 * nets.STEPS + 1))
    assert recorded.epochs.index.tolist() == list(range(5))
    assert len(mlflow.search_runs(output_format="list")) == 2  # of the first fit, and this one
