"""Fresh custom loops, half of them healthy, written before anything was read of how problems are detected.

From what people ask in forums. Each is judged on held-out data, or by what it should have learned to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from benchmarks.sets.fresh_data import (
    Arrays,
    digits,
    halves,
    rare,
    same,
    spirals,
    table,
    waves,
    words,
    wrong_labels,
)  # fmt: skip
from benchmarks.sets.loops import Loop, accuracy, explained

K, L, opt = keras.Sequential, keras.layers, keras.optimizers
Loss = Callable[[Any, Any], Any]


# -- parts ------------------------------------------------------------------------------------------------------------
def mlp(inputs: int, out: int, *hidden: int, act: str = "relu", end: Any = (), **how: Any) -> Any:
    return K([keras.Input((inputs,)), *(L.Dense(n, act, **how) for n in hidden), L.Dense(out), *end])


def ce(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), p))


def binary(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32), p[:, 0]))


def squared(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p[:, 0]))


def between(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.square(y - p))


def train(
    seed: int, data: Arrays, net: Any, loss_of: Loss, optimizer: Any, score: Callable[..., float] = accuracy, *,
    epochs: int = 15, size: int = 32, eager: bool = False, watched: bool = False, clip: float = 0.0,
    variables: Any = None, feed: Callable[[Any], Any] = lambda batches: batches,
) -> float:  # fmt: skip
    """The usual loop: shuffled batches of a dataset, a tape, an optimizer; `watched` ones report their validation."""
    x, y, x_val, y_val = data
    own = net.trainable_variables if variables is None else variables

    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(b, net(a, training=True))
        gradients = tape.gradient(loss, own)
        if clip:
            gradients = [tf.clip_by_norm(one, clip) for one in gradients]
        optimizer.apply_gradients(zip(gradients, own, strict=True))
        return loss

    one_step = step if eager else tf.function(step)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    batches = feed(batches.batch(size, drop_remainder=True))
    watcher = mlflow_tfmon.Monitor(net) if watched else None
    if watcher:
        watcher.start()
    for epoch in range(epochs):
        losses = [one_step(a, b) for a, b in batches]
        if watcher:
            held_out = loss_of(tf.constant(y_val), net(x_val, training=False))
            watcher.log_epoch(epoch, {"loss": float(tf.reduce_mean(losses)), "val_loss": float(held_out)})
    if watcher:
        watcher.end()
    return score(net, x_val, y_val)


def balanced(net: Any, x: Any, y: Any) -> float:
    said = np.asarray(net(x, training=False))[:, 0] > 0
    return float(np.mean([(said[y == one] == one).mean() for one in (0, 1)]))


def neighbours(net: Any, known: Any, names: Any, x: Any, y: Any) -> float:
    """Accuracy of the nearest neighbour in the space of a network's outputs."""
    a, b = np.asarray(net(known)), np.asarray(net(x))
    nearest = ((b[:, None] - a[None]) ** 2).sum(-1).argmin(1)
    return float((np.asarray(names)[nearest] == y).mean())


# -- those of more than a loss -----------------------------------------------------------------------------------------
def accumulate(seed: int, zeroed: bool) -> float:
    """Gradients of eight small batches, applied together."""
    net, optimizer = mlp(64, 10, 48), opt.SGD(0.4)
    sums = [tf.Variable(tf.zeros_like(v)) for v in net.trainable_variables]
    x, y, x_val, y_val = digits(seed)

    @tf.function
    def add(a: Any, b: Any) -> None:
        with tf.GradientTape() as tape:
            loss = ce(b, net(a)) / 8
        for total, one in zip(sums, tape.gradient(loss, net.trainable_variables), strict=True):
            total.assign_add(one)

    @tf.function
    def apply() -> None:
        optimizer.apply_gradients(zip(sums, net.trainable_variables, strict=True))

    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(2000, seed=seed).batch(8).repeat(8)
    for number, (a, b) in enumerate(batches):
        add(a, b)
        if number % 8 == 7:
            apply()
            if zeroed:
                for total in sums:
                    total.assign(tf.zeros_like(total))
    return accuracy(net, x_val, y_val)


