"""Further custom loops, set aside: to be evaluated once, and not tuned to.

From what people report in forums and issue trackers, written before any of them was run, by someone who knows the
detectors, in other styles than `loops`: arrays cut by hand, loops within `tf.function`, eager steps, losses by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn import datasets
from sklearn.preprocessing import scale

import mlflow_tfmon
from benchmarks.sets.loops import Loop, accuracy, explained

K, L, opt = keras.Sequential, keras.layers, keras.optimizers
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


# -- data -------------------------------------------------------------------------------------------------------------
def split(x: Any, y: Any, seed: int) -> Arrays:
    order = np.random.default_rng(seed).permutation(len(x))
    x, y, cut = np.asarray(x, "float32")[order], np.asarray(y)[order], len(x) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def cancer(seed: int) -> Arrays:
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return split(scale(x), y, seed)


def moons(seed: int, size: int = 1500, noise: float = 0.2) -> Arrays:
    x, y = datasets.make_moons(size, noise=noise, random_state=seed)
    return split(x, y, seed)


def blobs(seed: int) -> Arrays:
    x, y = datasets.make_blobs(1800, 10, centers=5, cluster_std=4.0, center_box=(-5, 5), random_state=seed)
    return split(x, y, seed)


def curve(seed: int, noise: float = 0.1, size: int = 1500) -> Arrays:
    random = np.random.default_rng(seed + 50)
    x = random.normal(size=(size, 5))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + noise * random.normal(size=size)
    return split(x, y.astype("float32"), seed)


def first_sign(seed: int, length: int = 40) -> Arrays:
    """Sequences whose class is the sign of their first number."""
    x = np.random.default_rng(seed + 9).normal(size=(1200, length, 1)).astype("float32")
    return split(x, (x[:, 0, 0] > 0).astype(int), seed)


# -- loops ------------------------------------------------------------------------------------------------------------
def batches(
    x: Any, y: Any, epochs: int, seed: int, size: int = 50
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches cut by hand from shuffled arrays."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(x))
        for at in range(0, len(x) - size + 1, size):
            rows = order[at : at + size]
            yield x[rows], y[rows]


def mlp(
    inputs: int,
    out: int,
    hidden: tuple[int, ...] = (40, 40),
    activation: str = "relu",
    end: Any = None,
    **how: Any,
) -> Any:
    return K(
        [keras.Input((inputs,)), *(L.Dense(n, activation, **how) for n in hidden), L.Dense(out, end, **how)]
    )


def plain(
    data: Arrays, net: Any, optimizer: Any, loss_of: Callable[[Any, Any], Any], score: Callable[..., float], seed: int,
    epochs: int = 20, *, eager: bool = False, clip: float = 0.0, sign: float = 1.0, monitor: bool = False,
    size: int = 50,
    each: Callable[[int], None] = lambda step: None,
) -> float:  # fmt: skip
    """A loop over arrays."""
    x, y, x_val, y_val = data

    def step(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(b, net(a, training=True))
        gradients = tape.gradient(loss, net.trainable_variables)
        if clip:
            gradients, _ = tf.clip_by_global_norm(gradients, clip)
        optimizer.apply(gradients if sign > 0 else [-g for g in gradients], net.trainable_variables)

    train = step if eager else tf.function(step)
    per_epoch, watching = len(x) // size, mlflow_tfmon.Monitor(net) if monitor else None
    if watching is not None:
        watching.start()
    for number, (a, b) in enumerate(batches(x, y, epochs, seed, size)):
        train(tf.constant(a), tf.constant(b))
        each(number)
        if watching is not None and (number + 1) % per_epoch == 0:
            known = float(tf.reduce_mean(loss_of(tf.constant(y_val), net(x_val))))
            watching.log_epoch(number // per_epoch, {"val_loss": known})
    if watching is not None:
        watching.end()
    return score(net, x_val, y_val)


def sparse(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, p))


def entropy_of_two(y: Any, p: Any) -> Any:
    """Binary cross-entropy by hand, without a bound."""
    q, t = tf.sigmoid(p[:, 0]), tf.cast(y, tf.float32)
    return -tf.reduce_mean(t * tf.math.log(q) + (1 - t) * tf.math.log(1 - q))


def column(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p[:, 0]))


def pairs(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(p - y))


def smooth_pairs(y: Any, p: Any) -> Any:
    """Huber's loss by hand, of (n, 1) and (n,)."""
    d = tf.abs(p - y)
    return tf.reduce_mean(tf.where(d < 1.0, 0.5 * d * d, d - 0.5))


