"""Data of the fresh set: small, seeded, split into a part to train on and one that is held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import datasets

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def halves(x: Any, y: Any, seed: int, share: float = 0.75) -> Arrays:
    order = np.random.default_rng(seed).permutation(len(x))
    x, y, cut = np.asarray(x)[order], np.asarray(y)[order], int(len(x) * share)
    x = x.astype("float32") if x.dtype.kind == "f" else x
    return x[:cut], y[:cut], x[cut:], y[cut:]


def digits(seed: int, size: int = 1797) -> Arrays:
    x, y = datasets.load_digits(return_X_y=True)
    return halves(x[:size] / 16, y[:size], seed)


def images(seed: int, size: int = 1797) -> Arrays:
    x, y, x_val, y_val = digits(seed, size)
    return x.reshape(-1, 8, 8, 1), y, x_val.reshape(-1, 8, 8, 1), y_val


def same(seed: int) -> Arrays:
    """Digits that are their own targets."""
    x, _, x_val, _ = digits(seed)
    return x, x, x_val, x_val


def table(seed: int, size: int = 1600, noise: float = 0.5, scale: float = 1.0, offset: float = 0.0) -> Arrays:
    """A regression with standardized targets, unless a scale and an offset are given."""
    x, y = datasets.make_friedman1(size, n_features=8, noise=noise, random_state=seed)
    y = (y - y.mean()) / y.std() * scale + offset
    return halves(x * 2 - 1, y.astype("float32"), seed)


def rings(seed: int, size: int = 1200) -> Arrays:
    x, y = datasets.make_circles(size, noise=0.1, factor=0.5, random_state=seed)
    return halves(x * 1.5, y, seed)


def spirals(seed: int, size: int = 1500) -> Arrays:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, size)
    r = random.uniform(0.1, 1, size)
    angle = 6 * r + y * 2 * np.pi / 3 + 0.15 * random.normal(size=size)
    return halves(np.stack([r * np.cos(angle), r * np.sin(angle)], 1) * 2, y, seed)


def rare(seed: int, share: float = 0.04, size: int = 3000) -> Arrays:
    """Two classes, of which one is rare; they overlap."""
    random = np.random.default_rng(seed)
    y = (random.uniform(size=size) < share).astype(int)
    x = random.normal(size=(size, 6)) + 1.1 * y[:, None] * np.array([1, -1, 1, 0, 0, 0.5])
    return halves(x, y, seed)


def words(seed: int, size: int = 1200, length: int = 20, known: int = 200) -> Arrays:
    """Texts of word numbers; the class is whether good words outnumber bad ones."""
    random = np.random.default_rng(seed + 3)
    worth = random.normal(size=known)
    x = random.integers(0, known, (size, length))
    return halves(x, (worth[x].sum(1) > 0).astype(int), seed)


def waves(seed: int, size: int = 900, length: int = 40) -> Arrays:
    """Sequences of one of three frequencies, with noise."""
    random = np.random.default_rng(seed + 5)
    y = random.integers(0, 3, size)
    time = np.arange(length)[None]
    speed = np.array([0.2, 0.35, 0.6])[y][:, None]
    x = np.sin(speed * time + random.uniform(0, 6, (size, 1))) + 0.4 * random.normal(size=(size, length))
    return halves(x[..., None], y, seed)


def adding(seed: int, size: int = 1500, length: int = 12) -> Arrays:
    """Sequences of numbers and marks; the target is the sum of the two numbers that are marked."""
    random = np.random.default_rng(seed + 7)
    x = np.zeros((size, length, 2))
    x[..., 0] = random.uniform(-1, 1, (size, length))
    for row in x:
        row[random.choice(length, 2, replace=False), 1] = 1
    return halves(x, (x[..., 0] * x[..., 1]).sum(1).astype("float32"), seed)


def strokes(seed: int, size: int = 1200) -> Arrays:
    """Pictures of an arrow's head that points left or right."""
    random = np.random.default_rng(seed + 11)
    y = random.integers(0, 2, size)
    x = 0.15 * random.normal(size=(size, 10, 10, 1))
    for picture, right in zip(x, y, strict=True):
        top, left = random.integers(0, 5), random.integers(0, 7)
        for at in range(5):
            bend = 2 - abs(2 - at)
            picture[top + at, left + (bend if right else 2 - bend), 0] += 1
    return halves(x, y, seed)


def wrong_labels(data: Arrays, share: float, classes: int, seed: int) -> Arrays:
    """The same with a share of the labels to train on replaced at random."""
    random = np.random.default_rng(seed + 13)
    x, y, x_val, y_val = data
    other = random.uniform(size=len(y)) < share
    return x, np.where(other, random.integers(0, classes, len(y)), y), x_val, y_val
