"""Tests of loops with several tapes, optimizers or functions between a loss and an update: each step has its loss.

Each loop trains, and gives by hand the losses that are right, in the order of the updates: those of which the applied
gradient was made. Where neither graph nor values can tell, none is right, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.stream import records
from mlflow_tfmon.tags import ABSENT_TAG
from mlflow_tfmon.watching import pipeline
from tests.daily import thorough
from tests.probes import further_loops, published_loops

Loop = Callable[[], Any]
NO = float("nan")
random = np.random.default_rng(0)
X = [tf.constant(random.normal(size=(8, 4)).astype("float32")) for _ in range(24)]
Y = [tf.constant(random.normal(size=(8, 2)).astype("float32")) for _ in range(24)]
LOOPS: dict[str, Loop] = {}


def loop(make: Loop) -> Loop:
    LOOPS[make.__name__] = make
    return make


def net(seed: int = 3, inputs: int = 4, outputs: int = 2) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((inputs,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(outputs)]
    return keras.Sequential(layers)


def mse(model: Any, x: Any, y: Any) -> Any:
    return tf.reduce_mean((model(x) - y) ** 2)


def differentiate(model: Any, x: Any, y: Any, loss: Any = mse) -> Any:
    with tf.GradientTape() as tape:
        value = loss(model, x, y)
    return value, tape.gradient(value, model.trainable_variables)


def apply(optimizer: Any, gradients: Any, model: Any) -> None:
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def sgd(model: Any, rate: float = 0.05) -> Any:
    optimizer = keras.optimizers.SGD(rate)
    optimizer.build(model.trainable_variables)
    return optimizer


def each(step: Any, count: int = 4) -> list[float]:
    return [float(step(x, y)) for x, y in zip(X[:count], Y, strict=False)]


@pytest.fixture
def taken(fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is recorded, as it goes to the journal."""
    found: list[Any] = []
    append = pipeline.Pipeline._append

    def appended(self: Any, out: Any) -> None:
        found.extend(out)
        append(self, out)

    monkeypatch.setattr(pipeline.Pipeline, "_append", appended)
    monkeypatch.setattr(pipeline.Pipeline, "_wait", lambda self: True)  # delivery is tried elsewhere
    mlflow_tfmon.autolog(log_models=False)
    yield found


def columns(found: list[Any], name: str) -> dict[int, list[float]]:
    """A column of each stream, NaN where it is absent."""
    layouts: dict[int, records.StreamOpened] = {}
    values: dict[int, list[float]] = {}
    for record in found:
        if isinstance(record, records.StreamOpened):
            layouts[record.stream] = record
        if isinstance(record, records.Steps):
            known = layouts[record.stream].columns
            rows = record.values[:, known.index(name)] if name in known else np.full(len(record.values), NO)
            values.setdefault(record.stream, []).extend(rows.tolist())
    return dict(sorted(values.items()))


# -- tapes of which not each is a step's ------------------------------------------------------------------------------
@loop
def a_batch_is_left_out() -> Any:
    weight, optimizer = tf.Variable(1.0), keras.optimizers.SGD(0.0)

    @tf.function
    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = (weight * x) ** 2
        return loss, tape.gradient(loss, weight)

    for x in tf.constant([1.0, 1000.0, 1.0, 1.0, 1.0]):
        _, found = gradient(x)
        if abs(found) < 100:
            optimizer.apply_gradients([(found, weight)])
    return [1.0] * 4


def _looked_at(eager: bool) -> Any:
    model = net()
    optimizer, losses = sgd(model), []

    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        differentiate(model, X[9], Y[9])
        found, _ = tf.clip_by_global_norm(found, 0.01)
        apply(optimizer, found, model)
        return value

    losses = each(step if eager else tf.function(step))
    return losses


@loop
def a_second_tape_is_looked_at_eagerly() -> Any:
    return _looked_at(eager=True)


@loop
def a_second_tape_is_looked_at_in_a_function() -> Any:
    return _looked_at(eager=False)


@loop
def a_second_tape_of_a_single_weight() -> Any:
    """A number is a multiple of any other: its values could not tell which was clipped."""
    weight, optimizer = tf.Variable(1.0), keras.optimizers.SGD(0.0)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = weight**2
        found = tape.gradient(loss, weight)
        with tf.GradientTape() as tape:
            other = (10.0 * weight) ** 2
        tape.gradient(other, weight)
        (found,), _ = tf.clip_by_global_norm([found], 1.0)
        optimizer.apply_gradients([(found, weight)])
    return [1.0] * 3


