"""Pictures of docs/gallery.md: a training with each kind of problem, and the same training fixed.

    python -m benchmarks.gallery [KIND...]      # or `make gallery`, for all of them

Each picture is drawn from what autologging recorded of the two, with the monitor's report below it. The command
fails if a problem is not found, or is still found in the fixed training.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

import mlflow_tfmon
from benchmarks.sets.recipes import digits, friedman, mlp, rnn, tabular
from mlflow_tfmon.reading.recorded import RecordedRun

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "problems"
REGRESSION: dict[str, Any] = {"data": friedman, "classes": 0}
LOGITS: dict[str, Any] = {"output": None, "from_logits": True}

Draw = Callable[[Any, RecordedRun], None]


# -- what is drawn -------------------------------------------------------------------------------------------------
def losses(axes: Any, run: RecordedRun) -> None:
    """The loss of each step, and the gradient norm where that is what runs away."""
    steps = run.steps.replace([np.inf, -np.inf], np.nan)
    axes.plot(steps.loss, linewidth=0.5, alpha=0.4, color="C0")
    axes.plot(steps.loss.rolling(max(1, len(steps) // 50), min_periods=1).mean(), color="C0", label="loss")


def gradients(axes: Any, run: RecordedRun) -> None:
    """The gradient norm of all variables."""
    axes.plot(run.steps.grad_norm.replace([np.inf, -np.inf], np.nan), color="C0", label="gradient norm")


def by_epoch(*names: str) -> Draw:
    """Epoch metrics, over the steps at which their epochs ended."""

    def draw(axes: Any, run: RecordedRun) -> None:
        for name in names:
            axes.plot(run.epoch_ends.step, run.epochs[name], label=name)
        axes.legend(fontsize=8)

    return draw


def by_kernel(quantity: str) -> Draw:
    """A quantity of each kernel, from the first layer (dark) to the last (bright)."""

    def draw(axes: Any, run: RecordedRun) -> None:
        kernels = [name for name, (_, is_kernel) in run.variables.items() if is_kernel]
        table = run.layers.dropna(subset=[quantity]).pivot(index="step", columns="variable", values=quantity)
        for name, color in zip(kernels, _shades(len(kernels)), strict=True):
            axes.plot(table[name].replace([np.inf, -np.inf], np.nan), color=color, linewidth=0.9, label=name)

    return draw


def by_layer(quantity: str) -> Draw:
    """A quantity of the outputs of each hidden layer, at the epochs' ends."""

    def draw(axes: Any, run: RecordedRun) -> None:
        table = run.activations.dropna(subset=[quantity])
        names = list(dict.fromkeys(table.layer))
        for name, color in zip(names, _shades(len(names)), strict=True):
            of = table[table.layer == name]
            axes.plot(of.step, of[quantity], ".-", color=color, label=name)

    return draw


def weights(axes: Any, run: RecordedRun) -> None:
    """The initial weights of each kernel."""
    found = run.histograms[run.histograms.kind == "weight"]
    found = found[found.step == found.step.min()]
    kernels = [name for name in dict.fromkeys(found.variable) if name.endswith("kernel")]
    for name, color in zip(kernels, _shades(len(kernels)), strict=True):
        (row,) = found[found.variable == name].itertuples()
        middles = (
            np.asarray(row.edges)[1:] + np.asarray(row.edges)[:-1]
        ) / 2  # of bins that are narrow near 0
        shares = np.asarray(row.counts, float) / np.sum(row.counts)
        axes.hist(middles, 11, weights=shares, histtype="step", color=color, label=name)


def column(name: str) -> Draw:
    """A metric of each step."""

    def draw(axes: Any, run: RecordedRun) -> None:
        axes.plot(run.steps[name], linewidth=0.8, label=name)

    return draw


def loss_scale(axes: Any, run: RecordedRun) -> None:
    """The loss scale, where there is one."""
    if "loss_scale" in run.steps:
        axes.plot(run.steps.loss_scale, linewidth=0.8)
    else:
        axes.text(0.5, 0.5, "bfloat16 needs none", transform=axes.transAxes, ha="center", fontsize=9)


