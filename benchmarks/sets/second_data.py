"""Data of the second set: small, seeded, split into a part to train on and one that is held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import datasets

from benchmarks.sets.fresh_data import Arrays, halves


def cancer(seed: int, raw: bool = False) -> Arrays:
    """Tumours, benign or not, by thirty measures."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return _scaled(halves(x, y, seed), raw)


def wine(seed: int, raw: bool = False, share: float = 0.6) -> Arrays:
    """Wines of three growers, by thirteen measures; one of them is in thousands."""
    x, y = datasets.load_wine(return_X_y=True)
    return _scaled(halves(x, y, seed, share), raw)


def _scaled(data: Arrays, raw: bool) -> Arrays:
    x, y, x_val, y_val = data
    if raw:
        return data
    mean, spread = x.mean(0), x.std(0)
    return (x - mean) / spread, y, (x_val - mean) / spread, y_val


def pictures(seed: int, size: int = 1797) -> Arrays:
    """Handwritten digits, as rows of pixels between 0 and 1."""
    x, y = datasets.load_digits(return_X_y=True)
    return halves(x[:size] / 16, y[:size], seed)


def hills(seed: int, size: int = 1600, noise: float = 0.1) -> Arrays:
    """The height of a landscape, standardized, at places of which a third measure does not matter."""
    random = np.random.default_rng(seed + 20)
    x = random.uniform(-1, 1, (size, 3))
    y = np.sin(4 * x[:, 0]) + np.cos(3 * x[:, 1]) * x[:, 0] + x[:, 1]
    return halves(x, ((y - y.mean()) / y.std() + noise * random.normal(size=size)).astype("float32"), seed)


def moons(seed: int, size: int = 1200, noise: float = 0.2) -> Arrays:
    x, y = datasets.make_moons(size, noise=noise, random_state=seed)
    return halves(x, y, seed)


def many(
    seed: int, size: int = 1200, features: int = 20, told: int = 8, classes: int = 3, flip: float = 0.02,
    share: float = 0.75, apart: float = 1.5,
) -> Arrays:  # fmt: skip
    """Clusters in many dimensions, of which only some tell the class."""
    x, y = datasets.make_classification(
        size, features, n_informative=told, n_redundant=0, n_classes=classes, n_clusters_per_class=1,
        flip_y=flip, class_sep=apart, random_state=seed + 21,
    )  # fmt: skip
    return halves(x, y, seed, share)


def seldom(seed: int, share: float = 0.05, size: int = 3000) -> Arrays:
    """Two classes, of which one is seldom, in rings around each other that overlap."""
    random = np.random.default_rng(seed + 22)
    y = (random.uniform(size=size) < share).astype(int)
    angle, r = (
        random.uniform(0, 2 * np.pi, size),
        np.where(y == 1, 0.5, 1.5) + 0.25 * random.normal(size=size),
    )
    return halves(np.stack([r * np.cos(angle), r * np.sin(angle)], 1), y, seed)


def bits(seed: int, many_: int = 3, more: int = 3, size: int = 1600) -> Arrays:
    """The parity of some bits, with other bits that do not matter."""
    random = np.random.default_rng(seed + 23)
    x = random.integers(0, 2, (size, many_ + more))
    y = x[:, :many_].sum(1) % 2
    return halves(2.0 * x - 1 + 0.1 * random.normal(size=x.shape), y, seed)


def shapes(seed: int, size: int = 1200) -> Arrays:
    """Noisy pictures of a square, a cross or a ring, somewhere."""
    random = np.random.default_rng(seed + 24)
    square, cross = np.ones((5, 5)), np.zeros((5, 5))
    square[1:4, 1:4] = 0
    cross[2], cross[:, 2] = 1, 1
    ring = square.copy()
    ring[::4, ::4] = 0
    ring[2, 2] = 1
    y = random.integers(0, 3, size)
    x = 0.25 * random.normal(size=(size, 10, 10, 1))
    for picture, kind in zip(x, y, strict=True):
        top, left = random.integers(0, 6, 2)
        picture[top : top + 5, left : left + 5, 0] += (square, cross, ring)[kind]
    return halves(x, y, seed)


