"""Custom training loops, half of them with a mistake, as people write them: to be evaluated once, and not tuned to.

They were written before any of them was run, by someone who knows what detectors there are. Each is trained under
`autolog()` alone or with a `Monitor`, and judged by a score of its own: an accuracy, or the share of the variance
explained, on data that the loop has not seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from benchmarks.sets.recipes import digits, friedman, tokens, waves

layers, losses, optimizers = keras.layers, keras.losses, keras.optimizers
Loss = Callable[[Any, Any], Any]
SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclass(frozen=True)
class Loop:
    """A training in a loop of its own, with the `fit` that the benchmark calls.

    Attributes:
        name: of the configuration.
        run: trains, given a seed, and returns a score.
        kinds: the kinds of problem that would be right to name; none for a healthy one.
        good: the least score of a training that went well.
    """

    name: str
    run: Callable[[int], float]
    kinds: tuple[str, ...] = ()
    good: float = 0.8

    def make(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """What `benchmarks.detection` trains: an object with `fit`."""

        def fit(verbose: int = 0) -> Any:
            return SimpleNamespace(history={"score": [self.run(seed)]})

        return SimpleNamespace(fit=fit), {}


# -- parts of loops ---------------------------------------------------------------------------------------------------
def feed(x: Any, y: Any, epochs: int, batch: int = 32) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Batches of all epochs."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1)
    yield from data.batch(batch, drop_remainder=True).repeat(epochs)


def stepping(
    model: Any,
    optimizer: Any,
    loss_of: Loss,
    *,
    clip: float = 0.0,
    variables: Any = None,
    eager: bool = False,
) -> Callable[[Any, Any], Any]:
    """A training step, as in TensorFlow's guides."""

    def step(x: Any, y: Any) -> Any:
        trained = model.trainable_variables if variables is None else variables
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, trained)
        if clip:
            gradients, _ = tf.clip_by_global_norm(gradients, clip)
        optimizer.apply_gradients(zip(gradients, trained, strict=True))
        return loss

    return step if eager else tf.function(step)


def accuracy(model: Any, x: Any, y: Any) -> float:
    given = np.asarray(model(x, training=False))
    named = given.argmax(-1) if given.shape[-1] > 1 else (given[:, 0] > 0).astype(int)
    return float((named == np.asarray(y)).mean())


def explained(model: Any, x: Any, y: Any) -> float:
    given = np.asarray(model(x, training=False)).reshape(len(y), -1).astype(float)
    y = np.asarray(y, float).reshape(len(y), -1)
    error = ((given - y) ** 2).mean() / y.var(axis=0).mean()
    return float(1 - error) if np.isfinite(error) else -np.inf


def dense(
    inputs: int, *units: int, out: int, activation: str = "relu", end: str | None = None, **inner: Any
) -> Any:
    hidden = [layers.Dense(width, activation, **inner) for width in units]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(out, end)])


def classify(
    seed: int,
    optimizer: Callable[[], Any] = lambda: optimizers.Adam(2e-3),
    loss_of: Loss = SPARSE,
    model: Callable[[], Any] = lambda: dense(64, 64, 32, out=10),
    *,
    epochs: int = 12,
    scale: float = 1.0,
    change: Callable[[Any, Any], tuple[Any, Any]] = lambda x, y: (x, y),
    monitor: bool = False,
    **how: Any,
) -> float:
    """Digits in a loop: accuracy on unseen ones."""
    x, y, x_val, y_val = digits(seed)
    given, net = change(x * scale, y), model()
    step = stepping(net, optimizer(), loss_of, **how)
    with mlflow_tfmon.Monitor(net) if monitor else contextlib.nullcontext() as watching:
        for epoch in range(epochs):
            for a, b in feed(*given, 1):
                step(a, b)
            if watching is not None:
                known = SPARSE(y_val, net(x_val * scale))
                watching.log_epoch(
                    epoch, {"val_loss": float(known), "val_accuracy": accuracy(net, x_val * scale, y_val)}
                )
    return accuracy(net, x_val * scale, y_val)


