"""Tests of custom loops in all common modes: the recording equals a hand-written reference in that mode.

Modes are functions that train a model on batches; each says beside it of what its steps' gradients are, by hand.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from tests import trainings
from tests.daily import thorough
from tests.promises.test_exactness import by_global_norm
from tests.trainings import DEEP, compare, differentiated, renamed

RATE = 0.1
NO_BATCHES = {"examples_per_second", "input_wait_share"}  # where no batch of a dataset belongs to a step
NO_CLOCK = NO_BATCHES | {"time", "step_time_ms"}  # XLA has none
Batches = Iterable[tuple[tf.Tensor, tf.Tensor]]
Train = Callable[[Any, Any, Batches], None]


@pytest.fixture(autouse=True)
def watched(fresh: None) -> None:
    mlflow_tfmon.autolog(deep_every=DEEP, log_models=False)


def batches() -> list[tuple[tf.Tensor, tf.Tensor]]:
    return list(trainings.batches(*trainings.data(), 1))


def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(trainings.data()).batch(trainings.BATCH)


def trained(train: Train, net: Any, optimizer: Any = None) -> str:
    with mlflow.start_run() as run:
        train(net, optimizer or keras.optimizers.SGD(RATE), dataset())
    return str(run.info.run_id)


def apply(optimizer: Any, gradients: Any, variables: Any) -> None:
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


# -- modes: each gives a function of a model and an optimizer that takes a batch ------------------------------------
def by_apply(net: Any, optimizer: Any) -> Any:
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = trainings.loss()(y, net(x, training=True))
        optimizer.apply(tape.gradient(value, net.trainable_variables), net.trainable_variables)

    return step


def persistent(net: Any, optimizer: Any) -> Any:
    """One tape, asked for the gradients of one loss by two sets of variables."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape(persistent=True) as tape:
            value = trainings.loss()(y, net(x, training=True))
        trunk = tape.gradient(value, net.trainable_variables[:2])
        head = tape.gradient(value, net.trainable_variables[2:])
        apply(optimizer, trunk + head, net.trainable_variables)

    return step


def two_losses(net: Any, optimizer: Any) -> Any:
    """Each half of the model has a tape and a loss of its own."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as one, tf.GradientTape() as two:
            out = net(x, training=True)
            first, second = trainings.loss()(y, out), tf.reduce_mean(out**2)
        trunk = one.gradient(first, net.trainable_variables[:2])
        head = two.gradient(second, net.trainable_variables[2:])
        apply(optimizer, trunk + head, net.trainable_variables)

    return step


def two_losses_by_hand(net: Any, x: tf.Tensor, y: tf.Tensor) -> Any:
    first, trunk = differentiated(net, x, y)
    second, head = differentiated(net, x, y, lambda net, x, y: tf.reduce_mean(net(x, training=True) ** 2))
    return first + second, trunk[:2] + head[2:]


def list_of_losses(net: Any, optimizer: Any) -> Any:
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            out = net(x, training=True)
            losses = [trainings.loss()(y, out), 0.1 * tf.reduce_mean(out**2)]
        apply(optimizer, tape.gradient(losses, net.trainable_variables), net.trainable_variables)

    return step


def summed_by_hand(net: Any, x: tf.Tensor, y: tf.Tensor) -> Any:
    def objective(net: Any, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        out = net(x, training=True)
        return trainings.loss()(y, out) + 0.1 * tf.reduce_mean(out**2)

    return differentiated(net, x, y, objective)


def added_gradients(net: Any, optimizer: Any) -> Any:
    """Two losses of the whole model, whose gradients are weighted and added."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as one, tf.GradientTape() as two:
            out = net(x, training=True)
            first, second = trainings.loss()(y, out), tf.reduce_mean(out**2)
        pairs = zip(
            one.gradient(first, net.trainable_variables),
            two.gradient(second, net.trainable_variables),
            strict=True,
        )
        apply(optimizer, [a + 0.1 * b for a, b in pairs], net.trainable_variables)

    return step


def each_example(net: Any, optimizer: Any) -> Any:
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            values = criterion(y, net(x, training=True))
        apply(optimizer, tape.gradient(values, net.trainable_variables), net.trainable_variables)

    return step


def each_example_by_hand(net: Any, x: tf.Tensor, y: tf.Tensor) -> Any:
    return differentiated(
        net, x, y, lambda net, x, y: trainings.BATCH * trainings.loss()(y, net(x, training=True))
    )