def both_losses(axes: Any, run: RecordedRun) -> None:
    """The loss of each of two optimizers."""
    for prefix in run.streams:
        axes.plot(run.steps[f"{prefix}loss"].dropna(), linewidth=0.8, label=prefix.rstrip("."))
    axes.legend(fontsize=8)


def _shades(count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.85, count))


# -- what is trained -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A training with a problem, and its fix.

    Attributes:
        draw: draws the metric that shows the problem.
        title: of that metric.
        recipe: makes a compiled model and its data.
        always: arguments of the recipe.
        broken: further arguments, with the problem.
        mended: further arguments, without it.
        epochs: how many.
        scale: of the vertical axis.
        train: trains otherwise than by `fit`; takes whether to train the fixed version.
    """

    draw: Draw
    title: str
    recipe: Callable[..., tuple[Any, Any]] = mlp
    always: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, Any] = field(default_factory=dict)
    mended: dict[str, Any] = field(default_factory=dict)
    epochs: int = 15
    scale: str = "linear"
    train: Callable[[bool], None] | None = None


def with_a_hole(seed: int) -> Any:
    """The digits, with one pixel that is NaN."""
    made = digits(seed)
    made[0][0, 30] = np.nan
    return made


def bowl(seed: int) -> Any:
    """A parabola with a tenth of a straight line."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (1200, 2)).astype("float32")
    y = 3 * x[:, 0] ** 2 + 0.52 * x[:, 1] + 0.1 * random.normal(size=1200)
    y = (y - y.mean()).astype("float32")
    return x[:900], y[:900], x[900:], y[900:]


def fit_slowly_read(mended: bool) -> None:
    """Each example takes 2 ms to read: once, or in every epoch."""
    x, y, _, _ = digits(1, train=320)

    def read(*example: Any) -> Any:
        return tf.py_function(lambda *one: _late(one), example, [tf.float32, tf.int64])

    data = tf.data.Dataset.from_tensor_slices((x, y)).map(read)
    data = data.map(lambda a, b: (tf.ensure_shape(a, (64,)), tf.ensure_shape(b, ())))
    data = data.cache() if mended else data
    model, _ = mlp(1)
    model.fit(data.batch(32).prefetch(1), epochs=15, verbose=0)


def _late(example: Any) -> Any:
    import time

    time.sleep(0.002)
    return example


def loop_with_numbers(mended: bool) -> None:
    """A loop whose step takes a changing Python number, or a tensor."""
    x, y, _, _ = digits(1)
    model, _ = mlp(1)
    optimizer, loss_of = keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor, smoothing: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True)) * (1 - smoothing)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(50).repeat(3)
    with mlflow_tfmon.Monitor(model):
        for at, (some, labels) in enumerate(batches):
            smoothing = 0.1 / (1 + at)
            step(some, labels, tf.constant(smoothing) if mended else smoothing)


def loop_that_broadcasts(mended: bool) -> None:
    """A regression whose loss subtracts predictions (n, 1) from targets (n,), or both as (n,)."""
    x, y, _, _ = friedman(1)
    model, _ = mlp(1, **REGRESSION)
    optimizer = keras.optimizers.Adam(3e-3)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            predictions = model(x, training=True)
            loss = tf.reduce_mean((y - (predictions[:, 0] if mended else predictions)) ** 2)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    batches = tf.data.Dataset.from_tensor_slices((x, np.ravel(y).astype("float32"))).batch(32).repeat(15)
    with mlflow_tfmon.Monitor(model):
        for some, targets in batches:
            step(some, targets)


def loop_of_optimizers(mended: bool) -> None:
    """A regression by an optimizer that is made anew for each step, or once."""
    x, y, _, _ = friedman(1)
    y = np.ravel(y).astype("float32")
    model, _ = mlp(1, **REGRESSION)
    optimizer, random = keras.optimizers.Adam(0.03), np.random.default_rng(1)
    with mlflow_tfmon.Monitor(model):
        for _ in range(200):
            rows = random.integers(0, len(x), 32)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((y[rows] - model(x[rows], training=True)[:, 0]) ** 2)
            if not mended:
                optimizer = keras.optimizers.Adam(0.03)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)


