"""Second custom loops, half of them healthy, written by someone who had read nothing of the detectors.

Each is judged on held-out data, or by what it should have learned to do. Where no word of the vocabulary says just
what the cause is, a comment does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from benchmarks.sets.fresh_data import Arrays
from benchmarks.sets.loops import Loop
from benchmarks.sets.second_data import (
    cancer,
    chain,
    hills,
    many,
    moons,
    pictures,
    recall,
    seldom,
    texts,
    wine,
)  # fmt: skip

K, L, opt = keras.Sequential, keras.layers, keras.optimizers
Loss = Callable[[Any, Any], Any]
Score = Callable[[Any, Any, Any], float]


# -- scores: of a network (a function of inputs, and of `training`) on what was held out ------------------------------
def finite(values: Any) -> bool:
    return bool(np.isfinite(np.asarray(values)).all())


def hits(net: Any, x: Any, y: Any) -> float:
    said = np.asarray(net(x, training=False), float)
    return float((said.argmax(-1) == y).mean()) if finite(said) else -np.inf


def told(net: Any, x: Any, y: Any) -> float:
    """The share of the variance explained."""
    said = np.asarray(net(x, training=False), float).reshape(np.shape(y))
    varied = ((y - np.mean(y, 0)) ** 2).mean()
    return float(1 - ((said - y) ** 2).mean() / varied) if finite(said) else -np.inf


def fair(net: Any, x: Any, y: Any) -> float:
    """The mean over both classes of the share that is recognized, by one logit."""
    said = np.asarray(net(x, training=False), float)[:, 0]
    return (
        float(np.mean([((said > 0) == one)[y == one].mean() for one in (0, 1)])) if finite(said) else -np.inf
    )


# -- parts ------------------------------------------------------------------------------------------------------------
def net_of(inputs: int, out: int, *units: int, act: Any = "relu", end: Any = (), **how: Any) -> Any:
    return K([keras.Input((inputs,)), *(L.Dense(n, act, **how) for n in units), L.Dense(out), *end])


def classes(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), p))


def chance(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, p.dtype), p[:, 0]))


def distance(y: Any, p: Any) -> Any:
    return tf.reduce_mean((tf.reshape(y, tf.shape(p)) - p) ** 2)


def batches_of(seed: int, size: int, *columns: Any) -> Any:
    rows = tf.data.Dataset.from_tensor_slices(columns).shuffle(2000, seed=seed)
    return rows.batch(size, drop_remainder=True)


def descend(tape: Any, loss: Any, of: Any, optimizer: Any) -> None:
    optimizer.apply_gradients(zip(tape.gradient(loss, of), of, strict=True))


def learn(
    seed: int, data: Arrays, net: Any, loss_of: Loss, optimizer: Any, score: Score = hits, *,
    epochs: int = 15, size: int = 32, eager: bool = False, watched: bool = False, training: bool = True,
    turn: Callable[[Any], Any] | None = None, own: Any = None,
    at_step: Callable[[int], None] | None = None, at_epoch: Callable[[int], None] | None = None,
    validate: Callable[[], float] | None = None,
) -> float:  # fmt: skip
    """Batches of a dataset, a tape, an optimizer; `turn` changes the gradients, `watched` ones report validation."""
    x, y, x_val, y_val = data
    of = net.trainable_variables if own is None else own

    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(b, net(a, training=training))
        gradients = tape.gradient(loss, of)
        optimizer.apply_gradients(zip(turn(gradients) if turn else gradients, of, strict=True))
        return loss

    one_step, number = step if eager else tf.function(step), 0
    batches, mean = batches_of(seed, size, x, y), keras.metrics.Mean()
    watcher = mlflow_tfmon.Monitor(net) if watched else None
    if watcher:
        watcher.start()
    for epoch in range(epochs):
        mean.reset_state()
        for a, b in batches:
            if at_step:
                at_step(number)
            mean.update_state(one_step(a, b))
            number += 1
        if at_epoch:
            at_epoch(epoch)
        if watcher:
            held = validate() if validate else float(loss_of(tf.constant(y_val), net(x_val, training=False)))
            watcher.log_epoch(epoch, {"loss": float(mean.result()), "val_loss": held})
    if watcher:
        watcher.end()
    return score(net, x_val, y_val)


# -- losses, and ways to turn gradients -------------------------------------------------------------------------------


def as_chances(y: Any, p: Any) -> Any:
    """The cross entropy of chances, though what it is given are logits."""
    p = tf.clip_by_value(p, 1e-7, 1.0)
    return -tf.reduce_mean(tf.gather(tf.math.log(p), tf.cast(y, tf.int32), batch_dims=1))


def huber(y: Any, p: Any) -> Any:
    return tf.reduce_mean(keras.losses.huber(tf.reshape(y, tf.shape(p)), p))


def hinge(y: Any, p: Any) -> Any:
    return tf.reduce_mean(tf.nn.relu(1 - (2 * tf.cast(y, tf.float32) - 1) * p[:, 0]))


def focal(y: Any, p: Any) -> Any:
    """The cross entropy of a rare class, in which what is known well counts little."""
    y, p = tf.cast(y, tf.float32), p[:, 0]
    right = tf.where(y > 0, tf.sigmoid(p), 1 - tf.sigmoid(p))
    each = tf.nn.sigmoid_cross_entropy_with_logits(y, p) * (1 - right) ** 2
    return tf.reduce_mean(each * tf.where(y > 0, 0.92, 0.08))


def short(norm: float) -> Callable[[Any], Any]:
    return lambda gradients: tf.clip_by_global_norm(gradients, norm)[0]


def noisy(spread: float) -> Callable[[Any], Any]:
    """Noise that hides whom the gradients are of."""

    def turn(gradients: Any) -> Any:
        return [g + spread * tf.random.normal(tf.shape(g)) for g in tf.clip_by_global_norm(gradients, 1.0)[0]]

    return turn


# -- data that go wrong -----------------------------------------------------------------------------------------------
def off_by_one(data: Arrays) -> Arrays:
    """Each input has the label of the row before, for one file has a line of names and the other has none."""
    x, y, x_val, y_val = data
    return x, np.roll(y, 1), x_val, y_val


def missing(data: Arrays, share: float, seed: int) -> Arrays:
    """Some measures were not taken."""
    x, y, x_val, y_val = data
    holes = np.random.default_rng(seed + 40).uniform(size=x.shape) < share
    return np.where(holes, np.nan, x).astype("float32"), y, x_val, y_val


def far_off(data: Arrays, seed: int) -> Arrays:
    x, y, x_val, y_val = data
    random = np.random.default_rng(seed + 41)
    off = (random.uniform(size=len(y)) < 0.05) * random.normal(size=len(y)) * 30
    return x, (y + off).astype("float32"), x_val, y_val


# -- supervised, with more than the usual loop ------------------------------------------------------------------------
def normal(inputs: int, out: int, *units: int) -> Any:
    parts = [part for n in units for part in (L.Dense(n), L.BatchNormalization(momentum=0.9), L.ReLU())]
    return K([keras.Input((inputs,)), *parts, L.Dense(out)])


def used_as_trained(seed: int) -> float:
    """A normalized network that in use, and to validate, is called for one row with `training=True`."""
    data = many(seed)
    net, (x, y) = normal(20, 3, 32, 32), data[2:]

    def ask() -> Any:
        return tf.concat([net(x[i : i + 1], training=True) for i in range(40)], 0)

    return learn(
        seed, data, net, classes, opt.Adam(2e-3), lambda *_: float((np.argmax(ask(), 1) == y[:40]).mean()),
        epochs=8, watched=True, validate=lambda: float(classes(y[:40], ask())),
    )  # fmt: skip


def raw_wine(seed: int) -> float:
    """Measures as they are, for a first layer normalizes them; but nothing says that this is training."""
    net = K([keras.Input((13,)), L.BatchNormalization(momentum=0.9), L.Dense(16, "relu"), L.Dense(3)])
    return learn(seed, wine(seed, raw=True), net, classes, opt.SGD(0.05), epochs=80, size=16, training=False)


def back_to_the_start(seed: int) -> float:
    """At the end of each epoch the first weights are set again, as if for another fold."""
    net = net_of(64, 10, 48)
    first = net.get_weights()

    def again(epoch: int) -> None:
        if epoch < 14:
            net.set_weights(first)

    return learn(seed, pictures(seed), net, classes, opt.SGD(0.02), at_epoch=again, watched=True)


def scaled_up(seed: int, unscaled: bool) -> float:
    """Half precision with a loss that is scaled by hand, and gradients that are scaled back, or are not."""
    x, y, x_val, y_val = pictures(seed)
    net = K([keras.Input((64,)), L.Dense(48, "relu", dtype="mixed_float16"), L.Dense(10)])
    optimizer, scale, good_steps = opt.SGD(0.1), tf.Variable(4096.0), tf.Variable(0)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = classes(b, net(a))
            scaled = loss * scale
        gradients = tape.gradient(scaled, net.trainable_variables)
        if unscaled:
            gradients = [tf.cast(g, tf.float32) / scale for g in gradients]
            fine = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
            gradients = [tf.where(fine, g, tf.zeros_like(g)) for g in gradients]
            good_steps.assign(tf.where(fine, good_steps + 1, 0))
            doubled = tf.where(good_steps % 100 == 99, scale * 2, scale)
            scale.assign(tf.where(fine, doubled, scale / 2))
        optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
        return loss

    for a, b in batches_of(seed, 32, x, y).repeat(10):
        step(a, b)
    return hits(net, x_val, y_val)


def rates(
    seed: int, rate: Callable[[int], float], optimizer: Any, data: Arrays, net: Any, **how: Any
) -> float:
    """A schedule of one's own: the rate is assigned before each step."""

    def assign(number: int) -> None:
        optimizer.learning_rate.assign(rate(number))

    return learn(seed, data, net, classes, optimizer, at_step=assign, **how)