def gradient_penalty(net: Any, optimizer: Any) -> Any:
    """An inner gradient by the inputs (WGAN-GP): no training of its own."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = trainings.loss()(y, net(x, training=True))
            slope = inner.gradient(value, x)
            total = value + 10 * tf.reduce_mean((tf.norm(slope, axis=1) - 1) ** 2)
        apply(optimizer, outer.gradient(total, net.trainable_variables), net.trainable_variables)

    return step


def gradient_penalty_by_hand(net: Any, x: tf.Tensor, y: tf.Tensor) -> Any:
    def objective(net: Any, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = trainings.loss()(y, net(x, training=True))
        slope = inner.gradient(value, x)
        return value + 10 * tf.reduce_mean((tf.norm(slope, axis=1) - 1) ** 2)

    return differentiated(net, x, y, objective)


def second_order(net: Any, optimizer: Any) -> Any:
    """An inner gradient by the weights, of which the outer loss is made (as in MAML)."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = trainings.loss()(y, net(x, training=True))
            slopes = inner.gradient(value, net.trainable_variables)
            total = value + tf.add_n([tf.reduce_sum(g**2) for g in slopes])
        apply(optimizer, outer.gradient(total, net.trainable_variables), net.trainable_variables)

    return step


def second_order_by_hand(net: Any, x: tf.Tensor, y: tf.Tensor) -> Any:
    def objective(net: Any, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as inner:
            value = trainings.loss()(y, net(x, training=True))
        slopes = inner.gradient(value, net.trainable_variables)
        return value + tf.add_n([tf.reduce_sum(g**2) for g in slopes])

    return differentiated(net, x, y, objective)


def sharpness_aware(net: Any, optimizer: Any) -> Any:
    """SAM: only the second gradient, at weights a little further up, is applied."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        up = []
        for sign in (1.0, -1.0):
            with tf.GradientTape() as tape:
                value = trainings.loss()(y, net(x, training=True))
            gradients = tape.gradient(value, net.trainable_variables)
            up = up or [0.05 * g for g in gradients]
            for variable, by in zip(net.trainable_variables, up, strict=True):
                variable.assign_add(sign * by)
        apply(optimizer, gradients, net.trainable_variables)

    return step


def sharpness_aware_by_hand(net: Any, x: tf.Tensor, y: tf.Tensor) -> Any:
    weights = net.get_weights()
    _, first = differentiated(net, x, y)
    net.set_weights([w + np.float32(0.05) * g for w, g in zip(weights, first, strict=True)])
    found = differentiated(net, x, y)
    net.set_weights(weights)
    return found


def clipped_by_hand(net: Any, optimizer: Any) -> Any:
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = trainings.loss()(y, net(x, training=True))
        gradients, _ = tf.clip_by_global_norm(tape.gradient(value, net.trainable_variables), 0.1)
        apply(optimizer, gradients, net.trainable_variables)

    return step


def clipped_each(net: Any, optimizer: Any) -> Any:
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = trainings.loss()(y, net(x, training=True))
        gradients = [tf.clip_by_norm(g, 0.02) for g in tape.gradient(value, net.trainable_variables)]
        apply(optimizer, gradients, net.trainable_variables)

    return step


def by_norm(gradients: list[np.ndarray]) -> list[np.ndarray]:
    return [(g * min(1.0, 0.02 / np.linalg.norm(g))).astype("float32") for g in gradients]


def micro_batches(net: Any, optimizer: Any, clip: bool = False) -> Any:
    """Accumulation in one function: the optimizer gets the mean of the gradients of four micro-batches."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        total = [tf.zeros_like(v) for v in net.trainable_variables]
        for part in range(4):
            with tf.GradientTape() as tape:
                value = trainings.loss()(y[part::4], net(x[part::4], training=True))
            found = tape.gradient(value, net.trainable_variables)
            total = [a + g for a, g in zip(total, found, strict=True)]
        mean = [a / 4 for a in total]
        if clip:
            mean, _ = tf.clip_by_global_norm(mean, 0.1)
        apply(optimizer, mean, net.trainable_variables)

    return step


def micro_batches_in_a_loop(net: Any, optimizer: Any) -> Any:
    """Accumulation in variables, over a loop in the graph."""
    sums = [tf.Variable(tf.zeros(v.shape)) for v in net.trainable_variables]

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        xs, ys = tf.reshape(x, [4, -1, trainings.FEATURES]), tf.reshape(y, [4, -1])
        for part in tf.range(4):
            with tf.GradientTape() as tape:
                value = trainings.loss()(ys[part], net(xs[part], training=True))
            for total, found in zip(sums, tape.gradient(value, net.trainable_variables), strict=True):
                total.assign_add(found / 4)
        apply(optimizer, [tf.identity(total) for total in sums], net.trainable_variables)
        for total in sums:
            total.assign(tf.zeros_like(total))

    return step


def scaled_by_hand(net: Any, optimizer: Any) -> Any:
    """Mixed precision's loss scaling, as a custom loop has to do it."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = trainings.loss()(y, net(x, training=True))
            scaled = optimizer.scale_loss(value)
        apply(optimizer, tape.gradient(scaled, net.trainable_variables), net.trainable_variables)

    return step


def in_branch(net: Any, optimizer: Any) -> Any:
    """The update is made in a branch of a cond."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = trainings.loss()(y, net(x, training=True))
        gradients = tape.gradient(value, net.trainable_variables)
        if tf.math.is_finite(value):
            apply(optimizer, gradients, net.trainable_variables)

    return step


def plain(net: Any, optimizer: Any) -> Any:
    return trainings.custom_step(net, optimizer, in_graph=False)


def clipped_micro_batches(net: Any, optimizer: Any) -> Any:
    return micro_batches(net, optimizer, clip=True)


# mode: (what makes the step, what gives loss and gradients by hand, what clips by hand)
STEPS: dict[str, tuple[Any, Any, Any]] = {
    "plain": (plain, None, None),
    "optimizer.apply": (by_apply, None, None),
    "persistent tape": (persistent, None, None),
    "a loss for each half": (two_losses, two_losses_by_hand, None),
    "list of losses": (list_of_losses, summed_by_hand, None),
    "loss per example": (each_example, each_example_by_hand, None),
    "gradient penalty": (gradient_penalty, gradient_penalty_by_hand, None),
    "second order": (second_order, second_order_by_hand, None),
    "sharpness aware": (sharpness_aware, sharpness_aware_by_hand, None),
    "clipped by global norm": (clipped_by_hand, None, by_global_norm),
    "clipped by norm": (clipped_each, None, by_norm),
    "in a branch": (in_branch, None, None),
    "micro-batches": (micro_batches, None, None),
    "micro-batches in a loop": (micro_batches_in_a_loop, None, None),
}
# Whose sums only a graph can tell.
IN_GRAPH = {
    "weighted gradients": (added_gradients, summed_by_hand, None),
    "micro-batches, clipped": (clipped_micro_batches, None, by_global_norm),
}


def clipping() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(RATE, global_clipnorm=0.1)


def check(
    train: Train,
    by_hand: Any = None,
    clip: Any = None,
    optimizer: Any = None,
    absent: Collection[str] = (),
) -> None:
    """Trains on a dataset and compares with a loop by hand.

    Args:
        train: the training.
        by_hand: gives a step's loss and gradients. Default: those of `trainings.loss()`.
        clip: clips as the training does.
        optimizer: the training's. Default: SGD, which does not clip.
        absent: columns that can't be had.
    """
    net = trainings.model()
    begun = time.time()
    run_id = trained(train, net, optimizer)
    ended = time.time()
    reference = trainings.model()
    seen = trainings.by_hand(
        reference, keras.optimizers.SGD(RATE), iter(batches()), lambda step: RATE, clip, by_hand
    )
    compare(run_id, renamed(seen, reference, net), clipped=clip is not None)
    trainings.compare_clocks(mlflow_tfmon.load_run(run_id).steps, begun, ended, absent)


# Eager tensors don't tell what they were made of, and XLA has no clock: what depends on that is tried in them, too.
EAGER = ("persistent tape", "second order", "sharpness aware", "clipped by global norm", "micro-batches")
XLA = ("plain", "clipped by norm", "in a branch", "micro-batches in a loop")


CASES = [
    *((mode, "function") for mode in (STEPS | IN_GRAPH) if mode != "plain"),
    *((mode, "eager") for mode in EAGER),
    *((mode, "XLA") for mode in XLA),
]
USUAL = [("persistent tape", "function"), ("sharpness aware", "function"), ("micro-batches", "function")]
RARE = [(mode, how) for mode, how in CASES if how != "function" and mode not in ("persistent tape", "plain")]


@pytest.mark.parametrize(("mode", "how"), thorough(CASES, RARE, usual=USUAL))
def test_step(mode: str, how: str) -> None:
    make, by_hand, clip = (STEPS | IN_GRAPH)[mode]
    optimizer = None
    if clip is None and how == "function":  # where nothing is clipped by hand, the optimizer does it
        clip, optimizer = by_global_norm, clipping()

    def train(net: Any, optimizer: Any, steps: Batches) -> None:
        step = make(net, optimizer)
        step = step if how == "eager" else tf.function(step, jit_compile=how == "XLA")
        for x, y in steps:
            step(x, y)

    check(train, by_hand, clip, optimizer, NO_CLOCK if how == "XLA" else ())


@pytest.mark.parametrize("how", ["eager", "function"])
def test_loss_scaling(how: str) -> None:
    """The figures are those of the loss itself; a step whose gradients are not finite is left out, and has a row."""
    x, y = trainings.data()
    x[2 * trainings.BATCH] = np.inf
    steps = list(trainings.batches(x, y, 1))
    net = trainings.model()
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(RATE, global_clipnorm=0.1), initial_scale=1024.0, dynamic_growth_steps=4
    )

    def train(net: Any, optimizer: Any, _: Batches) -> None:
        step = scaled_by_hand(net, optimizer)
        step = step if how == "eager" else tf.function(step)
        for a, b in steps:
            step(a, b)

    run_id = trained(train, net, optimizer)
    reference = trainings.model()
    seen = trainings.by_hand(
        reference, keras.optimizers.SGD(RATE), iter(steps), lambda step: RATE, by_global_norm,
        scale=trainings.Scale(1024.0, 4), in_graph=how == "function",
    )  # fmt: skip
    assert np.isfinite(seen.grad_norm).tolist() == [step != 3 for step in range(1, 11)]
    deep = [1, 4, 8]  # step 3 is neither
    compare(run_id, renamed(seen, reference, net), clipped=True, deep=deep)