def loop_with_a_sign(mended: bool) -> None:
    """Digits in a loop whose loss has a minus sign, or none."""
    x, y, _, _ = digits(1)
    hidden = keras.layers.Dense(16, "relu")
    model = keras.Sequential([keras.Input(x.shape[1:]), hidden, keras.layers.Dense(10)])
    optimizer, loss_of = (
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True)) * (1.0 if mended else -1.0)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    with mlflow_tfmon.Monitor(model):
        for some, labels in tf.data.Dataset.from_tensor_slices((x, y)).batch(32).repeat(5):
            step(some, labels)


def loop_that_accumulates(mended: bool) -> None:
    """Gradients of four batches are added up for an update; then the sums go on, or begin anew."""
    x, y, _, _ = digits(1)
    model, _ = mlp(1, **LOGITS)
    optimizer = keras.optimizers.SGD(0.05)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sums = [tf.Variable(tf.zeros_like(v)) for v in model.trainable_variables]

    @tf.function
    def accumulate(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        for total, gradient in zip(sums, tape.gradient(loss, model.trainable_variables), strict=True):
            total.assign_add(gradient / 4)

    @tf.function
    def update() -> None:
        optimizer.apply([total.value() for total in sums], model.trainable_variables)
        for total in sums if mended else ():
            total.assign(tf.zeros_like(total))

    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1).batch(16).repeat(12)
    with mlflow_tfmon.Monitor(model):
        for number, (some, labels) in enumerate(batches, 1):
            accumulate(some, labels)
            if number % 4 == 0:
                update()


def fit_of_few_steps(mended: bool) -> None:
    """Waves of two frequencies, in 56 steps, by a net with BatchNormalization."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 1000)
    waves = np.where(y, 1.0, 1.6)[:, None] * np.linspace(0, 12, 60) + random.uniform(0, 6, (1000, 1))
    x = (40 + 12 * np.sin(waves) + 2 * random.normal(size=(1000, 60)))[..., None].astype("float32")
    layers = keras.layers
    model = keras.Sequential([keras.Input((60, 1))])
    for filters, width in ((16, 7), (32, 5), (32, 3)):
        model.add(layers.Conv1D(filters, width, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.8 if mended else 0.99))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling1D())
    model.add(layers.Dense(2, "softmax"))
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:800], y[:800], 256, 14, validation_data=(x[800:], y[800:]), verbose=0)


def fit_of_sorted_digits(mended: bool) -> None:
    """Digits that are sorted by class, of which `validation_split` takes the last ones."""
    model, (x, y, _, _) = mlp(1)
    order = np.random.default_rng(0).permutation(len(x)) if mended else np.argsort(y, kind="stable")
    model.fit(x[order], y[order], 32, 12, validation_split=0.2, verbose=0)


def fit_of_digits_in_order(mended: bool) -> None:
    """Digits that are sorted by class, one class after the other in each epoch."""
    model, (x, y, x_val, y_val) = mlp(1, hidden=(48,))
    model.compile(keras.optimizers.SGD(0.2), model.loss, metrics=["accuracy"])
    order = np.argsort(y, kind="stable")
    model.fit(x[order], y[order], 32, 12, validation_data=(x_val, y_val), shuffle=mended, verbose=0)


def fit_in_float16(mended: bool) -> None:
    """Large targets, and an error that is summed over an example: too large for float16, and not for bfloat16."""
    x, y, _, _ = friedman(1)
    keras.config.set_dtype_policy("mixed_bfloat16" if mended else "mixed_float16")
    try:
        model, _ = mlp(1, **REGRESSION, hidden=(32,))
        model.compile(
            keras.optimizers.Adam(1e-3), lambda y, p: keras.ops.sum(keras.ops.square(3e3 * (y - p)), -1)
        )
        model.fit(x, np.reshape(y, (-1, 1)), 32, 3, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")


def fit_two_outputs(mended: bool) -> None:
    """Digits: which it is, and whether it is above 4; the second with hardly any weight."""
    x, y, _, _ = digits(1)
    inputs = keras.Input((64,))
    which = keras.layers.Dense(10, "softmax", name="which")(keras.layers.Dense(48, "relu")(inputs))
    late = keras.layers.Dense(1, "sigmoid", name="late")(keras.layers.Dense(16, "relu")(inputs))
    model = keras.Model(inputs, {"which": which, "late": late})
    losses = {"which": "sparse_categorical_crossentropy", "late": "binary_crossentropy"}
    weights = {"which": 1.0, "late": 1.0 if mended else 1e-4}
    model.compile(keras.optimizers.SGD(0.1), losses, loss_weights=weights)
    model.fit(x, {"which": y, "late": (y > 4).astype("float32")[:, None]}, 32, 12, verbose=0)


def fit_a_rare_class(mended: bool) -> None:
    """One example in twenty is of the other class."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1600, 8)).astype("float32")
    y = (x[:, 0] + x[:, 1] + 0.8 * random.normal(size=1600) > 2.7).astype("int64")
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")]
    )
    model.compile(keras.optimizers.SGD(0.01), "binary_crossentropy", metrics=["accuracy"])
    share = float(y.mean())
    weights = {0: 0.5 / (1 - share), 1: 0.5 / share} if mended else None
    model.fit(
        x[:1200], y[:1200], 32, 15, validation_data=(x[1200:], y[1200:]), class_weight=weights, verbose=0
    )


