"""Data for the configurations of `benchmarks.sets.tasks`, different from those of the three earlier sets."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from benchmarks.sets.recipes import Data, digits, split


def reviews(
    seed: int,
    mode: str = "int",
    train: int = 1100,
    wrong: float = 0.0,
    number_from: int = 0,
    shuffled: bool = False,
) -> Data:
    """Texts of made-up words on one of four topics, as TextVectorization makes numbers of them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 1500)
    share = np.tile(1 / np.arange(1.0, 301), (4, 1))  # a few words are in every text, most are seldom
    for topic in range(4):
        share[topic, 20 + topic :: 4] *= 4
    share /= share.sum(1, keepdims=True)
    texts = [
        " ".join(f"word{at}" for at in rng.choice(300, rng.integers(12, 30), p=share[topic])) for topic in y
    ]
    vectorize = keras.layers.TextVectorization(320, output_mode=mode, output_sequence_length=None)
    vectorize.adapt(texts)
    changed = rng.random(1500) < wrong
    y[changed] = rng.integers(0, 4, int(changed.sum()))
    y = rng.permutation(y) if shuffled else y
    return split(np.asarray(vectorize(texts)), y.astype(np.int64) + number_from, train, seed)


def beats(seed: int, scale: float = 1.0, where: bool = False) -> Any:
    """Heartbeats: as usual, too wide, or upside down; with `where`, also when they are."""
    rng = np.random.default_rng(seed)
    y, at = rng.choice(3, 1200, p=(0.5, 0.3, 0.2)), rng.uniform(-0.4, 0.4, (1200, 1))
    t = np.linspace(-1, 1, 96)
    wide, upright = np.where(y == 1, 0.15, 0.08)[:, None], np.where(y == 2, -1.0, 1.0)[:, None]
    x = upright * np.exp(-(((t - at) / wide) ** 2)) + 0.3 * np.exp(-(((t - at - 0.4) / 0.15) ** 2))
    x += 0.3 * np.sin(2 * t + 6 * rng.random((1200, 1))) + 0.12 * rng.normal(size=(1200, 96))
    if not where:
        return split(x[..., None] * scale, y, 900, seed)
    x, both, x_val, both_val = split(x[..., None], np.hstack([y[:, None], 2 * at]), 900, seed)
    parts = ({"kind": one[:, 0].astype(np.int64), "when": one[:, 1]} for one in (both, both_val))
    return x, next(parts), x_val, next(parts)


def census(seed: int, raw: bool = False, gaps: bool = False, wrong: float = 0.0, train: int = 1800) -> Any:
    """Three categories, five numbers and which of these are missing: two classes."""
    rng = np.random.default_rng(seed)
    kinds, numbers = rng.integers(0, (12, 6, 30), (2400, 3)), rng.normal(size=(2400, 5))
    worth = np.random.default_rng(5).normal(size=(3, 30))
    score = worth[np.arange(3), kinds].sum(1) + numbers @ [1.0, -0.7, 0.5, 0.3, 0.0]
    score += 0.8 * numbers[:, 0] * numbers[:, 1] + 0.4 * rng.normal(size=2400)
    y = ((score > 0) ^ (rng.random(2400) < wrong)).astype(np.int64)
    missing = rng.random(numbers.shape) < 0.1
    numbers = numbers * (4.0, 12.0, 1e4, 3e5, 1.0) + (40.0, 40.0, 5e4, 6e5, 0.0) if raw else numbers
    numbers = np.where(missing, np.nan if gaps else 0.0, numbers)
    x = np.hstack([kinds + np.array([0, 12, 18]), numbers, missing])
    x, y, x_val, y_val = split(x, y, train, seed)
    return [x[:, :3].astype(np.int32), x[:, 3:]], y, [x_val[:, :3].astype(np.int32), x_val[:, 3:]], y_val


def tags(seed: int) -> Data:
    """Counts of thirty words, and which of eight tags are right."""
    from sklearn.datasets import make_multilabel_classification

    x, y = make_multilabel_classification(1600, 30, n_classes=8, n_labels=3, length=80, random_state=seed)
    x = np.log1p(x)
    return split((x - x.mean(0)) / x.std(0), y.astype(np.float32), 1200, seed)