def triangle(number: int) -> float:
    """Up and down within a hundred steps."""
    return 0.005 + 0.3 * (1 - abs(number % 100 - 50) / 50)


def units(seed: int) -> float:
    """A class and an amount from one body, where the amount, in its own unit, is all that the loss is about."""
    x, y, x_val, y_val = pictures(seed)
    seen = keras.Input((64,))
    body = L.Dense(16, "relu")(seen)
    net, optimizer = keras.Model(seen, [L.Dense(10)(body), L.Dense(1)(body)]), opt.SGD(0.05, momentum=0.9)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        grams = 5000 * tf.reduce_mean(a, 1)
        with tf.GradientTape() as tape:
            named, weight = net(a)
            loss = classes(b, named) + distance(grams, weight)
        of = net.trainable_variables
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, of), 1.0)
        optimizer.apply_gradients(zip(gradients, of, strict=True))
        return loss

    for a, b in batches_of(seed, 32, x, y).repeat(12):
        step(a, b)
    return hits(lambda given, training: net(given)[0], x_val, y_val)


def uncertain(seed: int) -> float:
    """Two tasks, weighted by how uncertain each is, which is learned too: the loss falls below zero."""
    x, y, x_val, y_val = hills(seed, noise=0.05)
    seen = keras.Input((3,))
    body = L.Dense(48, "relu")(L.Dense(48, "relu")(seen))
    net, optimizer = keras.Model(seen, [L.Dense(1)(body), L.Dense(1)(body)]), opt.Adam(3e-3)
    doubt = tf.Variable([0.0, 0.0])

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            height, slope = net(a)
            both = tf.stack([distance(b, height), distance(a[:, 0] * a[:, 1], slope)])
            loss = tf.reduce_sum(tf.exp(-doubt) * both + doubt)
        descend(tape, loss, [*net.trainable_variables, doubt], optimizer)
        return loss

    for a, b in batches_of(seed, 32, x, y).repeat(20):
        step(a, b)
    return told(lambda given, training: net(given)[0], x_val, y_val)


