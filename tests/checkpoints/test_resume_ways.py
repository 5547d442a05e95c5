"""Tests of resuming in every way to train a model: the end is the same as without an interruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from tests.checkpoints.test_resume import (
    EPOCHS,
    STEPS,
    Interrupt,
    Interrupted,
    X,
    Y,
    callbacks,
    compiled,
    dataset,
    loss,
    model,
    same,
    the_run,
    values,
)
from tests.daily import thorough

pytestmark = pytest.mark.usefixtures("fresh")
Fit = Callable[..., Any]


def with_optimizer(
    make: Callable[[], keras.optimizers.Optimizer], of: Any = None
) -> Callable[[], keras.Model]:
    def made() -> keras.Model:
        net = model()
        net.compile(make(), of or loss())
        return net

    return made


def half_precision() -> keras.Model:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        net = model()
    finally:
        keras.config.set_dtype_policy("float32")
    net.compile(keras.optimizers.Adam(0.05), loss())
    net.optimizer.dynamic_growth_steps = 4
    return net


def two_in_one() -> keras.optimizers.Optimizer:
    adam, sgd = keras.optimizers.Adam(0.05), keras.optimizers.SGD(0.05, momentum=0.9)
    return keras.optimizers.MultiOptimizer(lambda variable: adam if "hidden" in variable.path else sgd)


def own_loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


class Subclassed(keras.Model):
    """Keras cannot load it again, and its layers are built by the first batch."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.hidden, self.out = keras.layers.Dense(8, "relu"), keras.layers.Dense(2)
        self.dropout = keras.layers.Dropout(0.3)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.out(self.dropout(self.hidden(x), training=training))


def subclassed() -> keras.Model:
    keras.utils.set_random_seed(3)
    net = Subclassed()
    net.compile(keras.optimizers.Adam(0.05), loss())
    return net


class Gan(keras.Model):
    """Two networks with an optimizer each, of which Keras's `compile` is told nothing."""

    def __init__(self) -> None:
        super().__init__(name="gan")
        self.critic = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="critic")
        self.generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)], name="generator")
        self.noise = keras.random.SeedGenerator(5)
        self.for_critic, self.for_generator = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02)
        self.entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        noise, real, fake = keras.random.normal((8, 3), seed=self.noise), tf.ones((8, 1)), tf.zeros((8, 1))
        critic, generator = self.critic.trainable_variables, self.generator.trainable_variables
        with tf.GradientTape() as tape:
            judged = self.entropy(real, self.critic(data[0]))
            judged += self.entropy(fake, self.critic(self.generator(noise)))
        self.for_critic.apply(tape.gradient(judged, critic), critic)
        with tf.GradientTape() as tape:
            made = self.entropy(real, self.critic(self.generator(noise)))
        self.for_generator.apply(tape.gradient(made, generator), generator)
        return {"loss": made, "critic_loss": judged}


def gan() -> keras.Model:
    keras.utils.set_random_seed(3)
    net = Gan()
    net.compile()
    return net


def fit_dataset(net: keras.Model, *more: keras.callbacks.Callback) -> Any:
    return net.fit(dataset(), epochs=EPOCHS, callbacks=list(more), verbose=0)


def fit_arrays(net: keras.Model, *more: keras.callbacks.Callback) -> Any:
    """Shuffled, as is Keras's default."""
    return net.fit(X, Y, batch_size=8, epochs=EPOCHS, validation_split=0.25, callbacks=list(more), verbose=0)


Adam = keras.optimizers.Adam
WAYS: dict[str, tuple[Callable[[], keras.Model], Fit]] = {
    "arrays": (compiled, fit_arrays),
    "half precision": (half_precision, fit_dataset),
    "one optimizer of two": (with_optimizer(two_in_one), fit_dataset),
    "a GAN": (gan, fit_dataset),
    "subclassed": (subclassed, fit_dataset),
    "a loss of one's own": (with_optimizer(lambda: Adam(0.05), own_loss), fit_dataset),
    "moving averages": (
        with_optimizer(lambda: Adam(0.05, use_ema=True, ema_overwrite_frequency=4)),
        fit_dataset,
    ),
    "accumulated": (with_optimizer(lambda: Adam(0.05, gradient_accumulation_steps=4)), fit_dataset),
}


def all_values(net: keras.Model) -> list[np.ndarray]:
    own = [one for one in vars(net).values() if isinstance(one, keras.optimizers.Optimizer)]
    return [one for optimizer in (net.optimizer, *own) for one in values(net, optimizer)]


@pytest.mark.slow
@pytest.mark.parametrize("way", thorough(WAYS, [way for way in WAYS if way not in ("arrays", "a GAN")]))
def test_the_same_weights(way: str) -> None:
    make, fit = WAYS[way]
    whole = make()
    fit(whole)
    mlflow_tfmon.autolog(report=False)
    with pytest.raises(Interrupted):
        fit(make(), Interrupt(3 * STEPS + 2))
    mlflow_tfmon.autolog(report=False, resume=the_run().info.run_id)
    net = make()
    assert fit(net).epoch == [3, 4, 5]
    assert same(all_values(net), all_values(whole))