def one_by_one(net: Any, x: Any, y: Any) -> float:
    """Accuracy on examples that come alone, as they do in use."""
    named = [int(np.argmax(net(x[i : i + 1], training=False))) for i in range(100)]
    return float((np.array(named) == y[:100]).mean())


def only_head(seed: int) -> float:
    """The embeddings, which should be learned, are not among the variables that the optimizer is given."""
    head = L.Dense(1)
    text = keras.Input((20,), dtype="int32")
    net = keras.Model(text, head(L.GlobalAveragePooling1D()(L.Embedding(200, 3)(text))))
    return train(
        seed, words(seed), net, binary, opt.Adam(1e-2), variables=head.trainable_variables, epochs=12
    )


def new_optimizers(seed: int) -> float:
    x, y, x_val, y_val = table(seed)
    net, random = mlp(8, 1, 32, 32), np.random.default_rng(seed)
    for _ in range(300):
        rows = random.integers(0, len(x), 32)
        with tf.GradientTape() as tape:
            loss = squared(y[rows], net(x[rows]))
        optimizer = opt.Adam(0.03)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
        )
    return explained(net, x_val, y_val)


def ascend(seed: int) -> float:
    """A descent written by hand, with the sign forgotten."""
    x, y, x_val, y_val = table(seed)
    net, random = mlp(8, 1, 32), np.random.default_rng(seed)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = squared(b, net(a))
        for v, g in zip(net.trainable_variables, tape.gradient(loss, net.trainable_variables), strict=True):
            v.assign_add(0.01 * g)
        return loss

    for _ in range(300):
        rows = random.integers(0, len(x), 32)
        step(tf.constant(x[rows]), tf.constant(y[rows]))
    return explained(net, x_val, y_val)


def same_batch(seed: int) -> float:
    """`next(iter(dataset))` within the loop: the first batch again and again."""
    x, y, x_val, y_val = digits(seed)
    net, optimizer = mlp(64, 10, 64), opt.Adam(2e-3)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    watcher = mlflow_tfmon.Monitor(net)
    watcher.start()

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = ce(b, net(a))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables, strict=True)
        )
        return loss

    for epoch in range(10):
        for _ in range(40):
            loss = step(*next(iter(dataset)))
        watcher.log_epoch(epoch, {"loss": float(loss), "val_loss": float(ce(y_val, net(x_val)))})
    watcher.end()
    return accuracy(net, x_val, y_val)


def vary(seed: int, beta: float) -> float:
    """A variational autoencoder: the share of the variance that its reconstructions explain."""
    x, _, x_val, _ = digits(seed)
    encoder, decoder, optimizer = mlp(64, 12, 64), mlp(6, 64, 64), opt.Adam(3e-3)
    own = encoder.trainable_variables + decoder.trainable_variables

    @tf.function
    def step(a: Any) -> Any:
        with tf.GradientTape() as tape:
            mean, spread = tf.split(encoder(a), 2, 1)
            code = mean + tf.exp(spread / 2) * tf.random.normal(tf.shape(mean))
            kl = -0.5 * tf.reduce_mean(tf.reduce_sum(1 + spread - mean**2 - tf.exp(spread), 1))
            loss = tf.reduce_mean(tf.reduce_sum((a - decoder(code)) ** 2, 1)) + beta * kl
        optimizer.apply_gradients(zip(tape.gradient(loss, own), own, strict=True))
        return loss

    for a in tf.data.Dataset.from_tensor_slices(x).shuffle(2000, seed=seed).batch(32).repeat(15):
        step(a)
    return explained(lambda given, training: decoder(encoder(given)[:, :6]), x_val, x_val)