def regress(
    seed: int,
    optimizer: Callable[[], Any] = lambda: optimizers.Adam(3e-3),
    loss_of: Loss = lambda y, p: tf.reduce_mean((y - p[:, 0]) ** 2),
    *,
    epochs: int = 25,
    offset: float = 0.0,
    scale: float = 1.0,
    **how: Any,
) -> float:
    """Friedman's regression in a loop: the variance explained."""
    x, y, x_val, y_val = friedman(seed)
    net = dense(8, 48, 48, out=1)
    step = stepping(net, optimizer(), loss_of, **how)
    for a, b in feed(x, (scale * y + offset).astype("float32"), epochs):
        step(a, b)
    return explained(net, x_val, scale * y_val + offset)


def accumulate(seed: int, zeroed: bool) -> float:
    x, y, x_val, y_val = digits(seed)
    net, optimizer = dense(64, 48, out=10), optimizers.SGD(0.1)
    sums = [tf.Variable(tf.zeros_like(v), trainable=False) for v in net.trainable_variables]

    @tf.function
    def add(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            loss = SPARSE(b, net(a, training=True))
        for total, gradient in zip(sums, tape.gradient(loss, net.trainable_variables), strict=True):
            total.assign_add(gradient / 5)

    @tf.function
    def update() -> None:
        optimizer.apply_gradients(
            zip([one.read_value() for one in sums], net.trainable_variables, strict=True)
        )
        if zeroed:
            for total in sums:
                total.assign(tf.zeros_like(total))

    for number, (a, b) in enumerate(feed(x, y, 20, 16)):
        add(a, b)
        if number % 5 == 4:
            update()
    return accuracy(net, x_val, y_val)


def recur(seed: int, cell: Callable[[], Any], rate: float, optimizer: Any = optimizers.Adam) -> float:
    x, y, x_val, y_val = waves(seed)
    net = keras.Sequential([keras.Input(x.shape[1:]), cell(), layers.Dense(3)])
    step = stepping(net, optimizer(rate), SPARSE)
    for a, b in feed(x, y, 12):
        step(a, b)
    return accuracy(net, x_val, y_val)


def attend(seed: int, rate: float) -> float:
    x, y, x_val, y_val = tokens(seed)
    inputs = keras.Input(x.shape[1:], dtype="int32")
    h = layers.Embedding(12, 16)(inputs)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 8)(h, h))
    h = layers.Dense(32, "gelu")(layers.GlobalAveragePooling1D()(h))
    net = keras.Model(inputs, layers.Dense(2)(h))
    step = stepping(net, optimizers.AdamW(rate), SPARSE, clip=1.0)
    for a, b in feed(x, y, 15):
        step(a, b)
    return accuracy(net, x_val, y_val)


def autoencode(seed: int, loss_of: Loss, rate: float = 2e-3) -> float:
    x, _, x_val, _ = digits(seed)
    net = dense(64, 48, 16, 48, out=64)
    step = stepping(net, optimizers.Adam(rate), loss_of)
    for a, b in feed(x, x, 25):
        step(a, b)
    return explained(net, x_val, x_val)


def vary(seed: int) -> float:
    """A variational autoencoder: the variance of unseen digits explained by their means."""
    x, _, x_val, _ = digits(seed)
    encoder, decoder = dense(64, 48, out=16), dense(8, 48, out=64)
    weights, optimizer = encoder.trainable_variables + decoder.trainable_variables, optimizers.Adam(2e-3)

    @tf.function
    def step(a: Any) -> None:
        with tf.GradientTape() as tape:
            mean, log_var = tf.split(encoder(a, training=True), 2, axis=1)
            z = mean + tf.exp(log_var / 2) * tf.random.normal(tf.shape(mean))
            error = tf.reduce_sum((decoder(z, training=True) - a) ** 2, 1) / 0.1
            divergence = -0.5 * tf.reduce_sum(1 + log_var - mean**2 - tf.exp(log_var), 1)
            loss = tf.reduce_mean(error + divergence)
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for a, _ in feed(x, x, 30):
        step(a)
    return explained(lambda v, training: decoder(encoder(v)[:, :8]), x_val, x_val)


