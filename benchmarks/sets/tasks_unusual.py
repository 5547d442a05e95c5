"""Models whose loss has more parts than an output and its target, for `benchmarks.sets.tasks`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from benchmarks.sets.recipes import Data, digits, optimizer_of
from benchmarks.sets.tasks_data import triples
from benchmarks.sets.tasks_losses import closer, in_batch, margin, matched
from benchmarks.sets.tasks_models import built
from benchmarks.sets.tasks_more_data import visits


class Variational(keras.Model):
    """Digits to a distribution of a few numbers, and back; with a `train_step` of its own."""

    def __init__(self, size: int, strictness: float) -> None:
        super().__init__()
        self.encoder = keras.Sequential([layers.Dense(64, "relu"), layers.Dense(2 * size)])
        self.decoder = keras.Sequential([layers.Dense(64, "relu"), layers.Dense(64, "sigmoid")])
        self.noise, self.strictness = keras.random.SeedGenerator(), strictness
        self.means = {name: keras.metrics.Mean(name) for name in ("loss", "mse")}

    @property
    def metrics(self) -> list[Any]:
        return list(self.means.values())

    def call(self, x: Any, training: bool = False) -> Any:
        middle, spread = ops.split(self.encoder(x), 2, -1)
        drawn = middle
        if training:
            drawn = middle + ops.exp(spread / 2) * keras.random.normal(ops.shape(middle), seed=self.noise)
        surprise = -0.5 * ops.sum(1 + spread - ops.square(middle) - ops.exp(spread), -1)
        return self.decoder(drawn), surprise

    def _judged(self, x: Any, training: bool) -> Any:
        again, surprise = self(x, training=training)
        error = ops.mean(ops.square(again - x), -1)
        return ops.mean(64 * error + self.strictness * surprise), ops.mean(error)

    def _told(self, loss: Any, error: Any) -> dict[str, Any]:
        self.means["loss"].update_state(loss)
        self.means["mse"].update_state(error)
        return {name: one.result() for name, one in self.means.items()}

    def train_step(self, data: Any) -> dict[str, Any]:
        x = data[0]
        with tf.GradientTape() as tape:
            loss, error = self._judged(x, True)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._told(loss, error)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self._told(*self._judged(data[0], False))


def variational(
    seed: int, size: int = 10, strictness: float = 0.1, optimizer: str = "Adam", rate: Any = 2e-3
) -> tuple[Any, Data]:
    """The autoencoder; `strictness` is the weight of the prior."""
    x, _, x_val, _ = digits(seed)
    model = Variational(size, strictness)
    model.compile(optimizer_of(optimizer, rate))
    return model, (x, x, x_val, x_val)


def alike(seed: int, given: Any = None, least: float = 1e-6, **more: Any) -> tuple[Any, Any]:
    """How far a digit is from another that is the same, and from one that is not."""
    inputs = [keras.Input((64,)) for _ in range(3)]
    encoder = keras.Sequential([keras.Input((64,)), layers.Dense(64, "relu"), layers.Dense(16)])
    far = layers.Lambda(lambda both: ops.sqrt(ops.sum((both[0] - both[1]) ** 2, -1, keepdims=True) + least))
    first, same, other = (encoder(one) for one in inputs)
    apart = layers.Concatenate()([far([first, same]), far([first, other])])
    return built(inputs, apart, margin, metrics=(closer,), **more), triples(seed, **(given or {}))


def towers(seed: int, cut: bool = False, warmth: float = 8.0, **more: Any) -> tuple[Any, Any]:
    """A net for guests, another for places: each guest's own place is to be the nearest of the batch."""
    inputs = [keras.Input((20,)), keras.Input((16,))]
    made = []
    for one in inputs:
        x = layers.Dense(16)(layers.Dense(48, "relu")(one))
        made.append(layers.Lambda(ops.sign)(x) / 4 if cut else layers.UnitNormalization()(x))
    near = layers.Lambda(lambda both: warmth * ops.matmul(both[0], ops.transpose(both[1])))(made)
    return built(inputs, near, in_batch, metrics=(matched,), **more), visits(seed)