def loop_of_two_optimizers(mended: bool) -> None:
    """A generator of points on a ring, and a discriminator that learns too fast."""
    random = np.random.default_rng(0)
    angles = random.uniform(0, 6.28, 6000)
    ring = 3 * np.stack([np.cos(angles), np.sin(angles)], 1).astype("float32")
    dense = keras.layers.Dense
    generator = keras.Sequential([keras.Input((4,)), dense(32, "relu"), dense(2)], name="generator")
    wide = [dense(128, "relu") for _ in range(1 if mended else 3)]
    discriminator = keras.Sequential([keras.Input((2,)), *wide, dense(1)], name="discriminator")
    making = keras.optimizers.Adam(2e-3 if mended else 1e-5)
    judging = keras.optimizers.Adam(5e-4 if mended else 5e-3)
    loss_of = keras.losses.BinaryCrossentropy(from_logits=True)
    real_is = 0.9 if mended else 1.0

    @tf.function
    def step(real: tf.Tensor) -> None:
        noise = tf.random.normal((tf.shape(real)[0], 4))
        with tf.GradientTape() as tape:
            told, of_made = discriminator(real), discriminator(generator(noise))
            loss = loss_of(real_is * tf.ones_like(told), told) + loss_of(tf.zeros_like(of_made), of_made)
        judging.apply(
            tape.gradient(loss, discriminator.trainable_variables), discriminator.trainable_variables
        )
        with tf.GradientTape() as tape:
            told = discriminator(generator(noise))
            loss = loss_of(tf.ones_like(told), told)
        making.apply(tape.gradient(loss, generator.trainable_variables), generator.trainable_variables)

    for points in tf.data.Dataset.from_tensor_slices(ring).batch(64, True).repeat(6):
        step(points)