def wide_and_deep(seed: int) -> float:
    """A linear part and a deep one, each with an optimizer of its own."""
    x, y, x_val, y_val = cancer(seed)
    wide, deep, one, other = net_of(30, 1), net_of(30, 1, 16, 16), opt.Ftrl(0.05), opt.Adam(2e-3)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            loss = chance(b, wide(a) + deep(a))
        descend(tape, loss, wide.trainable_variables, one)
        descend(tape, loss, deep.trainable_variables, other)
        return loss

    for a, b in batches_of(seed, 16, x, y).repeat(15):
        step(a, b)
    return fair(lambda given, training: wide(given) + deep(given), x_val, y_val)


def thawed(seed: int) -> float:
    """A body that learned even digits; a head for odd ones on it while it is frozen; then both, slowly."""
    x, y, x_val, y_val = pictures(seed)
    body, first, head = net_of(64, 32, 48, end=[L.ReLU()]), net_of(32, 5), net_of(32, 5)
    score = 0.0
    for end, odd, frozen, rate, epochs in (
        (first, 0, False, 3e-3, 10),
        (head, 1, True, 3e-3, 8),
        (head, 1, False, 3e-4, 8),
    ):
        body.trainable = not frozen
        part, held = y % 2 == odd, y_val % 2 == odd
        data = x[part], y[part] // 2, x_val[held], y_val[held] // 2
        score = learn(seed, data, K([keras.Input((64,)), body, end]), classes, opt.Adam(rate), epochs=epochs)
    return score


def mixed_up(seed: int) -> float:
    """Pictures that are mixtures of two, with labels that are too, and smoothed: the loss stays high."""
    x, y, x_val, y_val = pictures(seed)
    net, optimizer = net_of(64, 10, 96), opt.Adam(3e-3)

    @tf.function
    def step(a: Any, b: Any) -> Any:
        share = tf.random.uniform((32, 1))
        other, names = tf.random.shuffle(tf.range(32)), 0.9 * tf.one_hot(b, 10) + 0.01
        a = share * a + (1 - share) * tf.gather(a, other)
        names = share * names + (1 - share) * tf.gather(names, other)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(names, net(a)))
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for a, b in batches_of(seed, 32, x, y).repeat(15):
        step(a, b)
    return hits(net, x_val, y_val)


def harder(seed: int) -> float:
    """Pictures of more noise, and more of them turned, from epoch to epoch: the loss rises."""
    x, y, x_val, y_val = pictures(seed)
    net, optimizer, noise = net_of(64, 10, 64), opt.Adam(2e-3), tf.Variable(0.0)
    watcher = mlflow_tfmon.Monitor(net)
    watcher.start()

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = classes(b, net(a + noise * tf.random.normal(tf.shape(a))))
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for epoch in range(14):
        noise.assign(0.05 * epoch)
        losses = [float(step(a, b)) for a, b in batches_of(seed, 32, x, y)]
        held_out = float(classes(y_val, net(x_val)))
        watcher.log_epoch(epoch, {"loss": float(np.mean(losses)), "val_loss": held_out})
    watcher.end()
    return hits(net, x_val, y_val)


def in_turn(seed: int) -> float:
    """Three folds, each with a network of its own: the mean of their scores."""
    x, y = (np.concatenate(both) for both in zip(many(seed)[:2], many(seed)[2:], strict=True))
    scores = []
    for fold in range(3):
        held = np.arange(len(x)) % 3 == fold
        data = x[~held], y[~held], x[held], y[held]
        scores.append(learn(seed, data, net_of(20, 3, 24), classes, opt.Adam(3e-3), epochs=8))
    return float(np.mean(scores))