def contrast(seed: int) -> float:
    """Pairs of noisy copies: how often the nearest of a batch is the right one."""
    x, _, x_val, _ = digits(seed)
    net, optimizer = dense(64, 64, out=16), optimizers.Adam(2e-3)

    def similar(a: Any) -> Any:
        both = [net(a + 0.15 * tf.random.normal(tf.shape(a))) for _ in range(2)]
        one, other = (tf.math.l2_normalize(each, 1) for each in both)
        return tf.matmul(one, other, transpose_b=True) / 0.2

    @tf.function
    def step(a: Any) -> None:
        with tf.GradientTape() as tape:
            loss = SPARSE(tf.range(tf.shape(a)[0]), similar(a))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
        )

    for a, _ in feed(x, x, 15):
        step(a)
    found = similar(tf.constant(x_val[:64], tf.float32)).numpy().argmax(1)
    return float((found == np.arange(64)).mean())


def two_rates(seed: int) -> float:
    """One optimizer for the body of a network, and another for its head."""
    x, y, x_val, y_val = digits(seed)
    body, head = dense(64, 64, out=32, end="relu"), dense(32, out=10)
    slow, fast = optimizers.Adam(5e-4), optimizers.SGD(0.1, momentum=0.9)

    @tf.function
    def step(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            loss = SPARSE(b, head(body(a, training=True), training=True))
        of_body, of_head = tape.gradient(loss, [body.trainable_variables, head.trainable_variables])
        slow.apply_gradients(zip(of_body, body.trainable_variables, strict=True))
        fast.apply_gradients(zip(of_head, head.trainable_variables, strict=True))

    for a, b in feed(x, y, 15):
        step(a, b)
    return accuracy(lambda v, training: head(body(v)), x_val, y_val)


def oppose(seed: int, makes: float, judges: float, width: int) -> float:
    """A GAN on points of a ring: the share of its eight parts that the generator's points lie in and near."""
    random = np.random.default_rng(seed)
    angle = random.uniform(0, 2 * np.pi, 4000)
    ring = (np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * random.normal(size=(4000, 2))).astype(
        "float32"
    )
    generator, discriminator = dense(4, 48, 48, out=2), dense(2, width, width, out=1, activation="leaky_relu")
    making, judging = optimizers.Adam(makes, beta_1=0.5), optimizers.Adam(judges, beta_1=0.5)
    loss_of = losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step(real: Any) -> None:
        noise = tf.random.normal((tf.shape(real)[0], 4))
        with tf.GradientTape() as tape:
            told, of_made = discriminator(real), discriminator(generator(noise))
            loss = loss_of(tf.ones_like(told), told) + loss_of(tf.zeros_like(of_made), of_made)
        own = discriminator.trainable_variables
        judging.apply_gradients(zip(tape.gradient(loss, own), own, strict=True))
        with tf.GradientTape() as tape:
            told = discriminator(generator(noise))
            loss = loss_of(tf.ones_like(told), told)
        own = generator.trainable_variables
        making.apply_gradients(zip(tape.gradient(loss, own), own, strict=True))

    for real, _ in feed(ring, ring, 25, 64):
        step(real)
    made = generator(random.normal(size=(1000, 4)).astype("float32")).numpy()
    near = made[np.abs(np.linalg.norm(made, axis=1) - 1) < 0.3]
    parts = np.bincount(
        ((np.arctan2(near[:, 1], near[:, 0]) + np.pi) / (2 * np.pi) * 8).astype(int) % 8, minlength=8
    )
    return float((parts > 20).mean())


def bandit(seed: int, sign: float = 1.0) -> float:
    """REINFORCE on a bandit whose best arm depends on what is seen: how often it is pulled."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(6000, 4)).astype("float32")
    best = x.argmax(1)
    net, optimizer = dense(4, 32, out=4), optimizers.Adam(5e-3)

    @tf.function
    def step(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            logits = net(a, training=True)
            pulled = tf.random.categorical(logits, 1)[:, 0]
            reward = tf.cast(pulled == b, tf.float32) - 0.25
            chance = tf.nn.sparse_softmax_cross_entropy_with_logits(pulled, logits)
            loss = sign * tf.reduce_mean(chance * reward)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
        )

    for a, b in feed(x, best, 5, 32):
        step(a, b)
    return accuracy(net, x[:1000], best[:1000])


def walk(seed: int) -> float:
    """Temporal differences along a corridor of ten rooms, the last of which has a reward: the variance explained."""
    random = np.random.default_rng(seed)
    net, optimizer, discount = dense(10, 32, out=1), optimizers.Adam(3e-3), 0.9
    target = keras.models.clone_model(net)

    @tf.function
    def step(here: Any, there: Any) -> None:
        end = tf.cast(there == 9, tf.float32)
        worth = end + discount * (1 - end) * target(tf.one_hot(there, 10))[:, 0]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((worth - net(tf.one_hot(here, 10))[:, 0]) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
        )

    for number in range(1500):
        rooms = random.integers(0, 9, 32)
        step(tf.constant(rooms), tf.constant(rooms + 1))
        if number % 50 == 0:
            target.set_weights(net.get_weights())
    return explained(net, np.eye(10, dtype="float32")[:9], discount ** np.arange(8, -1, -1.0))


def in_half(seed: int, factor: float) -> float:
    """Digits in float16 with a scaled loss."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        x, y, x_val, y_val = digits(seed)
        net = keras.Sequential([keras.Input((64,)), layers.Dense(64, "relu"), layers.Dense(10)])
        optimizer = keras.optimizers.LossScaleOptimizer(optimizers.Adam(2e-3))

        @tf.function
        def step(a: Any, b: Any) -> None:
            with tf.GradientTape() as tape:
                logits = net(a, training=True) * tf.cast(factor, tf.float16)
                loss = SPARSE(b, tf.cast(logits, tf.float32) if factor == 1.0 else logits)
                scaled = optimizer.scale_loss(loss)
            own = net.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(scaled, own), own, strict=True))

        for a, b in feed(x, y, 12):
            step(a, b)
        return accuracy(net, x_val, y_val)
    finally:
        keras.config.set_dtype_policy("float32")