def colours(seed: int, size: int = 1200) -> Arrays:
    """Pictures of a red, a green or a blue patch before a noisy ground."""
    random = np.random.default_rng(seed + 25)
    y = random.integers(0, 3, size)
    x = random.uniform(0, 0.6, (size, 8, 8, 3))
    for picture, kind in zip(x, y, strict=True):
        top, left = random.integers(0, 5, 2)
        picture[top : top + 4, left : left + 4, kind] += 0.35
    return halves(x, y, seed)


def before(seed: int, size: int = 1500, length: int = 12) -> Arrays:
    """Sequences of symbols; the class is whether the symbol 1 comes before the symbol 2."""
    random = np.random.default_rng(seed + 26)
    x = random.integers(3, 12, (size, length))
    places = np.array([random.choice(length, 2, replace=False) for _ in range(size)])
    x[np.arange(size), places[:, 0]], x[np.arange(size), places[:, 1]] = 1, 2
    return halves(x, (places[:, 0] < places[:, 1]).astype(int), seed)


def padded(seed: int, size: int = 1200, length: int = 90, known: int = 60) -> Arrays:
    """Short texts, with zeros after them; the class is whether good words outnumber bad ones."""
    random = np.random.default_rng(seed + 27)
    worth = np.where(np.arange(known) % 2, 1.0, -1.0)
    x, y = np.zeros((size, length), int), np.zeros(size, int)
    for i in range(size):
        words = random.integers(1, known, random.choice([5, 7, 9]))
        x[i, : len(words)], y[i] = words, worth[words].sum() > 0
    return halves(x, y, seed)


def texts(seed: int, size: int = 1400, length: int = 15, known: int = 120) -> Arrays:
    """Texts of four subjects, each of which prefers words of its own."""
    random = np.random.default_rng(seed + 28)
    prefers = random.dirichlet(np.full(known, 0.25), 4)
    y = random.integers(0, 4, size)
    return halves(np.stack([random.choice(known, length, p=prefers[one]) for one in y]), y, seed)


def chain(seed: int, size: int = 900, length: int = 16, known: int = 8) -> Arrays:
    """Text of a language in which a symbol depends on the one before; the targets are the next ones."""
    random = np.random.default_rng(seed + 30)
    moves = random.dirichlet(np.full(known, 0.3), known)
    text = np.zeros((size, length + 1), int)
    text[:, 0] = random.integers(0, known, size)
    for at in range(length):
        text[:, at + 1] = [random.choice(known, p=moves[one]) for one in text[:, at]]
    return halves(text[:, :-1], text[:, 1:], seed)


def recall(seed: int, length: int, size: int = 1200, known: int = 4) -> Arrays:
    """Sequences whose first symbol is to be named at their end."""
    random = np.random.default_rng(seed + 31)
    x = random.integers(known, known + 6, (size, length))
    x[:, 0] = random.integers(0, known, size)
    return halves(x, x[:, 0].copy(), seed)


def series(
    seed: int, rise: float = 0.0, noise: float = 0.2, by_time: bool = False, window: int = 16
) -> Arrays:
    """The next value of a series from the last ones; the later part is held out if `by_time`."""
    random = np.random.default_rng(seed + 32)
    at = np.arange(1400)
    values = np.sin(at / 4) + 0.5 * np.sin(at / 9) + rise * at + noise * random.normal(size=1400)
    x = np.stack([values[i : i + window] for i in range(1400 - window)])[..., None]
    y, cut = values[window:].astype("float32"), 1000
    x = x.astype("float32")
    return (x[:cut], y[:cut], x[cut:], y[cut:]) if by_time else halves(x, y, seed)


def flipped(data: Arrays, share: float, classes: int, seed: int) -> tuple[Arrays, Any]:
    """The same with a share of the labels to train on replaced by wrong ones, and which they are."""
    random = np.random.default_rng(seed + 34)
    x, y, x_val, y_val = data
    wrong = random.uniform(size=len(y)) < share
    return (x, np.where(wrong, (y + random.integers(1, classes, len(y))) % classes, y), x_val, y_val), wrong
