"""Small trainings and hand-written references for them, shared by the tests of recordings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon

FEATURES, CLASSES, BATCH = 6, 3, 16
DEEP = 4  # the setting deep_every of the trainings that are compared


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
    """What a hand-written eager loop sees, a list entry a step; figures by variable are dictionaries.

    `applied` tells whether the weights were updated; `parts` is what the loss is made of, by name.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    grad_norm_clipped: list[float] = field(default_factory=list)
    variable_grad_norm: list[dict[str, float]] = field(default_factory=list)
    variable_grad_norm_clipped: list[dict[str, float]] = field(default_factory=list)
    weight_norm: list[dict[str, float]] = field(default_factory=list)
    update_ratio: list[dict[str, float]] = field(default_factory=list)
    grad_zero_fraction: list[dict[str, float]] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    loss_scale: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)


class Scale:
    """Loss scaling: halved at gradients that are not finite, doubled after so many steps with finite ones."""

    def __init__(self, value: float = 1.0, growth_steps: int | None = None) -> None:
        self.value, self._growth_steps, self._good = value, growth_steps, 0

    def finite(self, gradients: list[np.ndarray]) -> bool:
        good = all(np.isfinite(g).all() for g in gradients)
        if self._growth_steps:
            self._good = self._good + 1 if good else 0
            if not good:
                self.value /= 2
            elif self._good == self._growth_steps:
                self.value, self._good = self.value * 2, 0
        return good


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


Objective = Callable[..., tuple[tf.Tensor, dict[str, tf.Tensor]]]