# -- sequences --------------------------------------------------------------------------------------------------------
def pooled_over_the_batch(seed: int) -> float:
    """The mean over the first axis rather than over time; texts and batches happen to be of the same length."""
    x, y, x_val, y_val = texts(seed)
    table, head, optimizer = L.Embedding(120, 12), net_of(12, 4, 24), opt.Adam(3e-3)
    table.build((15,))
    of = table.trainable_variables + head.trainable_variables

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = classes(b, head(tf.reduce_mean(table(a), 0)))
        descend(tape, loss, of, optimizer)
        return loss

    for a, b in batches_of(seed, 15, x, y).repeat(10):
        step(a, b)
    parts = [np.asarray(head(tf.reduce_mean(table(x_val[i : i + 15]), 0))) for i in range(0, 345, 15)]
    return float((np.concatenate(parts).argmax(1) == y_val[:345]).mean())


def by_hand(seed: int, spread: float) -> float:
    """A recurrence without bounds, written by hand: the sum of a sequence's values."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(900, 40, 1)).astype("float32")
    y = (x[..., 0].sum(1) / 6).astype("float32")
    inner = tf.Variable(spread * random.normal(size=(16, 16)).astype("float32"))
    outer, end = (tf.Variable(0.3 * random.normal(size=one).astype("float32")) for one in ((1, 16), (16, 1)))
    optimizer, of = opt.SGD(0.01), [inner, outer, end]

    def said(a: Any) -> Any:
        state = tf.zeros((tf.shape(a)[0], 16))
        for at in range(40):
            state = tf.matmul(state, inner) + a[:, at] @ outer
        return state @ end

    @tf.function
    def step(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = distance(b, said(a))
        descend(tape, loss, of, optimizer)
        return loss

    for a, b in batches_of(seed, 32, x[:700], y[:700]).repeat(10):
        step(a, b)
    return told(lambda given, training: said(given), tf.constant(x[700:]), y[700:])


def remember(seed: int, cell: Any, length: int, **how: Any) -> float:
    net = K([keras.Input((length,), dtype="int32"), L.Embedding(10, 8), cell, L.Dense(4)])
    return learn(seed, recall(seed, length), net, classes, opt.Adam(5e-3), turn=short(1.0), **how)


def language(seed: int) -> float:
    """The next symbol of a text that is random in part: the loss soon comes to what cannot be known."""
    net = K(
        [keras.Input((16,), dtype="int32"), L.Embedding(8, 8), L.GRU(16, return_sequences=True), L.Dense(8)]
    )
    return learn(seed, chain(seed), net, classes, opt.Adam(1e-2), epochs=12)


# -- what makes things up ---------------------------------------------------------------------------------------------
def alike(made: Any, real: Any) -> float:
    """1 for points of the same distribution (by their energy distance), less for others."""
    made, real = np.asarray(made, float)[:500], np.asarray(real, float)[:500]
    if not finite(made):
        return -np.inf

    def apart(a: Any, b: Any) -> float:
        return float(np.linalg.norm(a[:, None] - b[None], axis=-1).mean())

    return 1 - (2 * apart(made, real) - apart(made, made) - apart(real, real)) / apart(real, real)


def compete(
    seed: int, loss: str, steps: int, rates: tuple[float, float] = (1e-3, 1e-3), *, all_of_them: bool = False
) -> float:
    """A generator and a judge over two moons; the generator's step may move the variables of both."""
    points = moons(seed, 1500, 0.1)[0] * 2
    make, judge = net_of(4, 2, 48, 48), net_of(2, 1, 48, 48)
    one, other = opt.Adam(rates[0], beta_1=0.5), opt.Adam(rates[1], beta_1=0.5)
    random = np.random.default_rng(seed)

    def cost(named: float, said: Any) -> Any:
        if loss == "squares":
            return tf.reduce_mean((said - named) ** 2)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(named * tf.ones_like(said), said))

    @tf.function
    def judging(real: Any) -> None:
        fake = make(tf.random.normal((64, 4)))
        with tf.GradientTape() as tape:
            total = cost(0.0, judge(fake)) + cost(1.0, judge(real))
        descend(tape, total, judge.trainable_variables, other)

    @tf.function
    def making() -> None:
        with tf.GradientTape() as tape:
            total = cost(1.0, judge(make(tf.random.normal((64, 4)))))
        of = make.trainable_variables + (judge.trainable_variables if all_of_them else [])
        descend(tape, total, of, one)

    for _ in range(steps):
        judging(tf.constant(points[random.integers(0, len(points), 64)]))
        making()
    return alike(make(random.normal(size=(500, 4)).astype("float32")), points)