def of_others(x: Any, y: Any) -> tuple[Any, Any]:
    """The inputs are shuffled, and the labels are not."""
    return np.random.default_rng(0).permutation(x), y


def few_and_wrong(x: Any, y: Any) -> tuple[Any, Any]:
    """Eighty digits, half of them with another's label."""
    y = y[:80].copy()
    y[::2] = np.random.default_rng(0).permutation(y[::2])
    return x[:80], y


def of_probabilities(y: Any, p: Any) -> Any:
    """Cross-entropy by hand."""
    return -tf.reduce_mean(tf.reduce_sum(tf.one_hot(y, 10) * tf.math.log(p), 1))


def over_the_batch(y: Any, logits: Any) -> Any:
    """Cross-entropy of a softmax over the wrong axis."""
    return -tf.reduce_mean(tf.reduce_sum(tf.one_hot(y, 10) * tf.math.log(tf.nn.softmax(logits, 0) + 1e-9), 1))


def cut(inputs: Any) -> Any:
    return layers.Lambda(tf.stop_gradient)(inputs)


def with_a_cut() -> Any:
    inputs = keras.Input((64,))
    h = cut(layers.Dense(2, "relu")(layers.Dense(32, "relu")(inputs)))
    return keras.Model(inputs, layers.Dense(10)(h))


_HIGH, _LOW, _SLOW, _UNDER = (
    "learning_rate_too_high",
    "learning_rate_too_low",
    "slow_convergence",
    "underfitting",
)
_EXPLODES, _NAN, _START, _DEAD = "exploding_gradient", "nan_or_inf", "poor_initialization", "dead_relu"
_MISMATCH, _OUTPUT, _RAW = "loss_output_mismatch", "improper_activation", "unnormalized_input"
_large = keras.initializers.RandomNormal(stddev=1.2, seed=3)