@loop
def line_search() -> Any:
    model = net()
    optimizer, losses = sgd(model), []
    for x, y in zip(X[:4], Y, strict=False):
        value, found = differentiate(model, x, y)
        start = [tf.identity(v) for v in model.trainable_variables]
        for rate in (0.5, 0.25):
            for variable, begun, slope in zip(model.trainable_variables, start, found, strict=True):
                variable.assign(begun - rate * slope)
            differentiate(model, x, y)
        for variable, begun in zip(model.trainable_variables, start, strict=True):
            variable.assign(begun)
        apply(optimizer, [0.7 * g for g in found], model)
        losses.append(float(value))
    return losses


def _sharpness(how: str) -> Any:
    model = net()
    optimizer = sgd(model)
    find = tf.function(lambda x, y: differentiate(model, x, y)) if how == "parts" else None
    find = find or (lambda x, y: differentiate(model, x, y))

    def step(x: Any, y: Any) -> Any:
        _, found = find(x, y)
        up = [0.05 * g / tf.linalg.global_norm(found) for g in found]
        for variable, by in zip(model.trainable_variables, up, strict=True):
            variable.assign_add(by)
        value, found = find(x, y)
        for variable, by in zip(model.trainable_variables, up, strict=True):
            variable.assign_sub(by)
        apply(optimizer, found, model)
        return value

    return each(tf.function(step) if how == "graph" else step)


@loop
def sharpness_aware_in_a_function() -> Any:
    return _sharpness("graph")


@loop
def sharpness_aware_eagerly() -> Any:
    return _sharpness("eager")


@loop
def sharpness_aware_by_a_function_for_the_gradient() -> Any:
    return _sharpness("parts")


# -- functions between tape and optimizer -----------------------------------------------------------------------------
def _update_function(clip: bool = False, side: bool = False) -> Any:
    model = net()
    optimizer, losses = sgd(model), []

    @tf.function
    def update(found: Any) -> None:
        if clip:
            found, _ = tf.clip_by_global_norm(found, 0.01)
        apply(optimizer, found, model)

    for x, y in zip(X[:4], Y, strict=False):
        value, found = differentiate(model, x, y)
        if side:
            differentiate(model, X[9], Y[9])
        update(found)
        losses.append(float(value))
    return losses


@loop
def an_eager_tape_and_a_function_that_applies() -> Any:
    return _update_function()


@loop
def an_eager_tape_and_a_function_that_clips_and_applies() -> Any:
    return _update_function(clip=True)


@loop
def two_eager_tapes_and_a_function_that_clips_and_applies() -> Any:
    return _update_function(clip=True, side=True)


@loop
def a_function_within_a_function() -> Any:
    model = net()
    optimizer = sgd(model)
    find = tf.function(lambda x, y: differentiate(model, x, y))

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value, found = find(x, y)
        find(2 * x, y)
        apply(optimizer, found, model)
        return value

    return each(step)


@loop
def an_eager_tape_around_a_function_for_the_loss() -> Any:
    model = net()
    optimizer, forward = sgd(model), tf.function(mse)

    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y, forward)
        apply(optimizer, found, model)
        return value

    return each(step)


def _delayed(in_function: bool) -> Any:
    model = net()
    optimizer, losses, before = sgd(model), [], None
    find: Any = lambda x, y: differentiate(model, x, y)  # noqa: E731
    find = tf.function(find) if in_function else find
    for x, y in zip(X[:6], Y, strict=False):
        now = find(x, y)
        if before is not None:
            apply(optimizer, before[1], model)
            losses.append(float(before[0]))
        before = now
    return losses


@loop
def gradients_applied_a_step_late_eagerly() -> Any:
    return _delayed(False)


@loop
def gradients_applied_a_step_late_by_functions() -> Any:
    return _delayed(True)


def _twice(in_function: bool) -> Any:
    model = net()
    optimizer, losses = sgd(model), []
    find: Any = lambda x, y: differentiate(model, x, y)  # noqa: E731
    find = tf.function(find) if in_function else find
    for x, y in zip(X[:3], Y, strict=False):
        value, found = find(x, y)
        for _ in range(2):
            apply(optimizer, found, model)
            losses.append(float(value))
    return losses


@loop
def one_gradient_applied_twice_eagerly() -> Any:
    return _twice(False)


@loop
def one_gradient_applied_twice_by_functions() -> Any:
    return _twice(True)