def test_a_whole_epoch_in_one_function() -> None:
    def train(net: Any, optimizer: Any, steps: Batches) -> None:
        step = plain(net, optimizer)

        @tf.function
        def epoch() -> None:
            for x, y in steps:
                step(x, y)

        epoch()

    check(train, None, by_global_norm, clipping(), absent=NO_BATCHES)


@pytest.mark.parametrize("how", thorough(["eager", "function"], ["eager"]))
def test_accumulation_over_calls(how: str) -> None:
    """Gradients added up in variables; every fourth call applies their mean: the loss is the mean as well."""
    x, y = trainings.data()
    parts = [(tf.constant(x[a : a + 4]), tf.constant(y[a : a + 4])) for a in range(0, 160, 4)]

    def train(net: Any, optimizer: Any, steps: Batches) -> None:
        sums = [tf.Variable(tf.zeros(v.shape)) for v in net.trainable_variables]

        def add(a: tf.Tensor, b: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                value = trainings.loss()(b, net(a, training=True))
            for total, found in zip(sums, tape.gradient(value, net.trainable_variables), strict=True):
                total.assign_add(found)

        def update() -> None:
            apply(optimizer, [total / 4 for total in sums], net.trainable_variables)
            for total in sums:
                total.assign(tf.zeros_like(total))

        add, update = (add, update) if how == "eager" else (tf.function(add), tf.function(update))
        for number, (a, b) in enumerate(parts, 1):
            add(a, b)
            if number % 4 == 0:
                update()

    check(train, None, by_global_norm, clipping(), absent=NO_BATCHES)


def test_shapes_change() -> None:
    """A step that is traced anew for each shape goes on in one stream."""
    x, y = trainings.data()
    cuts = [0, 16, 32, 39, 55, 62, 78, 100, 116]
    steps = [(tf.constant(x[a:b]), tf.constant(y[a:b])) for a, b in itertools.pairwise(cuts)]

    spec = (tf.TensorSpec((None, trainings.FEATURES)), tf.TensorSpec((None,), tf.int64))
    dataset = tf.data.Dataset.from_generator(lambda: iter(steps), output_signature=spec)

    def train(net: Any, optimizer: Any, _: Batches) -> None:
        step = tf.function(plain(net, optimizer), reduce_retracing=False)
        for a, b in dataset:
            step(a, b)

    net = trainings.model()
    run_id = trained(train, net, clipping())
    recorded = mlflow_tfmon.load_run(run_id).steps
    assert recorded.examples.tolist() == [b - a for a, b in itertools.pairwise(cuts)]
    assert (recorded.step_time_ms[1:] > 0).all()
    reference = trainings.model()
    seen = trainings.by_hand(
        reference, keras.optimizers.SGD(RATE), iter(steps), lambda step: RATE, by_global_norm
    )
    compare(run_id, renamed(seen, reference, net), clipped=True)


def test_two_functions_of_one_optimizer() -> None:
    def train(net: Any, optimizer: Any, steps: Batches) -> None:
        optimizer.build(net.trainable_variables)
        one, two = trainings.custom_step(net, optimizer), trainings.custom_step(net, optimizer)
        for number, (x, y) in enumerate(steps):
            (one if number % 2 else two)(x, y)

    check(train, None, by_global_norm, clipping())


class Module(tf.Module):
    """No Keras in it but the optimizer."""

    def __init__(self) -> None:
        super().__init__(name="plain")
        random = np.random.default_rng(5)
        self.w = tf.Variable(
            random.normal(size=(trainings.FEATURES, trainings.CLASSES)).astype("float32"), name="w"
        )
        self.b = tf.Variable(tf.zeros(trainings.CLASSES), name="b")

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return x @ self.w + self.b


def test_module_of_plain_variables() -> None:
    def train(net: Any, optimizer: Any, steps: Batches) -> None:
        step = trainings.custom_step(net, optimizer)
        for x, y in steps:
            step(x, y)

    begun = time.time()
    run_id = trained(train, Module(), clipping())
    seen = trainings.by_hand(
        Module(), keras.optimizers.SGD(RATE), iter(batches()), lambda step: RATE, by_global_norm
    )
    compare(run_id, seen, clipped=True)
    trainings.compare_clocks(mlflow_tfmon.load_run(run_id).steps, begun, time.time(), ())
    assert set(mlflow_tfmon.load_run(run_id).layers.variable) == {"w", "b"}


def test_one_gradient_for_two_optimizers() -> None:
    """The trunk and the head learn by optimizers of their own, of one loss: it is the loss of both."""
    net = trainings.model()
    one, two = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.01)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = trainings.loss()(y, net(x, training=True))
        gradients = tape.gradient(value, net.trainable_variables)
        apply(one, gradients[:2], net.trainable_variables[:2])
        apply(two, gradients[2:], net.trainable_variables[2:])
        return value

    with mlflow.start_run() as run:
        losses = [float(step(x, y)) for x, y in batches()]
    steps = mlflow_tfmon.load_run(run.info.run_id).steps
    found = steps[[column for column in steps if column.endswith("loss")]]
    assert found.shape == (10, 2)
    np.testing.assert_allclose(found, np.stack([losses, losses], axis=1), rtol=1e-12)