def adversaries(
    seed: int, centres: Any, steps: int, rates: tuple[float, float], *, saturating: bool = False,
    critic_steps: int = 1, wasserstein: bool = False, wide: int = 32, spread: float = 0.3,
) -> Any:  # fmt: skip
    """Two networks that compete over points around centres: a thousand points that the generator makes."""
    centres = np.asarray(centres, "float32")
    make, judge = mlp(4, centres.shape[1], wide, wide), mlp(centres.shape[1], 1, wide, wide)
    opt_g, opt_d = opt.Adam(rates[0], beta_1=0.5), opt.Adam(rates[1], beta_1=0.5)
    cross = tf.nn.sigmoid_cross_entropy_with_logits

    @tf.function
    def judging(real: Any) -> Any:
        fake = make(tf.random.normal((64, 4)))
        with tf.GradientTape() as tape:
            a, b = judge(real), judge(fake)
            if wasserstein:
                with tf.GradientTape() as inner:
                    at = tf.random.uniform((64, 1))
                    mixed = at * real + (1 - at) * fake
                    inner.watch(mixed)
                    given = judge(mixed)
                slope = tf.norm(inner.gradient(given, mixed) + 1e-8, axis=1)
                loss = tf.reduce_mean(b) - tf.reduce_mean(a) + 1.0 * tf.reduce_mean((slope - 1) ** 2)
            else:
                loss = tf.reduce_mean(cross(tf.ones_like(a), a) + cross(tf.zeros_like(b), b))
        of = judge.trainable_variables
        opt_d.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    @tf.function
    def making() -> Any:
        with tf.GradientTape() as tape:
            b = judge(make(tf.random.normal((64, 4))))
            loss = tf.reduce_mean(cross(tf.ones_like(b), b))
            if saturating:
                loss = -tf.reduce_mean(cross(tf.zeros_like(b), b))
            if wasserstein:
                loss = -tf.reduce_mean(b)
        of = make.trainable_variables
        opt_g.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    random = np.random.default_rng(seed)
    for _ in range(steps):
        for _ in range(critic_steps):
            which = random.integers(0, len(centres), 64)
            real = centres[which] + spread * random.normal(size=(64, centres.shape[1]))
            judging(tf.constant(real, tf.float32))
        making()
    return np.asarray(make(random.normal(size=(1000, 4)).astype("float32")))


CIRCLE = [[3 * np.cos(a), 3 * np.sin(a)] for a in np.arange(8) * np.pi / 4]


def modes(points: Any, centres: Any = CIRCLE) -> float:
    """The share of centres that have at least a fortieth of the points near them."""
    far = np.linalg.norm(points[:, None] - np.asarray(centres)[None], axis=-1)
    return float(np.mean([(far[:, i] < 0.9).mean() > 1 / 40 for i in range(len(centres))]))


def near(points: Any, centre: float, spread: float) -> float:
    """1 for points with that mean and spread, less for others."""
    return float(1 - abs(points.mean(0) - centre).max() / 2 - abs(points.std(0) / spread - 1).max() / 2)


def together(seed: int, negatives: bool) -> float:
    """Embeddings of two noisy views that should agree, with or without what keeps other examples apart."""
    x, y, x_val, y_val = digits(seed)
    net, optimizer = mlp(64, 16, 64), opt.Adam(2e-3)

    @tf.function
    def step(a: Any) -> Any:
        with tf.GradientTape() as tape:
            one, two = (net(a + 0.15 * tf.random.normal(tf.shape(a))) for _ in range(2))
            if negatives:
                one, two = tf.math.l2_normalize(one, 1), tf.math.l2_normalize(two, 1)
                loss = ce(tf.range(64), tf.matmul(one, two, transpose_b=True) / 0.2)
            else:
                loss = tf.reduce_mean(tf.reduce_sum((one - two) ** 2, 1))
        of = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(2000, seed=seed).batch(64, drop_remainder=True)
    for a in batches.repeat(20):
        step(a)
    return neighbours(net, x, y, x_val, y_val)