@loop
def a_loop_of_steps_in_the_graph() -> Any:
    model = net()
    optimizer = sgd(model)
    xs, ys = tf.stack(X[:5]), tf.stack(Y[:5])

    @tf.function
    def train() -> Any:
        losses = tf.TensorArray(tf.float32, 5)
        for at in tf.range(5):
            value, found = differentiate(model, xs[at], ys[at])
            apply(optimizer, found, model)
            losses = losses.write(at, value)
        return losses.stack()

    return train().numpy().tolist()


# -- sums of gradients ------------------------------------------------------------------------------------------------
def _accumulated(divide: float = 4.0, clip: bool = False, eager: bool = False) -> Any:
    model = net()
    optimizer, losses = sgd(model), []
    sums = [tf.Variable(tf.zeros(v.shape)) for v in model.trainable_variables]

    def add(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        for total, one in zip(sums, found, strict=True):
            total.assign_add(one)
        return value

    def update() -> None:
        found = [total / divide for total in sums]
        if clip:
            found, _ = tf.clip_by_global_norm(found, 0.01)
        apply(optimizer, found, model)
        for total in sums:
            total.assign(tf.zeros_like(total))

    add, update = (add, update) if eager else (tf.function(add), tf.function(update))
    for step in range(3):
        found = [float(add(X[4 * step + part], Y[4 * step + part])) for part in range(4)]
        update()
        losses.append(sum(found) / divide)
    return losses


@loop
def micro_batches_eagerly() -> Any:
    return _accumulated(eager=True)


@loop
def micro_batches_by_functions() -> Any:
    return _accumulated()


@loop
def micro_batches_clipped_eagerly() -> Any:
    return _accumulated(eager=True, clip=True)


@loop
def micro_batches_clipped_by_functions() -> Any:
    return _accumulated(clip=True)


@loop
def micro_batches_whose_gradients_are_added() -> Any:
    """What is minimized is the sum."""
    return _accumulated(divide=1.0)


@loop
def micro_batches_of_which_one_is_rejected() -> Any:
    model = net()
    optimizer, losses = sgd(model), []
    find = tf.function(lambda x, y: differentiate(model, x, y))
    for step in range(3):
        found, values = [], []
        for part in range(4):
            value, one = find(X[4 * step + part], Y[4 * step + part])
            if part != 2:
                found.append(one)
                values.append(float(value))
        apply(optimizer, [tf.add_n(g) / 3 for g in zip(*found, strict=True)], model)
        losses.append(float(np.mean(values)))
    return losses


@loop
def micro_batches_of_two_sizes() -> Any:
    """Weights that add up to one: the mean over the examples."""
    model = net()
    optimizer, losses = sgd(model), []
    find = tf.function(lambda x, y: differentiate(model, x, y), reduce_retracing=True)
    for x, y in zip(X[:4], Y, strict=False):
        (one, first), (two, second) = find(x[:6], y[:6]), find(x[6:], y[6:])
        apply(optimizer, [0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)], model)
        losses.append(float(0.75 * one + 0.25 * two))
    return losses


@loop
def micro_batches_in_one_function_that_applies_each_fourth() -> Any:
    model = net()
    optimizer, number = sgd(model), tf.Variable(0)
    sums = [tf.Variable(tf.zeros(v.shape)) for v in model.trainable_variables]

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        for total, one in zip(sums, found, strict=True):
            total.assign_add(one / 4)
        number.assign_add(1)
        if number % 4 == 0:
            apply(optimizer, [tf.identity(total) for total in sums], model)
            for total in sums:
                total.assign(tf.zeros_like(total))
        return value

    return np.reshape(each(step, 12), (3, 4)).mean(axis=1).tolist()


@loop
def gradient_surgery_in_a_function() -> Any:
    weights, optimizer = tf.Variable([1.0, 1.0]), keras.optimizers.SGD(0.0)

    @tf.function
    def step() -> None:
        with tf.GradientTape(persistent=True) as tape:
            a, b = weights[0] ** 2, 3.0 * weights[1] ** 2
        one, two = tape.gradient(a, weights), tape.gradient(b, weights)
        share = tf.minimum(tf.reduce_sum(one * two) / tf.reduce_sum(two * two), 0.0)
        optimizer.apply_gradients([(one - share * two + two, weights)])

    for _ in range(3):
        step()
    return [4.0] * 3