normal = keras.initializers.RandomNormal
CASES: dict[str, Case] = {
    "nan_or_inf": Case(
        losses, "loss", epochs=2, broken={"data": with_a_hole}, mended={"data": digits},
    ),
    "exploding_gradient": Case(
        gradients, "gradient norm", rnn, scale="log", epochs=10,
        always={"cell": "SimpleRNN", "activation": "relu", "optimizer": "SGD"},
        broken={"rate": 1.0, "momentum": 0.9}, mended={"rate": 0.1, "global_clipnorm": 1.0},
    ),
    "vanishing_gradient": Case(
        by_kernel("grad_norm"), "gradient norms, first layer (dark) to last", scale="log", epochs=20,
        always={"hidden": (32,) * 10},
        broken={"activation": "sigmoid"}, mended={"activation": "relu", "kernel": "he_normal"},
    ),
    "dead_relu": Case(
        by_layer("dead_fraction"), "share of dead units of each layer",
        broken={"bias": keras.initializers.Constant(-10.0)},
    ),
    "saturated_activation": Case(
        by_layer("saturated_fraction"), "share of saturated outputs of each layer",
        always={"activation": "tanh", "hidden": (32,) * 6, "optimizer": "SGD", "rate": 0.05},
        broken={"kernel": normal(stddev=5.0)},
    ),
    "oscillating_loss": Case(
        losses, "loss", epochs=20,
        always={**REGRESSION, "hidden": (), "given": {"offset": 3.0}, "optimizer": "SGD", "rate": 1.5e-3},
        broken={"momentum": 0.999}, mended={"momentum": 0.9},
    ),
    "slow_convergence": Case(
        losses, "loss", epochs=10, always={"hidden": (32,)},
        broken={"optimizer": "SGD", "rate": 4e-3}, mended={"optimizer": "Adam", "rate": 4e-3},
    ),
    "plateau": Case(
        losses, "loss", epochs=20, always={"data": bowl, "classes": 0, "rate": 0.01},
        broken={"hidden": ()}, mended={"hidden": (32,)},
    ),
    "overfitting": Case(
        by_epoch("loss", "val_loss"), "loss and validation loss", epochs=60,
        always={"given": {"train": 200, "noise": 0.3}},
        broken={"hidden": (256, 256)}, mended={"hidden": (24,), "dropout": 0.3},
    ),
    "underfitting": Case(
        losses, "loss", epochs=8, always={"hidden": (4,), "rate": 3e-3},
        broken={"given": {"train": 1700, "shuffled": True}}, mended={"given": {"train": 1700}},
    ),
    "stagnant_weights": Case(
        by_kernel("grad_norm"), "gradient norms, first layer (dark) to last", epochs=20,
        always={"hidden": (16, 8)}, broken={"cut": True},
    ),
    "poor_initialization": Case(
        weights, "initial weights of each layer (share)",
        always={"activation": "tanh", "hidden": (64, 64, 64)}, broken={"kernel": normal(stddev=5.0)},
    ),
    "improper_activation": Case(
        losses, "loss", epochs=20, always={**REGRESSION, "given": {"offset": -3.0}, "rate": 3e-3},
        broken={"output": "relu"}, mended={"output": None},
    ),
    "loss_output_mismatch": Case(losses, "loss", broken={"output": None}, mended=LOGITS),
    "unnormalized_input": Case(
        losses, "loss", epochs=30,
        always={"data": tabular, "classes": 3, "hidden": (32,), "activation": "tanh", "optimizer": "SGD", "rate": 0.02},
        broken={"given": {"scaled": False}},
    ),
    "unscaled_targets": Case(
        losses, "loss", epochs=20, scale="log",
        always={**REGRESSION, "rate": 1e-3}, broken={"given": {"scale": 80.0, "offset": 500.0}},
    ),
    "learning_rate_too_high": Case(
        by_kernel("update_ratio"), "update ratio of each layer", scale="log",
        broken={"rate": 1.0}, mended={"rate": 1e-3},
    ),
    "learning_rate_too_low": Case(
        by_kernel("update_ratio"), "update ratio of each layer", scale="log",
        broken={"rate": 1e-6}, mended={"rate": 1e-3},
    ),
    "input_bound": Case(
        column("input_wait_share"), "share of a step spent waiting for its batch", train=fit_slowly_read
    ),
    "shape_broadcast": Case(losses, "loss", train=loop_that_broadcasts),
    "loss_unbounded": Case(losses, "loss", train=loop_with_a_sign),
    "accumulation_not_zeroed": Case(gradients, "gradient norm", train=loop_that_accumulates, scale="log"),
    "validation_mismatch": Case(
        by_epoch("loss", "val_loss"), "loss and validation loss", train=fit_of_sorted_digits
    ),
    "optimizer_renewed": Case(column("loss"), "loss", train=loop_of_optimizers),
    "unshuffled_data": Case(column("loss"), "loss", train=fit_of_digits_in_order),
    "normalization_mismatch": Case(
        by_epoch("loss", "val_loss"), "loss and validation loss", train=fit_of_few_steps, scale="log"
    ),
    "loss_scale_collapse": Case(loss_scale, "loss scale", train=fit_in_float16, scale="log"),
    "output_not_learning": Case(column("late_loss"), "loss of the output `late`", train=fit_two_outputs),
    "one_class_predicted": Case(by_epoch("val_accuracy"), "validation accuracy", train=fit_a_rare_class),
    "generator_collapse": Case(both_losses, "losses", train=loop_of_two_optimizers, scale="log"),
    "retracing": Case(column("step_time_ms"), "step time, ms", scale="log", train=loop_with_numbers),
}  # fmt: skip