def plain_objective(net: Any, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    return loss()(y, net(x, training=True)), {}


def by_hand(
    net: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    steps: Iterator[tuple[Any, ...]],
    rate: Callable[[int], float],
    clip: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    differentiate: Differentiate | None = None,
    *,
    objective: Objective | None = None,
    scale: Scale | None = None,
    accumulate: int = 1,
    in_graph: bool = False,
) -> Reference:
    """Trains a model step by step, unwatched, and measures everything with NumPy.

    Args:
        net: the model.
        optimizer: a Keras optimizer, without what the further arguments do.
        steps: batches.
        rate: the learning rate in force at a step (from 0).
        clip: clips gradients as the watched training does.
        differentiate: gives a step's loss and gradients. Default: those of the objective.
        objective: the loss of a batch and what it is made of, given the model and the batch. Default: `loss()`.
        scale: scales the objective.
        accumulate: over so many steps gradients are averaged before they are applied.
        in_graph: whether the objective is differentiated in a `tf.function`, where TensorFlow computes some ops
            together, and so rounds less often and makes no NaN of an infinity in between.
    """

    def take(factor: tf.Tensor, *batch: Any) -> Any:
        with tf.GradientTape() as tape:
            value, parts = (objective or plain_objective)(net, *batch)
            scaled = value * factor
        return value, parts, tape.gradient(scaled, net.trainable_variables)

    mlflow_tfmon.autolog(disable=True)
    seen, scale, parts = Reference(), scale or Scale(), {}
    taken = tf.function(take) if in_graph else take
    names = [name(v) for v in net.trainable_variables]
    sums: list[Any] = [0.0] * len(names)
    for step, batch in enumerate(steps):
        before = [np.asarray(v.numpy(), np.float64) for v in net.trainable_variables]
        if differentiate:
            value, given = differentiate(net, *batch)
        else:
            value, parts, found = taken(tf.constant(scale.value), *batch)
            given = [tf.convert_to_tensor(g).numpy() for g in found]
        seen.loss_scale.append(scale.value)
        gradients = [g / np.float32(scale.value) for g in given]
        finite = scale.finite(given)
        if finite:
            sums = [s + g for s, g in zip(sums, gradients, strict=True)]
        applied = finite and (step + 1) % accumulate == 0
        clipped = [np.full_like(g, np.nan) for g in gradients]
        if applied:
            means = [s / accumulate for s in sums]
            clipped, sums = clip(means) if clip else means, [0.0] * len(names)
            optimizer.learning_rate = rate(step)
            optimizer.apply_gradients(
                zip([tf.constant(g) for g in clipped], net.trainable_variables, strict=True)
            )
        after = [np.asarray(v.numpy(), np.float64) for v in net.trainable_variables]
        seen.applied.append(applied)
        seen.parts.append({n: float(v) for n, v in parts.items()})
        seen.loss.append(float(value))
        seen.learning_rate.append(rate(step))
        seen.grad_norm.append(norm(gradients))
        seen.grad_norm_clipped.append(norm(clipped))
        seen.variable_grad_norm.append({n: norm([g]) for n, g in zip(names, gradients, strict=True)})
        seen.variable_grad_norm_clipped.append({n: norm([g]) for n, g in zip(names, clipped, strict=True)})
        seen.weight_norm.append({n: norm([w]) for n, w in zip(names, after, strict=True)})
        seen.update_ratio.append(
            {
                n: norm([a - b]) / norm([b]) if norm([b]) and applied else np.nan
                for n, a, b in zip(names, after, before, strict=True)
            }
        )
        seen.grad_zero_fraction.append(
            {n: float((g == 0).mean()) for n, g in zip(names, gradients, strict=True)}
        )
    return seen


def compare(
    run_id: str,
    seen: Reference,
    clipped: bool,
    *,
    deep: list[int] | None = None,
    rtol: float = 1e-5,
) -> None:
    """Compares what was recorded of a run with what the reference saw.

    Args:
        run_id: the run.
        seen: the reference; without losses if none can be recorded.
        clipped: whether gradients were clipped.
        deep: the steps with figures that are measured every few steps. Default: the first and every `DEEP`-th.
        rtol: relative tolerance.
    """
    run = mlflow_tfmon.load_run(run_id)
    steps, count = run.steps, len(seen.learning_rate)
    assert list(steps.index) == list(range(1, count + 1))  # every step once and in order
    if seen.loss:
        np.testing.assert_allclose(steps.loss, seen.loss, rtol=rtol)
    else:
        assert "loss" not in steps
    np.testing.assert_allclose(steps.learning_rate, seen.learning_rate, rtol=rtol)
    np.testing.assert_allclose(steps.grad_norm, seen.grad_norm, rtol=rtol)
    assert ("grad_norm_clipped" in steps) == clipped
    if clipped:
        np.testing.assert_allclose(steps.grad_norm_clipped, seen.grad_norm_clipped, rtol=rtol)
    for name in {name for parts in seen.parts for name in parts}:
        np.testing.assert_allclose(
            steps[name], [parts[name] for parts in seen.parts], rtol=rtol, err_msg=name
        )
    scaled = seen.loss_scale[0] != 1
    assert ("applied" in steps) == (scaled or not all(seen.applied)) and ("loss_scale" in steps) == scaled
    if "applied" in steps:
        np.testing.assert_array_equal(steps.applied, seen.applied)
    if "loss_scale" in steps:
        np.testing.assert_array_equal(steps.loss_scale, seen.loss_scale)
        np.testing.assert_array_equal(steps.skipped, ~np.isfinite(seen.grad_norm))
    layers = run.layers.set_index(["step", "variable"])
    deep = deep or [1, *range(DEEP, count + 1, DEEP)]
    for quantity, figures, at in (
        ("grad_norm", seen.variable_grad_norm, range(1, count + 1)),
        ("grad_norm_clipped", seen.variable_grad_norm_clipped if clipped else [], range(1, count + 1)),
        ("weight_norm", seen.weight_norm, deep),
        ("update_ratio", seen.update_ratio, deep),
        ("grad_zero_fraction", seen.grad_zero_fraction, deep),
    ):
        if not figures:
            assert quantity not in layers or layers[quantity].isna().all()
            continue
        for step in at:
            for variable, value in figures[step - 1].items():
                recorded = layers.loc[(step, variable), quantity]
                # A float32 update of weights is known to 1e-7 of the weights, which is 1e-5 of the update.
                np.testing.assert_allclose(
                    recorded, value, rtol=max(rtol, 2e-4) if quantity == "update_ratio" else rtol, atol=1e-12
                )
        measured = layers[quantity].dropna().reset_index().step.unique()
        assert set(measured) <= set(at)


def compare_clocks(steps: Any, begun: float, ended: float, absent: Collection[str]) -> None:
    """Compares times and batches with the test's own clock and batch size.

    Args:
        steps: as recorded.
        begun: Unix time before the training, seconds.
        ended: the same after it.
        absent: the columns that can't be had.
    """
    columns = {"time", "step_time_ms", "examples_per_second", "input_wait_share"}
    measured = steps.dropna(axis=1, how="all")
    assert columns - set(measured.columns) == set(absent)
    if "time" not in absent:
        assert steps.time.is_monotonic_increasing and steps.time.between(begun, ended).all()
    if "step_time_ms" not in absent:
        spans = steps.step_time_ms
        moved = spans.index > spans.index[0]
        if "time" not in absent:  # two steps of one function may end within a tick of the clock
            moved &= steps.time.diff() != 0
        assert (spans[moved] > 0).all(), f"{spans.tolist()} at {steps.time.tolist()}"
        assert spans.sum() < (ended - begun) * 1e3
    if "examples_per_second" not in absent:
        np.testing.assert_allclose(
            (steps.examples_per_second * steps.step_time_ms / 1e3).iloc[1:], BATCH, rtol=1e-9
        )
    if "input_wait_share" not in absent:
        assert steps.input_wait_share.iloc[1:].between(0, 1).all()


def last_run() -> str:
    run = mlflow.last_active_run()
    assert run is not None
    return str(run.info.run_id)


def renamed(seen: Reference, reference: keras.Model, net: keras.Model) -> Reference:
    """The reference's figures under the names of the watched model's variables."""
    names = {
        name(a): name(b) for a, b in zip(reference.trainable_variables, net.trainable_variables, strict=True)
    }
    for quantity in (
        "variable_grad_norm",
        "variable_grad_norm_clipped",
        "weight_norm",
        "update_ratio",
        "grad_zero_fraction",
    ):
        setattr(seen, quantity, [{names[n]: v for n, v in row.items()} for row in getattr(seen, quantity)])
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