def _two_losses(combine: Any, eager: bool) -> tuple[Any, list[tuple[float, float]]]:
    model = net()
    optimizer, seen = sgd(model), []

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            out = model(x)
            losses = [tf.reduce_mean((out[:, 0] - y[:, 0]) ** 2), tf.reduce_mean(tf.abs(out[:, 1] - x[:, 0]))]
        found = [tape.gradient(one, model.trainable_variables) for one in losses]
        pairs = [(a, b) for a, b in zip(*found, strict=True) if a is not None]
        apply(optimizer, [combine(a, b) for a, b in pairs], model)
        return losses

    step = step if eager else tf.function(step)
    for x, y in zip(X[:4], Y, strict=False):
        one, two = step(x, y)
        seen.append((float(one), float(two)))
    return model, seen


def projected(one: Any, two: Any) -> Any:
    share = tf.reduce_sum(one * two) / tf.reduce_sum(two * two)
    return one - share * two + two


@loop
def gradients_projected_on_each_other_eagerly() -> Any:
    """What they are made into is the gradient of no one loss."""
    _two_losses(projected, eager=True)
    return [NO] * 4


@loop
def gradients_projected_on_each_other_in_a_function() -> Any:
    _two_losses(projected, eager=False)
    return [NO] * 4


@loop
def gradients_of_two_losses_added_eagerly() -> Any:
    return [a + b for a, b in _two_losses(lambda a, b: a + b, eager=True)[1]]


@loop
def gradients_of_two_losses_averaged_eagerly() -> Any:
    return [(a + b) / 2 for a, b in _two_losses(lambda a, b: (a + b) / 2, eager=True)[1]]


@loop
def gradients_of_two_losses_weighted_in_a_function() -> Any:
    return [a + 0.1 * b for a, b in _two_losses(lambda a, b: a + 0.1 * b, eager=False)[1]]


@loop
def gradients_of_two_losses_weighted_eagerly() -> Any:
    """Weights of any size may be those of a projection."""
    _two_losses(lambda a, b: a + 0.1 * b, eager=True)
    return [NO] * 4


@loop
def each_example_clipped_by_hand() -> Any:
    """Differential privacy: of unequal parts of each example's gradient."""
    model = net()
    optimizer = sgd(model)
    for x, y in zip(X[:3], Y, strict=False):
        found = [
            tf.clip_by_global_norm(differentiate(model, x[at : at + 1], y[at : at + 1])[1], 0.3)[0]
            for at in range(8)
        ]
        apply(optimizer, [tf.add_n(g) / 8 for g in zip(*found, strict=True)], model)
    return [NO] * 3


# -- what is made of a gradient ---------------------------------------------------------------------------------------
def _changed(change: Any, eager: bool, side: bool = False) -> Any:
    model = net()
    optimizer = sgd(model)

    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        if side:
            differentiate(model, X[9], Y[9])
        apply(optimizer, change(found, model), model)
        return value

    return each(step if eager else tf.function(step))


def noisy(found: Any, model: Any) -> Any:
    return [g + 0.01 * tf.random.stateless_normal(g.shape, (1, 2)) for g in found]


def centred(found: Any, model: Any) -> Any:
    return [g - tf.reduce_mean(g, axis=0) if len(g.shape) > 1 else g for g in found]


def signs(found: Any, model: Any) -> Any:
    return [tf.sign(g) for g in found]


def decayed(found: Any, model: Any) -> Any:
    return [g + 0.1 * tf.convert_to_tensor(v) for g, v in zip(found, model.trainable_variables, strict=True)]


def by_value(found: Any, model: Any) -> Any:
    return [tf.clip_by_value(g, -0.05, 0.05) for g in found]


def by_unit(found: Any, model: Any) -> Any:
    """Adaptive clipping: by the norm of each unit's weights."""
    return [tf.clip_by_norm(g, 0.05, axes=[0]) for g in found]


for change in (noisy, centred, signs, by_value, by_unit):
    LOOPS[f"{change.__name__}_eagerly"] = lambda change=change: _changed(change, eager=True)
for change in (noisy, centred, signs, decayed, by_value, by_unit):
    LOOPS[f"{change.__name__}_beside_another_tape"] = lambda change=change: _changed(change, False, True)


@loop
def noise_beside_another_tape_eagerly() -> Any:
    return _changed(noisy, eager=True, side=True)


@loop
def momentum_by_hand() -> Any:
    model = net()
    optimizer = sgd(model)
    slow = [tf.Variable(tf.zeros(v.shape)) for v in model.trainable_variables]

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        for mean, one in zip(slow, found, strict=True):
            mean.assign(0.2 * mean + one)
        apply(optimizer, [tf.identity(mean) for mean in slow], model)
        return value

    return each(step)