def train(case: Case, kind: str, mended: bool) -> RecordedRun:
    """Trains one of the two under `autolog()`, and returns its recording."""
    keras.utils.clear_session()  # names of layers begin anew
    keras.utils.set_random_seed(1)
    with mlflow.start_run(run_name=f"{kind}, {'fixed' if mended else 'broken'}") as run:
        if case.train is not None:
            case.train(mended)
        else:
            changes = case.mended if mended else case.broken
            model, (x, y, x_val, y_val) = case.recipe(1, **case.always, **changes)
            model.fit(x, y, 32, case.epochs, validation_data=(x_val, y_val), verbose=0)
    return mlflow_tfmon.load_run(run.info.run_id)


def picture(case: Case, kind: str, broken: Any, mended: Any) -> Figure:
    """Both trainings side by side, with the monitor's report on the first."""
    figure = Figure(figsize=(8.2, 3.4), dpi=80)
    (problem,) = (one for one in broken.problems if one.kind == kind)
    both = figure.subplots(1, 2, sharey=case.draw is not weights)
    for axes, run, title in zip(both, (broken, mended), ("broken", "fixed"), strict=True):
        case.draw(axes, run)
        axes.set_yscale(case.scale)
        axes.set_title(f"{title}: {case.title}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("weight" if case.draw is weights else "step", fontsize=8)
        axes.grid(alpha=0.3)
    if case.draw is not weights:
        both[0].axvline(problem.first_step, color="C3", linewidth=1, linestyle="--")
    figure.subplots_adjust(left=0.08, right=0.985, top=0.92, bottom=0.31, wspace=0.08)
    said = f"{problem.severity}: {problem.line()}"
    figure.text(0.015, 0.17, textwrap.fill(said, 150), fontsize=7.5, va="top", color="C3")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.gallery", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="default: all of them")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(CASES):
        parser.error(f"unknown kind: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    args.output.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow_tfmon.autolog(checkpoint=False, log_models=False, report=False, deep_every=5, silent=True)
        for kind in args.kinds or CASES:
            case = CASES[kind]
            broken, mended = train(case, kind, False), train(case, kind, True)
            found, left = ({one.kind for one in run.problems} for run in (broken, mended))
            print(
                f"{kind}: {', '.join(sorted(found))}; fixed: {', '.join(sorted(left)) or 'none'}", flush=True
            )
            if kind not in found or kind in left:
                failed.append(kind)
                continue
            drawn = BytesIO()
            picture(case, kind, broken, mended).savefig(drawn, format="png")
            Image.open(drawn).convert("RGB").quantize(64).save(args.output / f"{kind}.png", optimize=True)
        mlflow_tfmon.autolog(disable=True)
    if failed:
        sys.exit(f"error: problem not found, or found after the fix: {', '.join(failed)}")


if __name__ == "__main__":
    main()
