"""Small trainings, and hand-written references for them, shared by the tests of what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_tfmon

FEATURES, CLASSES, BATCH = 6, 3, 16


def data(rows: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, FEATURES)).astype("float32"), random.integers(0, CLASSES, rows)


def model(seed: int = 1, name: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((FEATURES,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(CLASSES)]
    return keras.Sequential(layers, name=name)


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batches(x: np.ndarray, y: np.ndarray, epochs: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            yield tf.constant(x[start : start + BATCH]), tf.constant(y[start : start + BATCH])


@dataclass
class Reference:
    """What a hand-written eager loop sees, a list entry a step; figures by variable are dictionaries."""

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    grad_norm_clipped: list[float] = field(default_factory=list)
    variable_grad_norm: list[dict[str, float]] = field(default_factory=list)
    variable_grad_norm_clipped: list[dict[str, float]] = field(default_factory=list)
    weight_norm: list[dict[str, float]] = field(default_factory=list)
    update_ratio: list[dict[str, float]] = field(default_factory=list)
    grad_zero_fraction: list[dict[str, float]] = field(default_factory=list)


def norm(values: list[np.ndarray]) -> float:
    return float(np.sqrt(sum((np.asarray(v, np.float64) ** 2).sum() for v in values)))


def name(variable: Any) -> str:
    """What a variable is called in the recording."""
    return str(getattr(variable, "path", None) or variable.name).split(":")[0].replace("/", ".")


Differentiate = Callable[[Any, tf.Tensor, tf.Tensor], tuple[float, list[np.ndarray]]]


def differentiated(
    net: Any, x: tf.Tensor, y: tf.Tensor, objective: Callable[..., tf.Tensor] | None = None
) -> tuple[float, list[np.ndarray]]:
    """A loss (`loss()`, or `objective(net, x, y)`) and its gradients, by an eager tape."""
    with tf.GradientTape() as tape:
        value = objective(net, x, y) if objective else loss()(y, net(x, training=True))
    gradients = tape.gradient(value, net.trainable_variables)
    return float(value), [tf.convert_to_tensor(g).numpy() for g in gradients]


def by_hand(
    net: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    steps: Iterator[tuple[tf.Tensor, tf.Tensor]],
    rate: Callable[[int], float],
    clip: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    differentiate: Differentiate | None = None,
) -> Reference:
    """Trains a model step by step, unwatched, and measures everything with NumPy.

    Args:
        net: the model.
        optimizer: a Keras optimizer, without clipping if `clip` does it.
        steps: batches.
        rate: the learning rate in force at a step (from 0).
        clip: clips gradients as the watched training does.
        differentiate: gives a step's loss and gradients; by default those of `loss()`.
    """
    mlflow_tfmon.autolog(disable=True)
    seen, differentiate = Reference(), differentiate or differentiated
    names = [name(v) for v in net.trainable_variables]
    for step, (x, y) in enumerate(steps):
        before = [np.asarray(v.numpy(), np.float64) for v in net.trainable_variables]
        value, gradients = differentiate(net, x, y)
        clipped = clip(gradients) if clip else gradients
        optimizer.learning_rate = rate(step)
        optimizer.apply_gradients(
            zip([tf.constant(g) for g in clipped], net.trainable_variables, strict=True)
        )
        after = [np.asarray(v.numpy(), np.float64) for v in net.trainable_variables]
        seen.loss.append(float(value))
        seen.learning_rate.append(rate(step))
        seen.grad_norm.append(norm(gradients))
        seen.grad_norm_clipped.append(norm(clipped))
        seen.variable_grad_norm.append({n: norm([g]) for n, g in zip(names, gradients, strict=True)})
        seen.variable_grad_norm_clipped.append({n: norm([g]) for n, g in zip(names, clipped, strict=True)})
        seen.weight_norm.append({n: norm([w]) for n, w in zip(names, after, strict=True)})
        seen.update_ratio.append(
            {
                n: norm([a - b]) / norm([b]) if norm([b]) else np.nan
                for n, a, b in zip(names, after, before, strict=True)
            }
        )
        seen.grad_zero_fraction.append(
            {n: float((g == 0).mean()) for n, g in zip(names, gradients, strict=True)}
        )
    return seen


def custom_step(
    net: keras.Model, optimizer: Any, in_graph: bool = True
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The training step that a user would write."""
    criterion = loss()

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = criterion(y, net(x, training=True))
        gradients = tape.gradient(value, net.trainable_variables)
        optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
        return value

    return tf.function(step) if in_graph else step