def policy(seed: int, sign: float) -> float:
    """REINFORCE on a choice among four actions that depends on what is seen: the mean reward at the end."""
    random, net, optimizer = np.random.default_rng(seed), mlp(4, 4, 32), opt.Adam(5e-3)

    @tf.function
    def step(seen: Any, done: Any, reward: Any) -> Any:
        with tf.GradientTape() as tape:
            log = tf.nn.log_softmax(net(seen))
            loss = -sign * tf.reduce_mean(tf.gather(log, done, batch_dims=1) * reward)
        of = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    rewards: list[float] = []
    for _ in range(400):
        seen = random.normal(size=(32, 4)).astype("float32")
        chances = np.asarray(tf.nn.softmax(net(seen)))
        done = (chances.cumsum(1) > random.uniform(size=(32, 1))).argmax(1)
        reward = (done == seen.argmax(1)) + 0.3 * random.normal(size=32)
        rewards.append(float((done == seen.argmax(1)).mean()))
        centred = (reward - reward.mean()).astype("float32") if sign > 0 else reward.astype("float32")
        step(tf.constant(seen), tf.constant(done), tf.constant(centred))
    return float(np.mean(rewards[-50:]))


def q_learning(seed: int) -> float:
    """A corridor of eight cells with a reward at its end, a replay buffer and a target network."""
    random, net, slow, optimizer = np.random.default_rng(seed), mlp(8, 2, 32), mlp(8, 2, 32), opt.Adam(3e-3)
    eye, at = np.eye(8, dtype="float32"), 0
    memory: list[tuple[Any, ...]] = []
    slow.set_weights(net.get_weights())

    @tf.function
    def step(s: Any, a: Any, r: Any, after: Any, over: Any) -> Any:
        goal = r + 0.9 * tf.reduce_max(slow(after), 1) * (1 - over)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                keras.losses.huber(goal[:, None], tf.gather(net(s), a, batch_dims=1)[:, None])
            )
        of = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    for number in range(1000):
        action = (
            int(random.integers(0, 2)) if random.uniform() < 0.8 else int(np.argmax(net(eye[at : at + 1])))
        )
        after = min(7, max(0, at + (1 if action else -1)))
        memory.append((eye[at], action, float(after == 7), eye[after], float(after == 7)))
        at = 0 if after == 7 else after
        if len(memory) > 64:
            rows = [memory[i] for i in random.integers(0, len(memory), 32)]
            s, a, r, n, o = (np.array(column) for column in zip(*rows, strict=True))
            step(*(tf.constant(v) for v in (s, a, r.astype("float32"), n, o.astype("float32"))))
        if number % 25 == 0:
            slow.set_weights(net.get_weights())
    return float((np.asarray(net(eye))[:7].argmax(1) == 1).mean())


def two_tasks(seed: int) -> float:
    """A body with two heads: which digit, and how much ink."""
    x, y, x_val, y_val = digits(seed)
    seen = keras.Input((64,))
    body = L.Dense(64, "relu")(seen)
    net, optimizer = keras.Model(seen, [L.Dense(10)(body), L.Dense(1)(body)]), opt.Adam(3e-3)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        ink = tf.reduce_mean(a, 1) * 10 - 3
        with tf.GradientTape() as tape:
            named, amount = net(a)
            loss = ce(b, named) + 0.5 * squared(ink, amount)
        of = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    for a, b in tf.data.Dataset.from_tensor_slices((x, y)).shuffle(2000, seed=seed).batch(32).repeat(12):
        step(a, b)
    return accuracy(lambda given, training: net(given)[0], x_val, y_val)