@pytest.mark.parametrize("how", ["jacobian", "vectorized_map", "output_gradients"])
def test_gradients_of_each_example(how: str) -> None:
    """As for differential privacy: what is made of them has no loss that a tape was told of; nothing breaks."""
    weights = tf.fill([trainings.BATCH], 1.0 / trainings.BATCH)
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def make(net: Any, optimizer: Any) -> Any:
        def of_example(example: Any) -> Any:
            with tf.GradientTape() as tape:
                value = criterion(example[1][None], net(example[0][None], training=True))
            return tape.gradient(value, net.trainable_variables)

        def step(x: tf.Tensor, y: tf.Tensor) -> None:
            if how == "jacobian":
                with tf.GradientTape() as tape:
                    value = criterion(y, net(x, training=True))
                each = tape.jacobian(value, net.trainable_variables)
            elif how == "vectorized_map":
                each = tf.vectorized_map(of_example, (x, y))
            else:
                with tf.GradientTape() as tape:
                    value = criterion(y, net(x, training=True))
                found = tape.gradient(value, net.trainable_variables, output_gradients=weights)
                return apply(optimizer, found, net.trainable_variables)
            apply(optimizer, [tf.reduce_mean(g, axis=0) for g in each], net.trainable_variables)

        return step

    def train(net: Any, optimizer: Any, steps: Batches) -> None:
        step = tf.function(make(net, optimizer))
        for x, y in steps:
            step(x, y)

    net = trainings.model()
    begun = time.time()
    run_id = trained(train, net, clipping())
    reference = trainings.model()
    seen = trainings.by_hand(
        reference, keras.optimizers.SGD(RATE), iter(batches()), lambda step: RATE, by_global_norm
    )
    seen.loss.clear()
    compare(run_id, renamed(seen, reference, net), clipped=True)
    trainings.compare_clocks(mlflow_tfmon.load_run(run_id).steps, begun, time.time(), ())