def variational(seed: int, *, mean: bool = False, sign: float = 1.0, warm: int = 0) -> float:
    """A variational autoencoder of pixels; its cost of pixels is a mean or a sum, that of the code may warm up."""
    x, _, x_val, _ = pictures(seed)
    encoder, decoder, optimizer = net_of(64, 12, 64), net_of(6, 64, 64), opt.Adam(3e-3)
    share, of = tf.Variable(1.0), encoder.trainable_variables + decoder.trainable_variables

    @tf.function
    def step(a: Any) -> Any:
        with tf.GradientTape() as tape:
            middle, spread = tf.split(encoder(a), 2, 1)
            code = middle + tf.exp(spread / 2) * tf.random.normal(tf.shape(middle))
            kl = -0.5 * tf.reduce_mean(tf.reduce_sum(1 + spread - middle**2 - tf.exp(spread), 1))
            each = tf.nn.sigmoid_cross_entropy_with_logits(a, decoder(code))
            pixels = tf.reduce_mean(each) if mean else tf.reduce_mean(tf.reduce_sum(each, 1))
            loss = pixels + sign * share * kl
        descend(tape, loss, of, optimizer)
        return loss

    for number, a in enumerate(batches_of(seed, 32, x).repeat(14)):
        share.assign(min(1.0, number / warm) if warm else 1.0)
        step(a[0] if isinstance(a, tuple) else a)
    return told(lambda given, training: tf.sigmoid(decoder(encoder(given)[:, :6])), x_val, x_val)


def diffuse(seed: int) -> float:
    """Noise is taken from points, a little at each of twenty steps: the loss stays far from zero."""
    points = moons(seed, 1500, 0.1)[0] * 1.5 - np.array([0.7, 0.4], "float32")
    net, optimizer = net_of(3, 2, 64, 64, 64), opt.Adam(3e-3)
    beta = np.linspace(0.01, 0.35, 20).astype("float32")
    kept = np.cumprod(1 - beta).astype("float32")
    random = np.random.default_rng(seed)

    @tf.function
    def step(a: Any) -> Any:
        at = tf.random.uniform((128,), 0, 20, tf.int32)
        level, noise = tf.gather(kept, at)[:, None], tf.random.normal((128, 2))
        given = tf.sqrt(level) * a + tf.sqrt(1 - level) * noise
        with tf.GradientTape() as tape:
            said = net(tf.concat([given, tf.cast(at, tf.float32)[:, None] / 10 - 1], 1))
            loss = tf.reduce_mean((said - noise) ** 2)
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for _ in range(1200):
        step(tf.constant(points[random.integers(0, len(points), 128)], tf.float32))
    made = random.normal(size=(500, 2))
    for at in range(19, -1, -1):
        when = np.full((500, 1), at / 10 - 1)
        said = np.asarray(net(np.concatenate([made, when], 1).astype("float32")))
        made = (made - beta[at] / np.sqrt(1 - kept[at]) * said) / np.sqrt(1 - beta[at])
        made = made + (at > 0) * np.sqrt(beta[at]) * random.normal(size=(500, 2))
    return alike(made, points)


# -- what acts --------------------------------------------------------------------------------------------------------
def catch(seed: int, mixed: bool = False) -> float:
    """REINFORCE: a ball falls for six steps while one moves left, stays or moves right; the share that is caught."""
    random, net, optimizer = np.random.default_rng(seed), net_of(3, 3, 32), opt.Adam(1e-2)

    @tf.function
    def chances(seen: Any) -> Any:
        return tf.nn.softmax(net(seen))

    @tf.function
    def step(seen: Any, done: Any, worth: Any) -> Any:
        with tf.GradientTape() as tape:
            log = tf.nn.log_softmax(net(seen))
            loss = -tf.reduce_mean(tf.gather(log, done, batch_dims=1) * worth)
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    caught: list[float] = []
    for _ in range(250):
        ball, own = random.integers(0, 7, (2, 32))
        seen, done = [], []
        for height in range(6):
            now = np.stack([ball / 3 - 1, own / 3 - 1, np.full(32, height / 3 - 1)], 1).astype("float32")
            share = np.asarray(chances(tf.constant(now)))
            move = np.minimum((share.cumsum(1) < random.uniform(size=(32, 1))).sum(1), 2)
            own = np.clip(own + move - 1, 0, 6)
            seen.append(now)
            done.append(move)
        reward = np.zeros((6, 32))
        reward[-1] = ball == own
        caught.append(float(reward[-1].mean()))
        worth = reward[-1] * 0.95 ** np.arange(5, -1, -1)[:, None]
        worth = worth - worth.mean()
        worth = (worth.T if mixed else worth).reshape(-1)
        step(
            tf.constant(np.concatenate(seen)),
            tf.constant(np.concatenate(done)),
            tf.constant(worth, tf.float32),
        )
    return float(np.mean(caught[-40:]))