def levels(seed: int, cumulative: bool = True) -> Data:
    """Five levels that have an order; of each of the upper four, whether it is reached."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1600, 12))
    latent = x @ np.random.default_rng(2).normal(size=12) + np.abs(x[:, 0]) + 0.3 * rng.normal(size=1600)
    y = np.digitize(latent, np.quantile(latent, (0.2, 0.4, 0.6, 0.8)))
    if cumulative:
        return split(x, (y[:, None] > np.arange(4)).astype(np.float32), 1200, seed)
    return split(x, y.astype(np.float32), 1200, seed)


def waits(seed: int) -> Data:
    """Times that are more certain for some than for others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1800, 6))
    spread = 0.15 + 0.5 / (1 + np.exp(-2 * x[:, 2]))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + spread * rng.normal(size=1800)
    return split(x, y[:, None].astype(np.float32), 1350, seed)


def lives(seed: int, raw: float = 1.0) -> Data:
    """How long things lasted, and whether they had failed by then."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1600, 8))
    time = rng.exponential(np.exp(-1.0 * x[:, 0] + 0.7 * x[:, 1] - 0.5 * x[:, 2] * x[:, 3]))
    end = rng.exponential(2.0, 1600)
    y = np.stack([np.minimum(time, end), time <= end], 1).astype(np.float32)
    return split(x * raw, y, 1200, seed)


def padded(seed: int) -> Data:
    """Sequences of 6 to 24 moments, then zeros: is the first or the second value higher on the whole?"""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1600, 24, 2)) * (np.arange(24) < rng.integers(6, 25, (1600, 1)))[..., None]
    return split(x, (x[..., 0].sum(1) > x[..., 1].sum(1)).astype(np.int64), 1200, seed)


def speech(seed: int) -> Data:
    """Sentences of twelve words; a word's tag is known from the one before it or, failing that, the one behind it."""
    x = np.random.default_rng(seed).integers(0, 12, (1100, 18))
    before, behind = np.roll(x, 1, 1), np.roll(x, -1, 1)
    before[:, 0] = behind[:, -1] = 5
    return split(x, np.where(before < 3, 1, np.where(behind > 8, 2, 0)).astype(np.int64), 800, seed)


def echoes(seed: int) -> Data:
    """Noise, and at each moment: was it positive two and seven moments ago, on the whole?"""
    x = np.random.default_rng(seed).normal(size=(900, 40, 1))
    late = np.zeros_like(x)
    late[:, 2:] += x[:, :-2]
    late[:, 7:] += x[:, :-7]
    return split(x, (late > 0).astype(np.int64), 650, seed)


def spots(seed: int, scale: float = 1.0) -> Data:
    """Pictures of none to three spots: how many?"""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 1000)
    rows, columns = np.mgrid[:20, :20]
    x = 0.15 * rng.random((1000, 20, 20))
    for at, many in enumerate(y):
        for row, column in rng.uniform(3, 17, (many, 2)):
            x[at] += 0.6 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 3.0)
    return split(x[..., None] * scale, y, 750, seed)


def pieces(seed: int) -> Data:
    """Pictures of a bright disc and a paler square: which is each pixel of, if of any?"""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:24, :24][:, None]
    at = rng.integers(5, 19, (2, 2, 600, 1, 1))
    square = np.maximum(np.abs(rows - at[0, 0]), np.abs(columns - at[0, 1])) <= 4
    disc = np.hypot(rows - at[1, 0], columns - at[1, 1]) <= 4.5
    y = np.where(disc, 2, np.where(square, 1, 0)).astype(np.int64)
    return split((0.6 * y + 0.25 * rng.normal(size=y.shape))[..., None], y, 440, seed)


def triples(seed: int, same: bool = False) -> Any:
    """A digit, another that is the same one, and one that is not; with `same`, the two are at times one picture."""
    rng = np.random.default_rng(seed)

    def chosen(x: np.ndarray, y: np.ndarray, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        first = rng.integers(0, len(x), count)
        alike = np.array([rng.choice(np.flatnonzero(y == y[at])) for at in first])
        unlike = np.array([rng.choice(np.flatnonzero(y != y[at])) for at in first])
        if same:
            alike[::150] = first[::150]
        return [x[first], x[alike], x[unlike]], np.zeros((count, 2), np.float32)

    x, y, x_val, y_val = digits(seed)
    return *chosen(x, y, 1500), *chosen(x_val, y_val, 500)