@pytest.mark.slow
@pytest.mark.parametrize("watched", thorough(["the callback alone", "autolog"], ["autolog"]))
def test_a_monitor_callback_that_stands_before_others(watched: str) -> None:
    """What they hold at an epoch's end, and have changed by then, is what comes back."""

    def fit(net: keras.Model, *more: keras.callbacks.Callback) -> Any:
        return net.fit(dataset(), epochs=EPOCHS, callbacks=[*more[:1], *callbacks(), *more[1:]], verbose=0)

    whole = compiled()
    fit(whole)
    if watched == "autolog":
        mlflow_tfmon.autolog(report=False)
    net = compiled()
    with pytest.raises(Interrupted), mlflow_tfmon.Monitor(net, report=False) as monitor:
        fit(net, mlflow_tfmon.MonitorCallback(monitor), Interrupt(3 * STEPS + 2))
    run_id = the_run().info.run_id
    net = compiled()
    assert fit(net, mlflow_tfmon.MonitorCallback(report=False, resume=run_id)).epoch == [3, 4]
    assert same(values(net), values(whole))
    metrics = the_run().data.metrics
    assert metrics["stopped_epoch"] == 4 and "restored_epoch" in metrics
    history = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert sorted(point.step for point in history) == list(range(5))


@pytest.mark.thorough
def test_a_fit_that_early_stopping_had_ended_makes_no_further_epoch(caplog: Any) -> None:
    class AtEnd(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            raise Interrupted

    def fit(net: keras.Model, *more: keras.callbacks.Callback, patience: int = 1) -> Any:
        stopping = keras.callbacks.EarlyStopping(
            "loss", patience=patience, min_delta=0.3, restore_best_weights=True
        )
        return net.fit(dataset(), epochs=EPOCHS, callbacks=[*more, stopping], verbose=0)

    whole = compiled()
    made = fit(whole).epoch
    assert len(made) < EPOCHS
    mlflow_tfmon.autolog(report=False)
    with pytest.raises(Interrupted):
        fit(compiled(), AtEnd())
    run_id = the_run().info.run_id
    mlflow_tfmon.autolog(report=False, resume=run_id)
    net = compiled()
    with caplog.at_level("WARNING", "mlflow_tfmon"):
        assert fit(net, keras.callbacks.TerminateOnNaN()).epoch == []  # though there is another callback now
    assert same(values(net), values(whole))
    assert "no optimizer step was seen" not in caplog.text
    mlflow_tfmon.autolog(report=False, resume=run_id)
    assert fit(compiled(), patience=EPOCHS).epoch == list(
        range(len(made), EPOCHS)
    )  # who wants more gets more


def kept(run_id: str) -> list[int]:
    """The epochs of a run's checkpoints."""
    found = mlflow.search_logged_models(filter_string=f"source_run_id='{run_id}'", output_format="list")
    return sorted(int(one.tags["tfmon.epoch"]) for one in found if one.name in ("best", "last"))


def rates(*values: float) -> keras.callbacks.Callback:
    return keras.callbacks.LearningRateScheduler(lambda epoch: values[epoch])


@pytest.mark.thorough
def test_the_n_best_of_both_parts_are_kept() -> None:
    def fit(*more: keras.callbacks.Callback) -> str:
        net, slow = compiled(), rates(0.01, 0.01, 0.01, 3.0, 3.0, 3.0)
        net.fit(dataset(), epochs=EPOCHS, callbacks=[slow, *more], verbose=0)
        return str(the_run().info.run_id)

    mlflow_tfmon.autolog(report=False, checkpoint_keep=3)
    whole = fit()
    assert kept(whole) == [0, 1, 2, 5]
    mlflow.delete_run(whole)
    with pytest.raises(Interrupted):
        fit(Interrupt(4 * STEPS + 2))
    mlflow_tfmon.autolog(report=False, checkpoint_keep=3, resume=the_run().info.run_id)
    assert kept(fit()) == [0, 1, 2, 5]


@pytest.mark.slow
def test_a_further_training_that_gets_worse_does_not_take_the_place_of_the_best() -> None:
    mlflow_tfmon.autolog(report=False)
    net = compiled()
    with mlflow.start_run() as run:
        net.fit(X, Y, epochs=3, verbose=0)
    before = the_run().data
    net.optimizer.learning_rate = 10.0
    with mlflow.start_run(run_id=run.info.run_id):
        net.fit(X, Y, epochs=5, initial_epoch=3, verbose=0)
    after = the_run().data
    assert before.metrics["best/epoch"] == after.metrics["best/epoch"] == 2
    assert after.metrics["best/loss"] == before.metrics["best/loss"] < after.metrics["loss"]
    assert after.tags["tfmon.best_model"] == before.tags["tfmon.best_model"]
    assert kept(run.info.run_id) == [2, 4]  # the best and the last
    epochs = [one.step for one in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")]
    assert epochs == [0, 1, 2, 3, 4]  # initial_epoch counts as it does for Keras


@pytest.mark.slow
def test_the_best_of_a_run_is_registered_though_only_a_later_part_asks_for_it() -> None:
    def train(**more: Any) -> str:
        mlflow_tfmon.autolog(report=False, **more)
        net = compiled()
        net.fit(
            dataset(), epochs=EPOCHS, callbacks=[rates(0.01, 0.01, 0.01, 3.0, 3.0, 3.0), *stops], verbose=0
        )
        return str(the_run().info.run_id)

    stops: list[keras.callbacks.Callback] = [Interrupt(3 * STEPS + 2)]
    with pytest.raises(Interrupted):
        train()
    stops, client = [], mlflow.MlflowClient()
    run_id = train(resume=the_run().info.run_id, registered_model_name="digits")
    best = client.get_run(run_id).data.tags["tfmon.best_model"]
    version = client.get_model_version_by_alias("digits", "best")
    assert (version.source, version.tags["tfmon.epoch"]) == (f"models:/{best}", "2")
    client.set_registered_model_alias("digits", "champion", version.version)
    client.delete_registered_model_alias("digits", "best")
    with mlflow.start_run(run_id=run_id):
        train(registered_model_name="digits")
    assert len(client.search_model_versions("name='digits'")) == 1
    assert "best" not in client.get_registered_model("digits").aliases  # who took it away meant it