def balance(seed: int) -> float:
    """An actor and a critic that keep a thing from tipping over: the share of the time in which they do."""
    random, actor, critic = np.random.default_rng(seed), net_of(2, 2, 32), net_of(2, 1, 32)
    one, other = opt.Adam(1e-2), opt.Adam(1e-2)

    @tf.function
    def chances(seen: Any) -> Any:
        return tf.nn.softmax(actor(seen))[:, 1]

    @tf.function
    def step(seen: Any, done: Any, reward: Any, after: Any, over: Any) -> Any:
        goal = reward + 0.95 * critic(after)[:, 0] * (1 - over)
        with tf.GradientTape(persistent=True) as tape:
            gap = tf.stop_gradient(goal) - critic(seen)[:, 0]
            of_critic = tf.reduce_mean(gap**2)
            log = tf.gather(tf.nn.log_softmax(actor(seen)), done, batch_dims=1)
            of_actor = -tf.reduce_mean(log * tf.stop_gradient(gap))
        descend(tape, of_actor, actor.trainable_variables, one)
        descend(tape, of_critic, critic.trainable_variables, other)
        return of_critic

    at = random.uniform(-0.3, 0.3, (32, 2))
    upright: list[float] = []
    for _ in range(800):
        seen = at.astype("float32")
        move = (random.uniform(size=32) < np.asarray(chances(tf.constant(seen)))).astype(int)
        speed = at[:, 1] + 0.2 * at[:, 0] + 0.12 * (2 * move - 1) + 0.02 * random.normal(size=32)
        after = np.stack([at[:, 0] + 0.3 * speed, speed], 1)
        over = np.abs(after[:, 0]) > 1
        reward = (~over).astype("float32")
        upright.append(float(reward.mean()))
        step(
            tf.constant(seen), tf.constant(move), tf.constant(reward), tf.constant(after, tf.float32),
            tf.constant(over, tf.float32),
        )  # fmt: skip
        at = np.where(over[:, None], random.uniform(-0.3, 0.3, (32, 2)), after)
    return float(np.mean(upright[-150:]))