def transfer(seed: int) -> float:
    """A body that learned five digits, frozen, with a new head for five others."""
    x, y, x_val, y_val = digits(seed)
    body, head = mlp(64, 48, 64, end=[L.ReLU()]), mlp(48, 5)
    for end, first in ((mlp(48, 5), 0), (head, 5)):
        body.trainable = first == 0
        part, held = y // 5 == first // 5, y_val // 5 == first // 5
        data = x[part], y[part] - first, x_val[held], y_val[held] - first
        score = train(seed, data, K([keras.Input((64,)), body, end]), ce, opt.Adam(3e-3), epochs=12)
    return score


def sharp(seed: int) -> float:
    """Sharpness-aware minimization: each step climbs a little first, then descends from there."""
    x, y, x_val, y_val = spirals(seed)
    net, optimizer = mlp(2, 3, 48, 48), opt.Adam(5e-3)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        of = net.trainable_variables
        with tf.GradientTape() as tape:
            loss = ce(b, net(a))
        first = tape.gradient(loss, of)
        climb = [0.03 * g / (tf.linalg.global_norm(first) + 1e-9) for g in first]
        for v, e in zip(of, climb, strict=True):
            v.assign_add(e)
        with tf.GradientTape() as tape:
            there = ce(b, net(a))
        second = tape.gradient(there, of)
        for v, e in zip(of, climb, strict=True):
            v.assign_sub(e)
        optimizer.apply_gradients(zip(second, of, strict=True))
        return loss

    for a, b in tf.data.Dataset.from_tensor_slices((x, y)).shuffle(2000, seed=seed).batch(32).repeat(30):
        step(a, b)
    return accuracy(net, x_val, y_val)


def equation(seed: int) -> float:
    """The equation u'' = -u with u(0) = 0 and u'(0) = 1, whose solution is the sine."""
    net, optimizer = mlp(1, 1, 24, 24, act="tanh"), opt.Adam(opt.schedules.CosineDecay(1e-2, 900))

    @tf.function
    def step(t: Any) -> Any:
        with tf.GradientTape() as tape:
            with tf.GradientTape() as second:
                second.watch(t)
                with tf.GradientTape() as first:
                    first.watch(t)
                    u = net(t)
                du = first.gradient(u, t)
            d2u = second.gradient(du, t)
            start = tf.zeros((1, 1))
            with tf.GradientTape() as edge:
                edge.watch(start)
                at_start = net(start)
            slope = edge.gradient(at_start, start)
            loss = tf.reduce_mean((d2u + u) ** 2) + 5 * tf.reduce_sum(at_start**2 + (slope - 1) ** 2)
        of = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))
        return loss

    random = np.random.default_rng(seed)
    for _ in range(900):
        step(tf.constant(random.uniform(0, 3, (40, 1)), tf.float32))
    t = np.linspace(0, 3, 50, dtype="float32")[:, None]
    return explained(net, t, np.sin(t))


def density(seed: int) -> float:
    """The likelihood of narrow targets: a loss that falls below zero and should."""
    x, y, x_val, y_val = table(seed, noise=0.1, scale=0.05)

    def loss_of(b: Any, p: Any) -> Any:
        return tf.reduce_mean(0.5 * p[:, 1] + 0.5 * (b - p[:, 0]) ** 2 * tf.exp(-p[:, 1]))

    return train(
        seed, (x, y, x_val, y_val), mlp(8, 2, 48, 48), loss_of, opt.Adam(2e-3), epochs=25,
        score=lambda net, a, b: explained(lambda g, training: net(g)[:, :1], a, b),
    )  # fmt: skip