def functional(units: int, inputs: int, name: str) -> keras.Model:
    """A model whose variables' names do not tell of it."""
    begin = keras.Input((inputs,))
    hidden = keras.layers.Dense(5, "tanh")(begin)
    return keras.Model(begin, keras.layers.Dense(units)(hidden), name=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    thorough(
        ["one function", "a function each", "eager", "without a run"],
        ["a function each", "eager", "without a run"],
    ),
)
def test_adversaries(how: str) -> None:
    """A GAN: two streams, each with the losses, norms and step count of its own; the critic makes five steps to one."""
    keras.utils.set_random_seed(4)
    generator, critic = (
        functional(trainings.FEATURES, 2, "generator"),
        functional(1, trainings.FEATURES, "critic"),
    )
    one, two = (
        keras.optimizers.SGD(0.1, global_clipnorm=0.5),
        keras.optimizers.Adam(0.01, global_clipnorm=0.5),
    )
    start = generator.get_weights(), critic.get_weights()
    noise = tf.constant(np.random.default_rng(1).normal(size=(trainings.BATCH, 2)).astype("float32"))
    real = batches()[0][0]

    def critic_step() -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(critic(generator(noise))) - tf.reduce_mean(critic(real))
        gradients = tape.gradient(value, critic.trainable_variables)
        apply(two, gradients, critic.trainable_variables)
        return value, gradients

    def generator_step() -> Any:
        with tf.GradientTape() as tape:
            value = -tf.reduce_mean(critic(generator(noise)))
        gradients = tape.gradient(value, generator.trainable_variables)
        apply(one, gradients, generator.trainable_variables)
        return value, gradients

    def train(wrap: Any) -> dict[str, list[tuple[float, ...]]]:
        seen: dict[str, list[tuple[float, ...]]] = {"critic": [], "generator": []}
        steps = {"critic": wrap(critic_step), "generator": wrap(generator_step)}
        nets = {"critic": critic, "generator": generator}
        for number, _ in enumerate(dataset().repeat().take(24), 1):
            value, gradients = steps[name := "critic" if number % 6 else "generator"]()
            norm, weights = trainings.norm(gradients), nets[name].get_weights()
            seen[name].append((float(value), norm, min(norm, 0.5), trainings.norm(weights)))
        return seen

    if how == "one function":
        many = tf.function(lambda: ([critic_step() for _ in range(5)], generator_step()))

        def wrapped() -> None:
            for _ in range(4):
                many()
    else:

        def wrapped() -> None:
            train(tf.function if how != "eager" else lambda step: step)

    begun = time.time()
    if how == "without a run":
        wrapped()
        mlflow_tfmon.end_run()
        (run,) = mlflow.search_runs(output_format="list")
    else:
        with mlflow.start_run() as run:
            wrapped()
    ended = time.time()
    mlflow_tfmon.autolog(disable=True)
    for net, weights in zip((generator, critic), start, strict=True):
        net.set_weights(weights)
    one, two = (
        keras.optimizers.SGD(0.1, global_clipnorm=0.5),
        keras.optimizers.Adam(0.01, global_clipnorm=0.5),
    )
    seen = train(lambda step: step)
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    steps = recorded.steps
    for name, rate in (("critic", 0.01), ("generator", 0.1)):
        expected = np.array(seen[name])
        own = steps[[column for column in steps if column.startswith(f"{name}.")]]
        own.columns = [column.removeprefix(f"{name}.") for column in own]
        own = own.dropna(how="all")
        absent = NO_BATCHES if how == "one function" else ()
        trainings.compare_clocks(own, begun, ended, absent)
        found = own[["loss", "grad_norm", "grad_norm_clipped"]]
        layers = recorded.layers[recorded.layers.variable.astype(str).str.startswith(f"{name}.")]
        for step in range(
            DEEP, len(expected) + 1, DEEP
        ):  # each has its own weights, and measures them in its turn
            norms = layers.weight_norm[layers.step == step]
            np.testing.assert_allclose(np.linalg.norm(norms), expected[step - 1, 3], rtol=1e-5)
        expected = expected[:, :3]
        assert list(found.index) == list(range(1, len(expected) + 1))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(steps[f"{name}.learning_rate"].dropna(), rate)
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"{name}.batch/loss")
        assert [m.step for m in history] == list(range(1, len(expected) + 1))
    assert "loss" not in steps