@loop
def custom_gradient() -> Any:
    model = net()
    optimizer = sgd(model)

    @tf.custom_gradient
    def reversed_(x: Any) -> Any:
        return tf.identity(x), lambda slope: -slope

    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y, lambda m, x, y: tf.reduce_mean((reversed_(m(x)) - y) ** 2))
        apply(optimizer, found, model)
        return value

    return each(tf.function(step))


@loop
def jacobian_by_hand() -> Any:
    model = net()
    optimizer = sgd(model)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            values = tf.reduce_mean((model(x) - y) ** 2, axis=1)
        found = tape.jacobian(values, model.trainable_variables)
        apply(optimizer, [tf.reduce_mean(g, axis=0) for g in found], model)
        return tf.reduce_mean(values)

    each(step, 3)
    return [NO] * 3


# -- learning to learn, averaging ------------------------------------------------------------------------------------
@loop
def second_order_meta_learning() -> Any:
    first, second = tf.Variable(tf.ones([4, 2])), tf.Variable(tf.zeros([2]))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([first, second])

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = tf.reduce_mean((x[:4] @ first + second - y[:4]) ** 2)
            a, b = inner.gradient(value, [first, second])
            out = x[4:] @ (first - 0.1 * a) + (second - 0.1 * b)
            loss = tf.reduce_mean((out - y[4:]) ** 2)
        found = outer.gradient(loss, [first, second])
        optimizer.apply_gradients(zip(found, [first, second], strict=True))
        return loss

    return each(step)


@loop
def first_order_meta_learning() -> Any:
    """The gradient at the adapted weights is applied to those before."""
    model = net()
    optimizer = sgd(model)

    def step(x: Any, y: Any) -> Any:
        start = [tf.identity(v) for v in model.trainable_variables]
        _, found = differentiate(model, x[:4], y[:4])
        for variable, slope in zip(model.trainable_variables, found, strict=True):
            variable.assign_sub(0.1 * slope)
        value, found = differentiate(model, x[4:], y[4:])
        for variable, begun in zip(model.trainable_variables, start, strict=True):
            variable.assign(begun)
        apply(optimizer, found, model)
        return value

    return each(step)


@loop
def reptile() -> Any:
    """The outer optimizer gets the way that the weights have gone: of no tape."""
    model = net()
    inner, outer, losses = sgd(model, 0.05), sgd(model, 0.5), []
    for task in range(3):
        start = [tf.identity(v) for v in model.trainable_variables]
        for part in range(3):
            value, found = differentiate(model, X[3 * task + part], Y[3 * task + part])
            apply(inner, found, model)
            losses.append(float(value))
        way = [a - v for a, v in zip(start, model.trainable_variables, strict=True)]
        for variable, begun in zip(model.trainable_variables, start, strict=True):
            variable.assign(begun)
        apply(outer, way, model)
    return [losses, [NO] * 3]


@loop
def a_teacher_that_follows_slowly() -> Any:
    model, teacher = net(), net(4)
    optimizer = sgd(model)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y, lambda m, x, y: mse(m, x, y) + mse(m, x, teacher(x)))
        apply(optimizer, found, model)
        for slow, fast in zip(teacher.trainable_variables, model.trainable_variables, strict=True):
            slow.assign(0.9 * slow + 0.1 * fast)
        return value

    return each(step)