# fmt: off
CONFIGURATIONS = (
    # -- made to go well
    Loop("digits", classify, good=0.85),
    Loop("digits, eagerly", lambda s: classify(
        s, lambda: optimizers.SGD(0.1, momentum=0.9), eager=True, epochs=5), good=0.8),
    Loop("digits with a monitor", lambda s: classify(s, monitor=True), good=0.85),
    Loop("regression by mean distance, clipped", lambda s: regress(
        s, loss_of=lambda y, p: tf.reduce_mean(tf.abs(y - p[:, 0])), clip=1.0), good=0.6),
    Loop("accumulated over five batches", lambda s: accumulate(s, True), good=0.8),
    Loop("gru", lambda s: recur(s, lambda: layers.GRU(24), 5e-3), good=0.8),
    Loop("attention", lambda s: attend(s, 3e-3), good=0.8),
    Loop("autoencoder", lambda s: autoencode(s, lambda y, p: tf.reduce_mean((y - p) ** 2)), good=0.4),
    Loop("variational autoencoder", vary, good=0.3),
    Loop("contrast", contrast, good=0.7),
    Loop("body and head", two_rates, good=0.85),
    Loop("ring", lambda s: oppose(s, 1e-3, 1e-3, 48), good=0.7),
    Loop("bandit", bandit, good=0.8),
    Loop("corridor", walk, good=0.8),
    Loop("digits in float16", lambda s: in_half(s, 1.0), good=0.85),
    # -- made to fail
    Loop("digits, rate too high", lambda s: classify(s, lambda: optimizers.Adam(1.0)), (_HIGH, _DEAD)),
    Loop("digits, rate too low", lambda s: classify(s, lambda: optimizers.SGD(1e-5), monitor=True),
        (_LOW, _SLOW, _UNDER)),
    Loop("labels of others", lambda s: classify(s, change=of_others, monitor=True), (_UNDER, "overfitting", _SLOW)),
    Loop("pixels as they come", lambda s: classify(s, lambda: optimizers.SGD(0.1), scale=1600.0),
        (_RAW, _HIGH, _EXPLODES, _NAN, _DEAD)),
    Loop("log of nothing", lambda s: classify(
        s, loss_of=of_probabilities, model=lambda: dense(64, 64, out=10, end="relu")),
        (_NAN, _OUTPUT)),
    Loop("softmax over the batch", lambda s: classify(s, loss_of=over_the_batch, monitor=True),
        (_UNDER, _MISMATCH, _OUTPUT, "plateau")),
    Loop("logits as probabilities", lambda s: classify(
        s, loss_of=losses.SparseCategoricalCrossentropy(from_logits=False)), (_MISMATCH, _OUTPUT, _NAN, _UNDER)),
    Loop("the wrong way", lambda s: classify(s, loss_of=lambda y, p: -SPARSE(y, p)),
        (_HIGH, _EXPLODES, _MISMATCH, "loss_unbounded")),
    Loop("nothing reaches the body", lambda s: classify(s, model=with_a_cut), ("stagnant_weights",)),
    Loop("eighty by heart", lambda s: classify(s, change=few_and_wrong, epochs=120, monitor=True), ("overfitting",)),
    Loop("units far below zero", lambda s: classify(s, model=lambda: dense(
        64, 64, 32, out=10, bias_initializer=keras.initializers.Constant(-8.0))), (_DEAD, "stagnant_weights")),
    Loop("every pair", lambda s: regress(s, loss_of=lambda y, p: tf.reduce_mean((y - p) ** 2)),
        ("shape_broadcast",), 0.6),
    Loop("targets in thousands", lambda s: regress(s, lambda: optimizers.SGD(1e-2), scale=500.0, offset=4000.0),
        ("unscaled_targets", _HIGH, _EXPLODES, _NAN), 0.6),
    Loop("sums that are never cleared", lambda s: accumulate(s, False), ("accumulation_not_zeroed", _HIGH)),
    Loop("rnn explodes", lambda s: recur(s, lambda: layers.SimpleRNN(
        24, "relu", recurrent_initializer=_large), 0.05, optimizers.SGD), (_EXPLODES, _NAN, _HIGH, _START)),
    Loop("a judge that is always right", lambda s: oppose(s, 1e-5, 1e-2, 128), ("generator_collapse",), 0.7),
    Loop("too large for float16", lambda s: in_half(s, 3e4), ("loss_scale_collapse", _NAN)),
)
# fmt: on