def tastes(seed: int) -> float:
    """Ratings as products of two tables of embeddings: the variance explained of those held out."""
    random = np.random.default_rng(seed)
    u, v = random.normal(size=(60, 3)), random.normal(size=(50, 3))
    pairs = np.array([(i, j) for i in range(60) for j in range(50)])
    rating = (u[pairs[:, 0]] * v[pairs[:, 1]]).sum(1) + 0.3 * random.normal(size=3000)
    who, what = L.Embedding(60, 6), L.Embedding(50, 6)
    given = keras.Input((2,), dtype="int32")
    net = keras.Model(given, keras.ops.sum(who(given[:, 0]) * what(given[:, 1]), -1, keepdims=True))
    data = halves(pairs.astype("int32"), rating.astype("float32"), seed)
    return train(seed, data, net, squared, opt.Adam(2e-2), explained, epochs=15)


def scaled_by_hand(seed: int) -> float:
    """Half precision with Keras's scaling of the loss."""
    x, y, x_val, y_val = digits(seed)
    net = K([keras.Input((64,)), L.Dense(48, "relu", dtype="mixed_float16"), L.Dense(10)])
    optimizer = opt.LossScaleOptimizer(opt.Adam(3e-3))

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = ce(b, net(a))
            scaled = optimizer.scale_loss(loss)
        of = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, of), of, strict=True))
        return loss

    for a, b in tf.data.Dataset.from_tensor_slices((x, y)).shuffle(2000, seed=seed).batch(32).repeat(10):
        step(a, b)
    return accuracy(net, x_val, y_val)


def attend(length: int = 20, known: int = 200, wide: int = 16) -> Any:
    seen = keras.Input((length,), dtype="int32")
    x = L.Embedding(known, wide)(seen)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, wide // 2)(x, x))
    return keras.Model(seen, L.Dense(1)(L.GlobalAveragePooling1D()(x)))


def rounded() -> Any:
    seen = keras.Input((64,))
    code = L.Dense(4, "sigmoid")(L.Dense(48, "relu")(seen))
    return keras.Model(seen, L.Dense(64)(L.Dense(48, "relu")(L.Lambda(tf.round)(code))))


def by_class(batches: Any) -> Any:
    """Batches in the order of their labels, as of files read folder by folder."""
    rows = sorted(batches.unbatch(), key=lambda one: int(one[1]))
    x, y = (tf.stack(column) for column in zip(*rows, strict=True))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(32)


def normalized(momentum: float) -> Any:
    parts = [
        layer for n in (48, 48) for layer in (L.Dense(n), L.BatchNormalization(momentum=momentum), L.ReLU())
    ]
    return K([keras.Input((64,)), *parts, L.Dense(10)])


def mixed_up(data: Arrays, seed: int) -> Arrays:
    """Inputs in another order than their labels."""
    x, y, x_val, y_val = data
    return np.random.default_rng(seed + 1).permutation(x), y, x_val, y_val


def recurrent(seed: int, cell: Any, optimizer: Any, clip: float = 0.0, epochs: int = 12) -> float:
    net = K([keras.Input((40, 1)), cell, L.Dense(3)])
    return train(seed, waves(seed), net, ce, optimizer, epochs=epochs, clip=clip)


def weighted(y: Any, p: Any) -> Any:
    y = tf.cast(y, tf.float32)
    each = tf.nn.sigmoid_cross_entropy_with_logits(y, p[:, 0])
    return tf.reduce_mean(each * (1 + 23 * y))


def noisy_same(batches: Any) -> Any:
    return batches.map(lambda a, b: (a + 0.3 * tf.random.normal(tf.shape(a)), b))


def decayed(net: Any, strength: float) -> Loss:
    def loss_of(y: Any, p: Any) -> Any:
        return ce(y, p) + strength * sum(
            tf.reduce_sum(v**2) for v in net.trainable_variables if "kernel" in v.path
        )

    return loss_of


def regularized(seed: int, data: Arrays, strength: float, dropout: float, **how: Any) -> float:
    net = K([keras.Input((64,)), L.Dense(96, "relu"), L.Dropout(dropout), L.Dense(10)])
    return train(seed, data, net, decayed(net, strength), opt.Adam(3e-3), **how)


COSINES = opt.schedules.CosineDecayRestarts
KERAS_CE = keras.losses.sparse_categorical_crossentropy