@loop
def two_views_and_a_slow_copy() -> Any:
    """Self-supervised: the loss is symmetric in two views, each predicted from the other."""
    online, target, head = net(), net(4), net(5, 2)
    variables = online.trainable_variables + head.trainable_variables
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        one, two = x, x + 0.1
        with tf.GradientTape() as tape:
            value = tf.reduce_mean((head(online(one)) - tf.stop_gradient(target(two))) ** 2)
            value += tf.reduce_mean((head(online(two)) - tf.stop_gradient(target(one))) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        for slow, fast in zip(target.trainable_variables, online.trainable_variables, strict=True):
            slow.assign(0.99 * slow + 0.01 * fast)
        return value

    return each(step)


@loop
def slow_weights_every_second_step() -> Any:
    """Lookahead."""
    model = net()
    optimizer, losses = sgd(model), []
    slow = [tf.identity(v) for v in model.trainable_variables]
    for number, (x, y) in enumerate(zip(X[:6], Y, strict=False), 1):
        value, found = differentiate(model, x, y)
        apply(optimizer, found, model)
        losses.append(float(value))
        if number % 2 == 0:
            slow = [s + 0.5 * (v - s) for s, v in zip(slow, model.trainable_variables, strict=True)]
            for variable, value in zip(model.trainable_variables, slow, strict=True):
                variable.assign(value)
    return losses


@loop
def a_step_that_is_taken_back() -> Any:
    model = net()
    optimizer, losses = sgd(model, 0.5), []
    for x, y in zip(X[:4], Y, strict=False):
        start = [tf.identity(v) for v in model.trainable_variables]
        value, found = differentiate(model, x, y)
        apply(optimizer, found, model)
        losses.append(float(value))
        if mse(model, x, y) > value:
            for variable, begun in zip(model.trainable_variables, start, strict=True):
                variable.assign(begun)
    return losses


@loop
def epochs_of_minibatches_that_stop_early() -> Any:
    """Proximal policy optimization: gradients are no longer applied once the policy has moved too far."""
    model = net()
    optimizer, losses = sgd(model, 0.2), []
    find = tf.function(lambda x, y: differentiate(model, x, y))
    for begin in range(0, 12, 4):
        old = model(X[begin])
        for at in range(begin, begin + 4):
            value, found = find(X[at], Y[at])
            if tf.reduce_mean(tf.abs(model(X[begin]) - old)) > 0.15:
                continue
            apply(optimizer, found, model)
            losses.append(float(value))
    return losses


# -- several optimizers -----------------------------------------------------------------------------------------------
@loop
def actor_and_critic_over_the_same_weights() -> Any:
    weight, actor, critic = tf.Variable(1.0), keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2)

    @tf.function
    def step() -> None:
        for value, optimizer in ((1.0, actor), (100.0, critic)):
            with tf.GradientTape() as tape:
                loss = value + 0.0 * weight
            optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])

    for _ in range(20):
        step()
    return [[1.0] * 20, [100.0] * 20]


@loop
def one_optimizer_over_a_part_of_anothers() -> Any:
    encoder, decoder = tf.Variable(1.0), tf.Variable(1.0)
    rebuild, fool = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = 1.0 + 0.0 * encoder * decoder
        found = tape.gradient(loss, [encoder, decoder])
        rebuild.apply_gradients(zip(found, [encoder, decoder], strict=True))
        with tf.GradientTape() as tape:
            loss = 100.0 + 0.0 * encoder
        fool.apply_gradients([(tape.gradient(loss, encoder), encoder)])

    for _ in range(20):
        step()
    return [[1.0] * 20, [100.0] * 20]


@loop
def two_optimizers_in_phases() -> Any:
    model = net()
    losses: list[list[float]] = [[], []]

    def made(optimizer: Any) -> Any:
        @tf.function
        def step(x: Any, y: Any) -> Any:
            value, found = differentiate(model, x, y)
            apply(optimizer, found, model)
            return value

        return step

    steps = [made(sgd(model)), made(sgd(model, 0.01))]
    for number in range(40):
        turn = number // 10 % 2
        losses[turn].append(float(steps[turn](X[number % 24], Y[number % 24])))
    return losses


@loop
def an_optimizer_that_takes_the_place_of_another() -> Any:
    model, losses = net(), []
    for rate in (0.05, 0.01):
        optimizer = sgd(model, rate)
        for x, y in zip(X[:10], Y, strict=False):
            value, found = differentiate(model, x, y)
            apply(optimizer, found, model)
            losses.append(float(value))
    return losses


@loop
def steps_that_are_clipped_now_and_then() -> Any:
    """What is measured of them is not the same; they stay in the order of the updates."""
    model = net()
    optimizer = sgd(model)

    def made(clips: bool) -> Any:
        @tf.function
        def step(x: Any, y: Any) -> Any:
            value, found = differentiate(model, x, y)
            found = tf.clip_by_global_norm(found, 0.1)[0] if clips else found
            apply(optimizer, found, model)
            return value

        return step

    steps = [made(False), made(True)]
    return [float(steps[n % 3 == 1](X[n % 24], Y[n % 24])) for n in range(40)]


@loop
def the_head_and_the_whole_model_in_turn() -> Any:
    model = net()
    optimizer, losses = sgd(model), []
    for number in range(12):
        variables = model.trainable_variables[0 if number % 2 else 2 :]
        with tf.GradientTape() as tape:
            value = mse(model, X[number], Y[number])
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        losses.append(float(value))
    return losses