def sum_of_squares(y: Any, p: Any) -> Any:
    return tf.reduce_sum(tf.square(y - p[:, 0]))


def within_a_function(seed: int) -> float:
    """An epoch is one call: the loop over the dataset is in the graph."""
    x, y, x_val, y_val = blobs(seed)
    net, optimizer = mlp(10, 5), opt.Adam(2e-3)
    optimizer.build(net.trainable_variables)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(500, seed=seed).batch(32)

    @tf.function
    def epoch() -> None:
        for a, b in data:
            with tf.GradientTape() as tape:
                loss = sparse(b, net(a, training=True))
            optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    for _ in range(12):
        epoch()
    return accuracy(net, x_val, y_val)


def summed(seed: int, cleared: bool, rate: float = 3e-2) -> float:
    """Gradients of four batches, added up in variables."""
    x, y, x_val, y_val = blobs(seed)
    net, optimizer = mlp(10, 5), opt.SGD(rate, momentum=0.9)
    sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in net.trainable_variables]

    @tf.function
    def step(a: Any, b: Any, update: Any) -> None:
        with tf.GradientTape() as tape:
            loss = sparse(b, net(a, training=True)) / 4
        for s, g in zip(sums, tape.gradient(loss, net.trainable_variables), strict=True):
            s.assign_add(g)
        if update:
            optimizer.apply([s.value() for s in sums], net.trainable_variables)
            if cleared:
                for s in sums:
                    s.assign(tf.zeros_like(s))

    optimizer.build(net.trainable_variables)
    for number, (a, b) in enumerate(batches(x, y, 30, seed, 24)):
        step(tf.constant(a), tf.constant(b), tf.constant(number % 4 == 3))
    return accuracy(net, x_val, y_val)


def likelihood(seed: int) -> float:
    """Mean and variance of a Gaussian; a loss that becomes negative."""
    x, y, x_val, y_val = curve(seed, 0.05)

    def loss(t: Any, p: Any) -> Any:
        mean, log_var = p[:, 0], tf.clip_by_value(p[:, 1], -8.0, 4.0)
        return 0.5 * tf.reduce_mean(log_var + (t - mean) ** 2 / tf.exp(log_var))

    return plain((x, y, x_val, y_val), mlp(5, 2, (64, 64)), opt.Adam(3e-3), loss,
                 lambda net, a, b: explained(lambda v, training: net(v)[:, :1], a, b), seed, 40)  # fmt: skip


def flow(seed: int) -> float:
    """A chain of affine couplings fitted to two moons: the share of its samples that are near some data."""
    x, _, _, _ = moons(seed)
    parts, optimizer = [mlp(1, 2, (32, 32), "tanh") for _ in range(6)], opt.Adam(2e-3)
    weights = [v for part in parts for v in part.trainable_variables]

    def forward(a: Any) -> tuple[Any, Any]:
        volume = tf.zeros(tf.shape(a)[0])
        for at, part in enumerate(parts):
            kept, other = (a[:, :1], a[:, 1:]) if at % 2 else (a[:, 1:], a[:, :1])
            shift, size = tf.split(part(kept), 2, axis=1)
            size = tf.tanh(size)
            other, volume = other * tf.exp(size) + shift, volume + size[:, 0]
            a = tf.concat([kept, other] if at % 2 else [other, kept], 1)
        return a, volume

    @tf.function
    def step(a: Any) -> None:
        with tf.GradientTape() as tape:
            z, volume = forward(a)
            loss = tf.reduce_mean(0.5 * tf.reduce_sum(z**2, 1) - volume)
        optimizer.apply(tape.gradient(loss, weights), weights)

    for a, _ in batches(x, x, 40, seed):
        step(tf.constant(a))
    z, _ = forward(tf.constant(x))
    return float(1 - abs(np.std(z.numpy(), axis=0) - 1).max())