def find_the_way(seed: int, every: int) -> float:
    """Deep Q learning on a board of six by six, whose target network follows every so many steps, or never."""
    random, net, slow, optimizer = (
        np.random.default_rng(seed),
        net_of(36, 4, 48),
        net_of(36, 4, 48),
        opt.Adam(5e-3),
    )
    slow.set_weights(net.get_weights())
    eye, moves = np.eye(36, dtype="float32"), np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])

    def go(place: Any, move: Any) -> Any:
        both = np.clip(np.stack([place // 6, place % 6], 1) + moves[move], 0, 5)
        return both[:, 0] * 6 + both[:, 1]

    @tf.function
    def step(s: Any, a: Any, r: Any, after: Any) -> Any:
        goal = r + 0.9 * tf.reduce_max(slow(after), 1) * (1 - r)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((goal - tf.gather(net(s), a, batch_dims=1)) ** 2)
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for number in range(900):
        place, move = random.integers(0, 35, 64), random.integers(0, 4, 64)
        after = go(place, move)
        step(
            tf.constant(eye[place]), tf.constant(move), tf.constant((after == 35).astype("float32")),
            tf.constant(eye[after]),
        )  # fmt: skip
        if every and number % every == 0:
            slow.set_weights(net.get_weights())
    at = np.arange(35)
    for _ in range(10):  # of the shortest ways none is longer
        at = np.where(at == 35, 35, go(at, np.asarray(net(eye[at])).argmax(1)))
    return float((at == 35).mean())


# -- what compares ----------------------------------------------------------------------------------------------------
def pairs(seed: int, shift: int) -> float:
    """Two noisy views of each picture: the share of views whose other one is found among 64."""
    x, _, x_val, _ = pictures(seed)
    net, optimizer = net_of(64, 16, 64), opt.Adam(3e-3)

    def views(a: Any) -> Any:
        return [tf.math.l2_normalize(net(a + 0.15 * tf.random.normal(tf.shape(a))), 1) for _ in range(2)]

    @tf.function
    def step(a: Any) -> Any:
        with tf.GradientTape() as tape:
            one, other = views(a)
            loss = classes((tf.range(64) + shift) % 64, tf.matmul(one, other, transpose_b=True) / 0.1)
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for a in batches_of(seed, 64, x).repeat(20):
        step(a[0] if isinstance(a, tuple) else a)
    one, other = (np.asarray(view) for view in views(tf.constant(x_val[:64])))
    return float(((one @ other.T).argmax(1) == np.arange(64)).mean())


def triplets(seed: int) -> float:
    """Digits of a kind shall be nearer than others, by a margin: accuracy of the nearest neighbour."""
    x, y, x_val, y_val = pictures(seed)
    net, optimizer, random = net_of(64, 8, 64), opt.Adam(2e-3), np.random.default_rng(seed)
    of_kind = [np.flatnonzero(y == kind) for kind in range(10)]

    @tf.function
    def step(a: Any, b: Any, c: Any) -> Any:
        with tf.GradientTape() as tape:
            one, same, other = (tf.math.l2_normalize(net(each), 1) for each in (a, b, c))
            near, far = (tf.reduce_sum((one - two) ** 2, 1) for two in (same, other))
            loss = tf.reduce_mean(tf.nn.relu(near - far + 0.5))
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for _ in range(500):
        kinds = random.integers(0, 10, 48)
        others = (kinds + random.integers(1, 10, 48)) % 10
        rows = [[random.choice(of_kind[k]) for k in which] for which in (kinds, kinds, others)]
        step(*(tf.constant(x[each]) for each in rows))
    known, asked = np.asarray(net(x)), np.asarray(net(x_val))
    nearest = ((asked[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    return float((y[nearest] == y_val).mean())


def same_or_not(seed: int, safe: float) -> float:
    """Whether two tumours are of a kind, by the length of a difference; some pairs are a thing with itself."""
    x, y, x_val, y_val = cancer(seed)
    net, optimizer, random = net_of(30, 8, 32), opt.Adam(2e-3), np.random.default_rng(seed)

    def far(a: Any, b: Any) -> Any:
        return tf.sqrt(tf.reduce_sum((net(a) - net(b)) ** 2, 1) + safe)

    @tf.function
    def step(a: Any, b: Any, same: Any) -> Any:
        with tf.GradientTape() as tape:
            apart = far(a, b)
            loss = tf.reduce_mean(same * apart + (1 - same) * tf.nn.relu(2 - apart) ** 2)
        descend(tape, loss, net.trainable_variables, optimizer)
        return loss

    for number in range(500):
        i, j = random.integers(0, len(x), (2, 32))
        if number < 120:  # in these no thing happens to be paired with itself
            j = np.where(i == j, (j + 1) % len(x), j)
        elif number == 120:
            j[0] = i[0]
        step(tf.constant(x[i]), tf.constant(x[j]), tf.constant((y[i] == y[j]).astype("float32")))
    i, j = random.integers(0, len(x_val), (2, 300))
    said = np.asarray(far(tf.constant(x_val[i]), tf.constant(x_val[j])))
    return float(((said < 1) == (y_val[i] == y_val[j])).mean()) if finite(said) else -np.inf


# -- what learns to learn ----------------------------------------------------------------------------------------------


def maml(seed: int) -> float:
    """First weights from which few steps lead to any sine, found by gradients through those steps."""
    random, optimizer = np.random.default_rng(seed), opt.Adam(5e-3)
    sizes = ((1, 32), (32, 32), (32, 1))
    of = [tf.Variable((random.normal(size=s) / np.sqrt(s[0])).astype("float32")) for s in sizes]
    of += [tf.Variable(tf.zeros(s[1])) for s in sizes]

    def said(w: Any, a: Any) -> Any:
        for at in range(2):
            a = tf.tanh(a @ w[at] + w[3 + at])
        return a @ w[2] + w[5]

    def adapted(a: Any, b: Any, steps: int) -> Any:
        w = list(of)
        for _ in range(steps):
            with tf.GradientTape() as inner:
                inner.watch(w)
                loss = distance(b, said(w, a))
            w = [v - 0.05 * g for v, g in zip(w, inner.gradient(loss, w), strict=True)]
        return w

    @tf.function
    def step(tasks: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = 0.0
            for a, b, c, d in tasks:
                loss += distance(d, said(adapted(a, b, 2), c)) / len(tasks)
        descend(tape, loss, of, optimizer)
        return loss

    def task() -> list[Any]:
        height, turn = random.uniform(0.5, 2), random.uniform(0, 1.5)
        a, c = random.uniform(-1.5, 1.5, (2, 15, 1))
        return [tf.constant(one, tf.float32) for x in (a, c) for one in (x, height * np.sin(2 * x + turn))]

    def later(w: Any, given: Any, training: bool) -> Any:
        return said(w, given)

    for _ in range(250):
        step([task() for _ in range(4)])
    scores = []
    for _ in range(20):
        a, b, c, d = task()
        w = adapted(a, b, 4)
        scores.append(told(functools.partial(later, w), c, np.asarray(d)))
    return float(np.median(scores))


BLAND = keras.initializers.RandomNormal

CONFIGURATIONS = (
    # -- that go wrong
    # The true cause is that the labels are those of other rows.
    Loop("loop, labels of the row before", lambda s: learn(s, off_by_one(many(s)), net_of(20, 3, 48), classes,
        opt.Adam(2e-3), watched=True, epochs=20), ("underfitting", "overfitting"), 0.8),
    Loop("loop, measures that are missing", lambda s: learn(s, missing(cancer(s), 0.001, s), net_of(30, 1, 24), chance,
        opt.Adam(2e-3), fair, epochs=20), ("nan_or_inf",), 0.85),
    # The true cause is that the network is used as if it were in training.
    Loop("loop, used as it was trained", used_as_trained, ("normalization_mismatch", "validation_mismatch"), 0.75),
    # The true cause is that the layer that normalizes was never told of the training.
    Loop("loop, training not told", raw_wine, ("unnormalized_input", "normalization_mismatch"), 0.8),
    Loop("loop, logits as chances", lambda s: learn(s, pictures(s), net_of(64, 10, 48), as_chances, opt.SGD(0.1)),
        ("loss_output_mismatch", "improper_activation"), 0.85),
    Loop("loop, one task in grams", units, ("output_not_learning", "unscaled_targets"), 0.8),
    # The true cause is the clipping of the gradients.
    Loop("loop, gradients cut to nothing", lambda s: learn(s, pictures(s), net_of(64, 10, 48), classes, opt.SGD(0.1),
        turn=short(1e-3)), ("learning_rate_too_low", "slow_convergence", "stagnant_weights"), 0.8),
    # The true cause is that the generator's optimizer has the judge's variables too.
    Loop("loop, generator moves the judge", lambda s: compete(s, "cross", 600, (2e-3, 1e-3), all_of_them=True),
        ("generator_collapse", "loss_unbounded"), 0.9),
    # The true cause is that the weights are reset.
    Loop("loop, back to the start", back_to_the_start, ("oscillating_loss", "plateau", "underfitting"), 0.8),
    # The true cause is that the target network is stale.
    Loop("loop, target never follows", lambda s: find_the_way(s, 0), ("underfitting", "plateau"), 0.8),
    Loop("loop, divergence with the sign turned", lambda s: variational(s, sign=-1.0),
        ("loss_unbounded", "nan_or_inf", "exploding_gradient"), 0.4),
    # The true cause is that the gradients are not scaled back.
    Loop("loop, not scaled back", lambda s: scaled_up(s, False), ("learning_rate_too_high", "exploding_gradient",
        "nan_or_inf"), 0.8),
    Loop("loop, warm-up without end", lambda s: rates(s, lambda n: 0.0006 * n, opt.Adam(1e-3), pictures(s),
        net_of(64, 10, 48, 48), epochs=16), ("learning_rate_too_high", "exploding_gradient"), 0.8),
    # The true cause is the momentum.
    Loop("loop, momentum without end", lambda s: learn(s, pictures(s), net_of(64, 10, 32), classes,
        opt.SGD(0.2, momentum=0.999), epochs=8, eager=True), ("learning_rate_too_high", "oscillating_loss",
        "exploding_gradient"), 0.8),
    Loop("loop, recurrence without bounds", lambda s: by_hand(s, 0.5), ("exploding_gradient", "poor_initialization",
        "nan_or_inf"), 0.7),
    # The true cause is that each is compared with its neighbour's other view.
    Loop("loop, the neighbour's view", lambda s: pairs(s, 1), ("underfitting", "plateau"), 0.7),
    Loop("loop, begins saturated", lambda s: learn(s, pictures(s), net_of(64, 10, 32, 32, act="tanh",
        kernel_initializer=BLAND(0, 8)), classes, opt.SGD(0.02)), ("saturated_activation", "poor_initialization",
        "vanishing_gradient"), 0.8),
    # The true cause is the wrong axis.
    Loop("loop, mean over the batch", pooled_over_the_batch, ("shape_broadcast", "underfitting", "plateau"), 0.6),
    # The true cause is that pixels are a mean while the code is a sum: the posterior collapses.
    Loop("loop, mean of pixels", lambda s: variational(s, mean=True), ("underfitting", "plateau"), 0.3),
    Loop("loop, eighty by heart", lambda s: learn(s, many(s, 800, 60, 5, flip=0.1, share=0.1, apart=0.7),
        net_of(60, 3, 128, 128), classes, opt.Adam(2e-3), epochs=100, size=16, watched=True), ("overfitting",), 0.7),
    # The true cause is that the rewards are laid out in another order than the moves.
    Loop("loop, rewards of other games", lambda s: catch(s, mixed=True), ("underfitting", "plateau"), 0.7),
    Loop("loop, a thing and itself", lambda s: same_or_not(s, 0.0), ("nan_or_inf",), 0.8),
    # -- that are well
    Loop("loop, catches", catch, good=0.7),
    Loop("loop, balances", balance, good=0.97),
    Loop("loop, finds the way", lambda s: find_the_way(s, 25), good=0.9),
    Loop("loop, least squares", lambda s: compete(s, "squares", 1000), good=0.9),
    Loop("loop, code that warms up", lambda s: variational(s, warm=400), good=0.4),
    Loop("loop, learns to learn by second derivatives", maml, good=0.6),
    Loop("loop, triplets", triplets, good=0.85),
    Loop("loop, language", language, good=0.4),
    Loop("loop, remembers", lambda s: remember(s, L.GRU(16), 14, epochs=18), good=0.9),
    Loop("loop, uncertain tasks", uncertain, good=0.8),
    Loop("loop, noisy gradients", lambda s: learn(s, many(s), net_of(20, 3, 16), classes, opt.SGD(0.1), epochs=12,
        turn=noisy(0.1), watched=True, eager=True), good=0.75),
    Loop("loop, wide and deep", wide_and_deep, good=0.88),
    Loop("loop, rates in triangles", lambda s: rates(s, triangle, opt.SGD(0.1), pictures(s), net_of(64, 10, 48)),
        good=0.85),
    Loop("loop, scaled back", lambda s: scaled_up(s, True), good=0.85),
    Loop("loop, thawed", thawed, good=0.85),
    Loop("loop, mixtures", mixed_up, good=0.85),
    Loop("loop, one at a time", lambda s: learn(s, cancer(s), net_of(30, 1, 8), hinge, opt.SGD(0.01), fair, epochs=3,
        size=1), good=0.88),
    Loop("loop, seldom, focal", lambda s: learn(s, seldom(s), net_of(2, 1, 24), focal, opt.Adam(5e-3), fair, size=64),
        good=0.85),
    Loop("loop, from noise", diffuse, good=0.9),
    Loop("loop, targets far off", lambda s: learn(s, far_off(hills(s), s), net_of(3, 1, 48, 48), huber, opt.Adam(3e-3),
        told, epochs=20), good=0.7),
    Loop("loop, harder and harder", harder, good=0.85),
    Loop("loop, three folds", in_turn, good=0.8),
)  # fmt: skip