@loop
def four_optimizers_and_one_persistent_tape() -> Any:
    """Two generators and two critics, as in CycleGAN."""
    nets = [net(seed, 4, outputs) for seed, outputs in ((1, 4), (2, 4), (3, 1), (4, 1))]
    optimizers = [keras.optimizers.Adam(0.01) for _ in nets]
    for one, optimizer in zip(nets, optimizers, strict=True):
        optimizer.build(one.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            there, back = nets[0](x), nets[1](-x)
            cycle = tf.reduce_mean(tf.abs(nets[1](there) - x)) + tf.reduce_mean(tf.abs(nets[0](back) + x))
            losses = [
                tf.reduce_mean((nets[2](there) - 1) ** 2) + cycle,
                tf.reduce_mean((nets[3](back) - 1) ** 2) + cycle,
                tf.reduce_mean((nets[2](x) - 1) ** 2) + tf.reduce_mean(nets[2](there) ** 2),
                tf.reduce_mean((nets[3](-x) - 1) ** 2) + tf.reduce_mean(nets[3](back) ** 2),
            ]
        found = [tape.gradient(v, m.trainable_variables) for v, m in zip(losses, nets, strict=True)]
        for optimizer, gradients, one in zip(optimizers, found, nets, strict=True):
            apply(optimizer, gradients, one)
        return losses

    return np.array([[float(v) for v in step(x, y)] for x, y in zip(X[:4], Y, strict=False)]).T.tolist()


@loop
def a_critic_with_a_gradient_penalty() -> Any:
    """Three steps of the critic to one of the generator, eagerly."""
    critic, generator = net(1, 4, 1), net(2, 4, 4)
    one, two = sgd(critic, 0.01), sgd(generator, 0.01)
    losses: list[list[float]] = [[], []]
    for number, x in enumerate(X[:8]):
        if number % 4 < 3:
            with tf.GradientTape() as tape:
                fake = generator(-x)
                with tf.GradientTape() as inner:
                    inner.watch(between := (x + fake) / 2)
                    out = critic(between)
                slope = tf.norm(inner.gradient(out, between), axis=1)
                value = tf.reduce_mean(critic(fake)) - tf.reduce_mean(critic(x))
                value += 10 * tf.reduce_mean((slope - 1) ** 2)
            apply(one, tape.gradient(value, critic.trainable_variables), critic)
            losses[0].append(float(value))
        else:
            with tf.GradientTape() as tape:
                value = -tf.reduce_mean(critic(generator(-x)))
            apply(two, tape.gradient(value, generator.trainable_variables), generator)
            losses[1].append(float(value))
    return losses


# -- Keras's own steps ------------------------------------------------------------------------------------------------
class Careful(keras.Model):
    """A train step with a second tape that is looked at, and clipping by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.seen = net(), []

    def call(self, x: Any) -> Any:
        return self.inside(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        value, found = differentiate(self, x, y)
        differentiate(self, 2 * x, y)
        found, _ = tf.clip_by_global_norm(found, 0.05)
        self.optimizer.apply_gradients(zip(found, self.trainable_variables, strict=True))
        if tf.executing_eagerly():
            self.seen.append(float(value))
        return {"loss": value}


@loop
def a_train_step_with_two_tapes_run_eagerly() -> Any:
    model = Careful()
    model.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    model.fit(np.concatenate(X[:4]), np.concatenate(Y[:4]), batch_size=8, shuffle=False, verbose=0)
    return model.seen


@loop
def weights_that_no_optimizer_updates() -> Any:
    """As quasi-Newton methods of a library do."""
    model = net()
    for x, y in zip(X[:3], Y, strict=False):
        _, found = differentiate(model, x, y)
        for variable, slope in zip(model.trainable_variables, found, strict=True):
            variable.assign_sub(0.1 * slope)
    return []


# -- dtypes -----------------------------------------------------------------------------------------------------------
def _of_dtype(dtype: str, eager: bool) -> Any:
    """Of sum(|w|^2), whose gradient is 2 w: at a rate of 0.05 the weights become nine tenths."""
    weights = tf.Variable(tf.cast(tf.constant([2.0, 1.0]), dtype))
    optimizer = keras.optimizers.SGD(0.05)
    optimizer.build([weights])

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.abs(weights) ** 2)
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])

    step = step if eager else tf.function(step)
    for _ in range(3):
        step()
    return [5.0, 4.05, 3.2805]


for dtype in ("complex64", "complex128", "float64"):
    LOOPS[f"{dtype}_eagerly"] = lambda dtype=dtype: _of_dtype(dtype, eager=True)
    LOOPS[f"{dtype}_in_a_function"] = lambda dtype=dtype: _of_dtype(dtype, eager=False)


def _embedding(how: str) -> Any:
    table = tf.Variable(tf.reshape(tf.range(4000.0), [1000, 4]) / 4000.0)
    optimizer, losses = keras.optimizers.SGD(0.1), []
    optimizer.build([table])

    def find(rows: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.gather(table, rows) ** 2)
        return loss, tape.gradient(loss, table)

    find = find if how == "eager" else tf.function(find, input_signature=[tf.TensorSpec([None], tf.int64)])
    for number, rows in enumerate(np.random.default_rng(1).integers(0, 1000, (6, 12))):
        rows = rows[: 6 + number % 3]
        loss, found = find(tf.constant(rows))
        if how == "dense":
            found = tf.convert_to_tensor(found)
        if how == "scaled beside another":
            find(tf.constant(rows[:2]))
            found = tf.IndexedSlices(found.values * 0.5, found.indices, found.dense_shape)
        optimizer.apply_gradients([(found, table)])
        losses.append(float(loss))
    return losses


for how in ("eager", "function", "dense", "scaled beside another"):
    LOOPS[f"sparse gradients, {how}"] = lambda how=how: _embedding(how)


# What loops make of gradients that is the gradient of no one loss, or by what can't be followed: see docs/modes.md. A
# loss of theirs is right or absent; of the variance-reduced ones, that of the first step after a snapshot is there.
MAY_BE_ABSENT = {
    "a_contrast_of_positive_and_negative_phase",
    "a_running_mean_of_micro_batches_eagerly",
    "a_step_made_again_at_half_the_rate",
    "clipped_by_numpy_beside_a_loss_with_the_same_gradient",
    "clipped_by_numpy_beside_a_multiple_of_the_loss",
    "evolution_strategies_beside_a_tape",
    "forward_gradients",
    "gradients_of_threads_are_averaged",
    "gradients_without_a_tape",
    "gradients_without_a_tape_in_a_function",
    "gradients_without_a_tape_object",
    "natural_gradient_by_squared_examples",
    "newton_steps",
    "private_gradients_by_a_jacobian",
    "private_gradients_by_a_map_over_examples",
    "pseudo_labels_of_a_teacher_that_learns",
    "rewards_weigh_the_gradients_eagerly",
    "rewards_weigh_the_gradients_of_functions",
    "split_learning",  # the client's, which differentiates no loss
    "surgery_by_a_train_step",
    "the_gradient_of_a_cache_of_embeddings",
    "trust_region_by_conjugate_gradients",
    "variance_reduced_by_one_model_whose_weights_are_swapped",
    "variance_reduced_eagerly",
    "variance_reduced_in_a_function",
    "workers_whose_gradients_a_global_model_gets",
}
SLOW = {"late_gradients_whose_function_also_updates", "gradients_of_the_step_before_from_variables_clipped"}
# One of each mechanism: followed in a graph, through eager code, by values, absent; several optimizers; other types.
USUAL = {
    "a_batch_is_left_out",
    "a_second_tape_is_looked_at_eagerly",
    "actor_and_critic_over_the_same_weights",
    "an_eager_tape_and_a_function_that_clips_and_applies",
    "centred_beside_another_tape",
    "complex64_in_a_function",
    "gradient_surgery_in_a_function",
    "gradients_applied_a_step_late_eagerly",
    "gradients_of_two_losses_weighted_eagerly",
    "line_search",
    "micro_batches_by_functions",
    "noisy_eagerly",
    "one_gradient_applied_twice_by_functions",
    "sharpness_aware_in_a_function",
    "sparse gradients, function",
    "weights_that_no_optimizer_updates",
}
OTHERS = published_loops.LOOPS | further_loops.LOOPS
LOOPS |= OTHERS


@pytest.mark.parametrize("name", thorough(LOOPS, OTHERS.keys() - SLOW, usual=USUAL))
def test_loss_is_that_of_the_step(name: str, taken: list[Any]) -> None:
    with mlflow.start_run():
        right = LOOPS[name]()
    streams = right if right and isinstance(right[0], list) else [right] if right else []
    found = columns(taken, "loss")
    assert len(found) == len(streams)
    for losses, expected in zip(found.values(), streams, strict=True):
        assert len(losses) == len(expected)
        told = np.isfinite(losses) if name in MAY_BE_ABSENT else np.full(len(losses), True)
        np.testing.assert_allclose(np.array(losses)[told], np.array(expected)[told], rtol=1e-5)
    absent = not all(np.isfinite(losses).all() for losses in found.values())
    tags = [record.tags.get(ABSENT_TAG, "") for record in taken if isinstance(record, records.Facts)]
    assert any("batch/loss" in tag for tag in tags) == absent  # what is absent is said to be
    for times in columns(taken, "time").values():
        assert not (np.diff(times) < 0).any()