def temporal(seed: int, rate: float) -> float:
    """Q-learning on a ring of twelve places, with targets computed outside: how many of its moves are right."""
    random, places = np.random.default_rng(seed), 12
    net, optimizer = mlp(places, 2, (32,)), opt.Adam(rate)
    late, huber = keras.models.clone_model(net), keras.losses.Huber()

    @tf.function
    def step(a: Any, did: Any, worth: Any) -> None:
        with tf.GradientTape() as tape:
            of_move = tf.reduce_sum(net(a, training=True) * tf.one_hot(did, 2), 1)
            loss = huber(worth, of_move)
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    one_hot = np.eye(places, dtype="float32")
    for number in range(2500):
        here, did = random.integers(1, places, 32), random.integers(0, 2, 32)
        there = (here + 2 * did - 1) % places
        worth = (there == 0) * 10.0 + 0.9 * late(one_hot[there]).numpy().max(1) * (there != 0) - 0.1
        step(tf.constant(one_hot[here]), tf.constant(did), tf.constant(worth.astype("float32")))
        if number % 40 == 0:
            late.set_weights(net.get_weights())
    wanted = (np.arange(1, places) > places // 2).astype(int)
    told = net(one_hot[1:]).numpy().argmax(1)
    return float((told == wanted)[np.arange(1, places) != places // 2].mean())


def distil(seed: int) -> float:
    x, y, x_val, y_val = blobs(seed)
    teacher = mlp(10, 5, (128,))
    plain((x, y, x_val, y_val), teacher, opt.Adam(3e-3), sparse, accuracy, seed, 10)
    student, optimizer, kl = mlp(10, 5, (12,)), opt.Adam(4e-3), keras.losses.KLDivergence()

    @tf.function
    def step(a: Any, b: Any) -> None:
        soft = tf.nn.softmax(teacher(a) / 2.0)
        with tf.GradientTape() as tape:
            p = student(a, training=True)
            loss = 0.3 * sparse(b, p) + 0.7 * kl(soft, tf.nn.softmax(p / 2.0))
        optimizer.apply(tape.gradient(loss, student.trainable_variables), student.trainable_variables)

    for a, b in batches(x, y, 20, seed):
        step(tf.constant(a), tf.constant(b))
    return accuracy(student, x_val, y_val)


def triplets(seed: int, root: bool) -> float:
    """Distances of triplets: how often the nearest neighbour among unseen examples has the same class."""
    x, y, x_val, y_val = blobs(seed)
    net, optimizer = mlp(10, 8), opt.Adam(1e-3)
    random = np.random.default_rng(seed)

    def apart(a: Any, b: Any) -> Any:
        squares = tf.reduce_sum((a - b) ** 2, 1)
        return tf.sqrt(squares) if root else squares

    @tf.function
    def step(a: Any, same: Any, other: Any) -> None:
        with tf.GradientTape() as tape:
            a, same, other = (net(one, training=True) for one in (a, same, other))
            loss = tf.reduce_mean(tf.nn.relu(apart(a, same) - apart(a, other) + 1.0))
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    of_class = [np.flatnonzero(y == one) for one in range(5)]
    for a, b in batches(x, y, 15, seed):
        same = np.array([random.choice(of_class[one]) for one in b])
        other = np.array([random.choice(of_class[(one + random.integers(1, 5)) % 5]) for one in b])
        step(tf.constant(a), tf.constant(a if root else x[same]), tf.constant(x[other]))
    z, z_val = net(x).numpy(), net(x_val).numpy()
    near = ((z_val[:, None] - z[None]) ** 2).sum(2).argmin(1)
    return float((y[near] == y_val).mean())


def two_heads(seed: int) -> float:
    x, y, x_val, y_val = curve(seed)
    inputs = keras.Input((5,))
    h = L.Dense(48, "relu")(L.Dense(48, "relu")(inputs))
    net, optimizer = keras.Model(inputs, [L.Dense(1)(h), L.Dense(1)(h)]), opt.Adam(3e-3)
    squared, binary = keras.losses.MeanSquaredError(), keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            value, sign = net(a, training=True)
            loss = squared(b, value) + 0.3 * binary(b > 0, sign)
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    for a, b in batches(x, y, 30, seed):
        step(tf.constant(a), tf.constant(b))
    return explained(lambda v, training: net(v)[0], x_val, y_val)


def sharpness_aware(seed: int) -> float:
    x, y, x_val, y_val = blobs(seed)
    net, optimizer = mlp(10, 5), opt.SGD(0.05, momentum=0.9)
    weights = net.trainable_variables

    @tf.function
    def step(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            loss = sparse(b, net(a, training=True))
        first = tape.gradient(loss, weights)
        length = 0.05 / (tf.linalg.global_norm(first) + 1e-12)
        for v, g in zip(weights, first, strict=True):
            v.assign_add(length * g)
        with tf.GradientTape() as tape:
            loss = sparse(b, net(a, training=True))
        second = tape.gradient(loss, weights)
        for v, g in zip(weights, first, strict=True):
            v.assign_sub(length * g)
        optimizer.apply(second, weights)

    for a, b in batches(x, y, 15, seed):
        step(tf.constant(a), tf.constant(b))
    return accuracy(net, x_val, y_val)


def reconstruct(seed: int, weight: float = 0.02, end: str | None = None) -> float:
    """A variational autoencoder of the features of tumours, with a weight of the divergence."""
    x, _, x_val, _ = cancer(seed)
    encoder, decoder, optimizer = mlp(30, 16, (48,)), mlp(8, 30, (48,), end=end), opt.Adam(2e-3)
    weights = encoder.trainable_variables + decoder.trainable_variables

    @tf.function
    def step(a: Any) -> None:
        with tf.GradientTape() as tape:
            mean, log_var = tf.split(encoder(a, training=True), 2, axis=1)
            z = mean + tf.exp(0.5 * log_var) * tf.random.normal(tf.shape(mean))
            error = tf.reduce_mean(tf.square(decoder(z, training=True) - a))
            loss = error + weight * -0.5 * tf.reduce_mean(1 + log_var - mean**2 - tf.exp(log_var))
        optimizer.apply(tape.gradient(loss, weights), weights)

    for a, _ in batches(x, x, 80, seed, 32):
        step(tf.constant(a))
    return explained(lambda v, training: decoder(encoder(v)[:, :8]), x_val, x_val)


def remember(seed: int, cell: Any, rate: float, length: int = 40, optimizer: Any = opt.Adam) -> float:
    data = first_sign(seed, length)
    net = K([keras.Input((length, 1)), cell, L.Dense(2)])
    return plain(data, net, optimizer(rate), sparse, accuracy, seed, 15)


def rounded(seed: int) -> float:
    """A code of two bits, by a function without a gradient."""
    x, y, x_val, y_val = blobs(seed)
    inputs = keras.Input((10,))
    h = L.Lambda(tf.round)(L.Dense(2, "sigmoid")(L.Dense(32, "relu")(inputs)))
    return plain(
        (x, y, x_val, y_val), keras.Model(inputs, L.Dense(5)(h)), opt.Adam(3e-3), sparse, accuracy, seed
    )


def duel(seed: int, makes: float, judges: float, width: int = 64, steps: int = 1500) -> float:
    """A GAN on eight clusters: the share of them that it makes."""
    random = np.random.default_rng(seed)
    middles = 2 * np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)
    maker, judge = mlp(8, 2, (64, 64)), mlp(2, 1, (width, width), "leaky_relu")
    making, judging = opt.Adam(makes, beta_1=0.5), opt.Adam(judges, beta_1=0.5)
    binary = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step_of_judge(real: Any) -> None:
        made = maker(tf.random.normal((64, 8)))
        with tf.GradientTape() as tape:
            a, b = judge(real), judge(made)
            loss = 0.5 * (binary(tf.ones_like(a), a) + binary(tf.zeros_like(b), b))
        judging.apply(tape.gradient(loss, judge.trainable_variables), judge.trainable_variables)

    @tf.function
    def step_of_maker() -> None:
        with tf.GradientTape() as tape:
            b = judge(maker(tf.random.normal((64, 8))))
            loss = binary(tf.ones_like(b), b)
        making.apply(tape.gradient(loss, maker.trainable_variables), maker.trainable_variables)

    for _ in range(steps):
        real = middles[random.integers(0, 8, 64)] + 0.1 * random.normal(size=(64, 2))
        step_of_judge(tf.constant(real.astype("float32")))
        step_of_maker()
    made = maker(random.normal(size=(1000, 8)).astype("float32")).numpy()
    distance = np.linalg.norm(made[:, None] - middles[None], axis=2)
    near = distance.argmin(1)[distance.min(1) < 0.5]
    return float((np.bincount(near, minlength=8) > 15).mean())


def shrinking(optimizer: Any) -> Callable[[int], None]:
    """The rate becomes a tenth every 20 steps, since what was meant for epochs is done for steps."""

    def each(step: int) -> None:
        if step % 20 == 19:
            optimizer.learning_rate = float(optimizer.learning_rate) * 0.1

    return each


def decayed(seed: int) -> float:
    optimizer = opt.SGD(0.02)
    return plain(
        blobs(seed), mlp(10, 5, (64, 64)), optimizer, sparse, accuracy, seed, each=shrinking(optimizer)
    )


def changed(
    data: Arrays,
    x: Callable[[Any], Any] = lambda x: x,
    y: Callable[[Any], Any] = lambda y: y,
    val: bool = True,
) -> Arrays:
    return x(data[0]), y(data[1]), x(data[2]) if val else data[2], y(data[3]) if val else data[3]


def gappy(x: Any) -> Any:
    x = x.copy()
    x[::60, 2] = np.nan
    return x


def factors(seed: int) -> float:
    """Ratings by the product of embeddings."""
    random = np.random.default_rng(seed)
    u, v = random.normal(size=(60, 3)), random.normal(size=(50, 3))
    who = np.stack([random.integers(0, 60, 5000), random.integers(0, 50, 5000)], 1).astype("int32")
    y = ((u[who[:, 0]] * v[who[:, 1]]).sum(1) + 0.1 * random.normal(size=5000)).astype("float32")
    inputs = keras.Input((2,), dtype="int32")
    a, b = L.Embedding(60, 6)(inputs[:, 0]), L.Embedding(50, 6)(inputs[:, 1])
    net = keras.Model(inputs, L.Dot(1)([a, b]))
    return plain(
        (who[:4000], y[:4000], who[4000:], y[4000:]), net, opt.Adam(0.01), column, explained, seed, 25
    )


_HIGH, _LOW, _SLOW, _UNDER = (
    "learning_rate_too_high",
    "learning_rate_too_low",
    "slow_convergence",
    "underfitting",
)
_EXPLODES, _NAN, _START, _DEAD = "exploding_gradient", "nan_or_inf", "poor_initialization", "dead_relu"
_STILL, _FADES, _PAIRS, _RAW = (
    "stagnant_weights",
    "vanishing_gradient",
    "shape_broadcast",
    "unnormalized_input",
)
_OUTPUT, _MISMATCH, _ENDLESS = "improper_activation", "loss_output_mismatch", "loss_unbounded"
_from_probabilities = keras.losses.SparseCategoricalCrossentropy()
_from_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# fmt: off
CONFIGURATIONS = (
    # -- made to go well
    Loop("blobs", lambda s: plain(blobs(s), mlp(10, 5), opt.Adam(2e-3), sparse, accuracy, s), good=0.75),
    Loop("blobs, eagerly",
        lambda s: plain(blobs(s), mlp(10, 5), opt.Adam(2e-3), _from_logits, accuracy, s, 8, eager=True),
        good=0.75),
    Loop("curve", lambda s: plain(curve(s), mlp(5, 1), opt.Adam(3e-3), column, explained, s, 30), good=0.6),
    Loop("curve, eagerly",
        lambda s: plain(curve(s), mlp(5, 1), opt.Adam(3e-3), column, explained, s, 20, eager=True), good=0.5),
    Loop("noisy curve", lambda s: plain(curve(s, 1.6, 3000), mlp(5, 1, (16,)), opt.Adam(3e-3), column, explained, s, 12,
        monitor=True), good=0.2),
    Loop("tumours by hand", lambda s: plain(cancer(s), mlp(30, 1), opt.Adam(1e-3), entropy_of_two,
        lambda n, x, y: accuracy(n, x, y), s, 12, monitor=True), good=0.9),
    Loop("an epoch a call", within_a_function, good=0.75),
    Loop("four batches a step", lambda s: summed(s, True), good=0.75),
    Loop("gaussian", likelihood, good=0.6),
    Loop("flow", flow, good=0.7),
    Loop("ring of places", lambda s: temporal(s, 3e-3), good=0.8),
    Loop("student", distil, good=0.7),
    Loop("triplets", lambda s: triplets(s, False), good=0.65),
    Loop("two heads", two_heads, good=0.6),
    Loop("sharpness", sharpness_aware, good=0.75),
    Loop("tumours in eight numbers", reconstruct, good=0.3),
    Loop("lstm", lambda s: remember(s, L.LSTM(24), 1e-2, 10), good=0.85),
    Loop("clusters", lambda s: duel(s, 1e-3, 1e-3), good=0.8),
    Loop("ratings", factors, good=0.6),
    Loop("moons with a large loss", lambda s: plain(moons(s), mlp(2, 1), opt.Adam(3e-3),
        lambda y, p: 50 * entropy_of_two(y, p), accuracy, s, 20), good=0.85),
    # -- made to fail
    Loop("pairs, eagerly", lambda s: plain(curve(s), mlp(5, 1), opt.Adam(3e-3), pairs, explained, s, 20, eager=True),
        (_PAIRS, _UNDER), 0.5),
    Loop("smooth pairs",
        lambda s: plain(curve(s), mlp(5, 1), opt.Adam(3e-3), smooth_pairs, explained, s), (_PAIRS,), 0.5),
    Loop("sum of squares",
        lambda s: plain(curve(s), mlp(5, 1), opt.SGD(0.05, momentum=0.9), sum_of_squares, explained, s),
        (_HIGH, _EXPLODES, _NAN, _DEAD), 0.5),
    Loop("gradients up", lambda s: plain(blobs(s), mlp(10, 5), opt.Adam(2e-3), sparse, accuracy, s, sign=-1.0),
        (_HIGH, _EXPLODES, _ENDLESS)),
    Loop("minus by hand",
        lambda s: plain(blobs(s), mlp(10, 5), opt.SGD(0.01), lambda y, p: tf.reduce_mean(tf.reduce_sum(
        tf.one_hot(y, 5) * tf.nn.log_softmax(p), 1)), accuracy, s), (_ENDLESS, _HIGH, _EXPLODES)),
    Loop("rate that is gone", decayed, (_LOW, _SLOW, _UNDER)),
    Loop("clipped to nothing", lambda s: plain(blobs(s), mlp(10, 5), opt.SGD(0.01), sparse, accuracy, s, clip=1e-3),
        (_LOW, _SLOW, _UNDER)),
    Loop("raw",
        lambda s: plain(changed(blobs(s), lambda x: 800 * x + 3000), mlp(10, 5, (40,), "tanh"), opt.SGD(0.01), sparse,
        accuracy, s), (_RAW, "saturated_activation", _HIGH), 0.75),
    Loop("thousands",
        lambda s: plain(changed(curve(s), y=lambda y: 4000 * y + 20000), mlp(5, 1), opt.Adam(1e-3), column,
        explained, s), ("unscaled_targets", _LOW, _SLOW), 0.5),
    Loop("log of zero",
        lambda s: plain(changed(cancer(s), lambda x: 40 * x), mlp(30, 1), opt.Adam(0.01), entropy_of_two, accuracy,
        s), (_NAN, _EXPLODES, _RAW), 0.9),
    Loop("root of zero", lambda s: triplets(s, True), (_NAN,), 0.65),
    Loop("rounded", rounded, (_STILL,), 0.8),
    Loop("nothing through", lambda s: reconstruct(s, 50.0), (_UNDER, "plateau"), 0.3),
    Loop("numbers below zero", lambda s: reconstruct(s, 0.02, "sigmoid"), (_OUTPUT, "plateau", _UNDER), 0.5),
    Loop("long memory", lambda s: remember(s, L.SimpleRNN(24, "sigmoid"), 1e-3), (_FADES, _UNDER, _LOW), 0.8),
    Loop("deep", lambda s: plain(blobs(s), mlp(10, 5, (24,) * 14, "sigmoid"), opt.Adam(1e-3), sparse, accuracy, s, 15),
        (_FADES, _UNDER)),
    Loop("of others", lambda s: plain(changed(blobs(s), y=lambda y: np.random.default_rng(0).permutation(y), val=False),
        mlp(10, 5, (16,)), opt.Adam(1e-3), sparse, accuracy, s, 15, monitor=True),
        (_UNDER, "overfitting", _SLOW), 0.75),
    Loop("by heart",
        lambda s: plain(moons(s, 75, 0.6), mlp(2, 2, (96, 96)), opt.Adam(5e-3), sparse, accuracy, s, 300, size=20,
        monitor=True), ("overfitting",), 0.9),
    Loop("sums for ever", lambda s: summed(s, False), ("accumulation_not_zeroed", _HIGH, _EXPLODES, _NAN), 0.75),
    Loop("all alike",
        lambda s: plain(blobs(s), mlp(10, 5, kernel_initializer="zeros"), opt.Adam(2e-3), sparse, accuracy, s),
        (_START, _UNDER, _STILL, _DEAD), 0.75),
    Loop("gaps",
        lambda s: plain(changed(blobs(s), gappy), mlp(10, 5), opt.Adam(2e-3), sparse, accuracy, s), (_NAN,), 0.75),
    Loop("logits for probabilities",
        lambda s: plain(blobs(s), mlp(10, 5), opt.Adam(2e-3), _from_probabilities, accuracy, s),
        (_MISMATCH, _NAN, _UNDER), 0.75),
    Loop("far too fast",
        lambda s: plain(blobs(s), mlp(10, 5), opt.Adam(1.0), _from_logits, accuracy, s, eager=True, epochs=6),
        (_HIGH, _DEAD), 0.75),
    Loop("a strong judge", lambda s: duel(s, 2e-5, 5e-3, 128), ("generator_collapse",), 0.8),
    Loop("one cluster", lambda s: duel(s, 5e-3, 2e-4, 12), ("generator_collapse",), 0.8),
)
# fmt: on