CONFIGURATIONS = (
    # -- that go wrong
    Loop(
        "loop, targets of one dimension",
        lambda s: train(s, table(s), mlp(8, 1, 48, 48), between, opt.Adam(3e-3), explained),
        ("shape_broadcast",),
        0.6,
    ),
    Loop("loop, sums never zeroed", lambda s: accumulate(s, False), ("accumulation_not_zeroed",), 0.85),
    Loop(
        "loop, softmax over the batch",
        lambda s: train(
            s, digits(s), mlp(64, 10, 48, end=[L.Softmax(axis=0)]), KERAS_CE, opt.Adam(3e-3), one_by_one
        ),
        ("improper_activation", "loss_output_mismatch"),
        0.8,
    ),
    Loop(
        "loop, softmax twice",
        lambda s: train(s, digits(s), mlp(64, 10, 32, end=[L.Softmax()]), ce, opt.SGD(0.05)),
        ("loss_output_mismatch",),
        0.85,
    ),
    Loop(
        "loop, labels in another order",
        lambda s: train(s, mixed_up(digits(s), s), mlp(64, 10, 48), ce, opt.Adam(1e-3), watched=True),
        ("underfitting", "overfitting"),
        0.8,
    ),
    Loop("loop, only the head is optimized", only_head, ("stagnant_weights", "underfitting"), 0.75),
    Loop(
        "loop, rounded code",
        lambda s: train(s, same(s), rounded(), between, opt.Adam(3e-3), explained),
        ("stagnant_weights",),
        0.4,
    ),
    Loop(
        "loop, a new optimizer at each step",
        new_optimizers,
        ("learning_rate_too_high", "oscillating_loss", "plateau"),
        0.75,
    ),
    Loop(
        "loop, rate of 1 with momentum",
        lambda s: train(s, table(s), mlp(8, 1, 48), squared, opt.SGD(1.0, momentum=0.9), explained, epochs=8),
        ("learning_rate_too_high", "exploding_gradient"),
        0.6,
    ),
    Loop(
        "loop, decays to nothing at once",
        lambda s: train(
            s,
            spirals(s),
            mlp(2, 3, 48, 48),
            ce,
            opt.Adam(opt.schedules.PolynomialDecay(5e-3, 40, 0.0)),
            epochs=25,
        ),
        ("plateau", "learning_rate_too_low", "slow_convergence", "underfitting"),
        0.85,
    ),
    Loop(
        "loop, recurrence of relu",
        lambda s: recurrent(s, L.SimpleRNN(32, "relu", recurrent_initializer="he_normal"), opt.SGD(0.1)),
        ("exploding_gradient", "learning_rate_too_high", "poor_initialization"),
        0.75,
    ),
    Loop(
        "loop, averages lag",
        lambda s: train(s, digits(s), normalized(0.9995), ce, opt.Adam(2e-3), epochs=5, watched=True),
        ("normalization_mismatch",),
        0.85,
    ),
    Loop(
        "loop, files read folder by folder",
        lambda s: train(s, digits(s), mlp(64, 10, 48), ce, opt.SGD(0.3), feed=by_class, epochs=10),
        ("oscillating_loss", "one_class_predicted"),
        0.8,
    ),
    Loop("loop, posterior collapses", lambda s: vary(s, 30.0), ("underfitting", "plateau"), 0.3),
    Loop(
        "loop, discriminator wins",
        lambda s: near(
            adversaries(s, [[9.0, 9.0]], 500, (1e-4, 1e-2), saturating=True, critic_steps=3), 9.0, 0.3
        ),
        ("generator_collapse",),
        0.5,
    ),
    Loop(
        "loop, one of eight modes",
        lambda s: modes(adversaries(s, CIRCLE, 1200, (8e-3, 1e-3), spread=0.1)),
        ("generator_collapse",),
        0.7,
    ),
    Loop(
        "loop, ascends",
        ascend,
        ("loss_unbounded", "exploding_gradient", "learning_rate_too_high", "nan_or_inf"),
        0.6,
    ),
    Loop(
        "loop, prices in dollars",
        lambda s: train(
            s, table(s, scale=9e4, offset=2.5e5), mlp(8, 1, 48, 48), squared, opt.Adam(1e-3), explained
        ),
        ("unscaled_targets", "learning_rate_too_low"),
        0.6,
    ),
    Loop("loop, the first batch again", same_batch, ("overfitting",), 0.9),
    Loop("loop, embeddings collapse", lambda s: together(s, False), (), 0.9),
    Loop(
        "loop, reward with the sign turned",
        lambda s: policy(s, -1.0),
        ("loss_unbounded", "underfitting"),
        0.7,
    ),
    # -- that are well
    Loop(
        "loop, sixty digits, eagerly",
        lambda s: train(
            s, digits(s, 140), mlp(64, 10, 32), ce, opt.Adam(3e-3), eager=True, size=16, epochs=30
        ),
        good=0.65,
    ),
    Loop(
        "loop, adversaries in balance",
        lambda s: near(adversaries(s, [[1.0, 1.0]], 1200, (1e-3, 1e-3), spread=0.5), 1.0, 0.5),
        good=0.5,
    ),
    Loop(
        "loop, wasserstein",
        lambda s: near(
            adversaries(s, [[1.5, 1.5]], 600, (1e-3, 1e-3), wasserstein=True, critic_steps=2, spread=0.7),
            1.5,
            0.7,
        ),
        good=0.5,
    ),
    Loop("loop, sums zeroed", lambda s: accumulate(s, True), good=0.85),
    Loop(
        "loop, high rate that holds",
        lambda s: train(s, digits(s), mlp(64, 10, 48), ce, opt.SGD(0.5), watched=True),
        good=0.85,
    ),
    Loop(
        "loop, warm restarts",
        lambda s: train(s, spirals(s), mlp(2, 3, 64, 64), ce, opt.Adam(COSINES(2e-2, 100)), epochs=30),
        good=0.85,
    ),
    Loop(
        "loop, decay and dropout",
        lambda s: regularized(s, wrong_labels(digits(s), 0.2, 10, s), 3e-4, 0.5, watched=True),
        good=0.85,
    ),
    Loop(
        "loop, rare class, weighted",
        lambda s: train(s, rare(s), mlp(6, 1, 16), weighted, opt.Adam(3e-3), balanced, size=64, epochs=12),
        good=0.75,
    ),
    Loop("loop, frozen body", transfer, good=0.85),
    Loop("loop, policy gradient", lambda s: policy(s, 1.0), good=0.7),
    Loop("loop, corridor", q_learning, good=0.8),
    Loop("loop, contrast", lambda s: together(s, True), good=0.9),
    Loop(
        "loop, denoising",
        lambda s: train(s, same(s), mlp(64, 64, 64), between, opt.Adam(2e-3), explained, feed=noisy_same),
        good=0.5,
    ),
    Loop("loop, gru", lambda s: recurrent(s, L.GRU(24), opt.Adam(1e-2), clip=1.0), good=0.75),
    Loop(
        "loop, attention",
        lambda s: train(s, words(s), attend(), binary, opt.Adam(5e-3), epochs=8, watched=True),
        good=0.75,
    ),
    Loop("loop, two heads", two_tasks, good=0.85),
    Loop("loop, half precision", scaled_by_hand, good=0.85),
    Loop("loop, sharpness", sharp, good=0.85),
    Loop("loop, differential equation", equation, good=0.9),
    Loop("loop, likelihood of narrow targets", density, good=0.6),
    Loop("loop, tastes", tastes, good=0.6),
    Loop("loop, variational", lambda s: vary(s, 0.1), good=0.4),
)
