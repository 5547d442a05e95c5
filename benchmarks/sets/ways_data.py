"""Data for the configurations of `benchmarks.sets.ways`, different from those of the first two sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sets.recipes import Data, digits, split


def rows_of_digits(seed: int) -> Data:
    """Digits as sequences of eight rows."""
    x, y, x_val, y_val = digits(seed)
    return x.reshape(-1, 8, 8), y, x_val.reshape(-1, 8, 8), y_val


def four_classes(seed: int, missing: bool = False) -> Data:
    """Twenty features, some without meaning, and four classes."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        1600, 20, n_informative=8, n_classes=4, class_sep=1.6, flip_y=0.02, random_state=seed
    )
    x = (x - x.mean(0)) / x.std(0)
    x[::200, 3] = np.nan if missing else x[::200, 3]
    return split(x, y.astype(np.int64), 1200, seed)


def adding(seed: int, length: int = 8) -> Data:
    """Sequences of numbers of which two are marked: their sum, in its standard deviations."""
    rng = np.random.default_rng(seed)
    numbers, marks = rng.random((2400, length)), np.zeros((2400, length))
    half = length // 2
    marks[np.arange(2400), rng.integers(0, half, 2400)] = 1
    marks[np.arange(2400), rng.integers(half, length, 2400)] = 1
    y = (numbers * marks).sum(1)
    x = np.stack([numbers * 2 - 1, marks], 2)
    return split(x, ((y - y.mean()) / y.std()).astype(np.float32), 1800, seed)


def remembered(seed: int, length: int = 12, symbols: int = 5) -> Data:
    """Tokens of which the first is to be named at the end."""
    x = np.random.default_rng(seed).integers(0, symbols, (1800, length))
    return split(x, x[:, 0].astype(np.int64), 1300, seed)


def chain(seed: int, back: int = 1, symbols: int = 8, length: int = 20, shift: int = 0) -> Data:
    """Sequences in which the token `back` places ago decides the next one, in four of five cases; the next of each."""
    rng = np.random.default_rng(seed)
    follows = np.random.default_rng(3).permutation(symbols)
    x = rng.integers(0, symbols, (900, length + 1))
    sure = rng.random(x.shape) < 0.8
    for at in range(back, length + 1):
        x[sure[:, at], at] = follows[x[sure[:, at], at - back]]
    return split(x[:, :-1], (x[:, 1:] + shift).astype(np.int64), 650, seed)


def masks(seed: int) -> Data:
    """Noisy pictures of a disc, and where it is."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    middle, radius = rng.integers(4, 12, (700, 2)), rng.uniform(2, 5, 700)
    away = np.hypot(rows - middle[:, 0, None, None], columns - middle[:, 1, None, None])
    y = (away <= radius[:, None, None]).astype(np.float32)[..., None]
    return split(y + 0.5 * rng.normal(size=y.shape), y, 500, seed)


def peaks(seed: int) -> Data:
    """Noisy signals, and where their peak is, from -1 to 1."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, 1200)
    t = np.linspace(-1.2, 1.2, 48)
    x = np.exp(-(((t - y[:, None]) / 0.12) ** 2)) + 0.15 * rng.normal(size=(1200, 48))
    return split(x[..., None], y.astype(np.float32), 900, seed)


def counts(seed: int) -> Data:
    """How often something happens, of Poisson's distribution."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2000, 6))
    mean = np.exp(0.8 + 0.6 * x[:, 0] - 0.5 * x[:, 1] + 0.3 * np.abs(x[:, 2]))
    return split(x, rng.poisson(mean).astype(np.float32), 1500, seed)


def prices(seed: int, centred: bool = False, broken: bool = False) -> Data:
    """Prices, a few of which are very high; in their standard deviations."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2000, 8))
    y = np.exp(0.7 * x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=2000))
    y = (y - y.mean() * centred) / y.std()
    y[::100] = np.nan if broken else y[::100]
    return split(x, y.astype(np.float32), 1500, seed)


def pairs(seed: int) -> Any:
    """Two digits: are they the same?"""
    x, y, x_val, y_val = digits(seed)
    rng = np.random.default_rng(seed)

    def paired(x: np.ndarray, y: np.ndarray, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        first, second = rng.integers(0, len(x), (2, count))
        for at in range(0, count, 2):  # half of them are
            second[at] = rng.choice(np.flatnonzero(y == y[first[at]]))
        return [x[first], x[second]], (y[first] == y[second]).astype(np.int64)

    return *paired(x, y, 2400), *paired(x_val, y_val, 600)


def circles(seed: int) -> Data:
    """A ring around another."""
    from sklearn.datasets import make_circles

    x, y = make_circles(900, noise=0.08, factor=0.5, random_state=seed)
    return split(x, y.astype(np.float32), 600, seed)


def stripes(seed: int, train: int = 700, noise: float = 0.5, wrong: float = 0.0, scale: float = 1.0) -> Data:
    """Striped pictures of 20 by 20, by one of four directions; `wrong` is a share of labels drawn at random."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 1000)
    rows, columns = np.mgrid[:20, :20]
    angle = (y * np.pi / 4)[:, None, None]
    wave = np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * 1.3 + 6 * rng.random((1000, 1, 1)))
    x = wave + noise * rng.normal(size=wave.shape)
    changed = rng.random(1000) < wrong
    y[changed] = rng.integers(0, 4, int(changed.sum()))
    return split(x[..., None] * scale, y, train, seed)


def movements(seed: int, raw: bool = False, shuffled: bool = False) -> Data:
    """Three sensors over 40 moments: which of four movements is it?"""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 1000)
    t, phase = np.arange(40)[None], 6 * rng.random((1000, 1))
    speed, strength = 0.2 + 0.2 * (y % 2)[:, None], 0.5 + 1.0 * (y // 2)[:, None]
    x = np.stack(
        [strength * np.sin(speed * t + phase), strength * np.cos(speed * t + phase), 0.02 * t + phase / 6]
    )
    x = np.moveaxis(x, 0, 2) + 0.3 * rng.normal(size=(1000, 40, 3))
    x = x * np.array([1.0, 1.0, 5e3]) + np.array([0.0, 0.0, 3e4]) if raw else x
    return split(x, rng.permutation(y) if shuffled else y, 750, seed)


def ratings(seed: int) -> Any:
    """What people think of things: two numbers in, a number out."""
    rng = np.random.default_rng(seed)
    people, things = rng.normal(size=(60, 3)), rng.normal(size=(50, 3))
    who, what = rng.integers(0, 60, 6000), rng.integers(0, 50, 6000)
    y = (people[who] * things[what]).sum(1) + 0.3 * rng.normal(size=6000)
    y = ((y - y.mean()) / y.std()).astype(np.float32)
    return [who[:4800], what[:4800]], y[:4800], [who[4800:], what[4800:]], y[4800:]


def noisy_digits(seed: int) -> Data:
    """Digits under noise, and without."""
    x, _, x_val, _ = digits(seed)
    rng = np.random.default_rng(seed)
    return *(x + 0.3 * rng.normal(size=x.shape).astype(np.float32), x), *(
        x_val + 0.3 * rng.normal(size=x_val.shape).astype(np.float32),
        x_val,
    )


def straight(seed: int) -> Data:
    """A linear regression of fifty features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1200, 50))
    y = x @ np.random.default_rng(1).normal(size=50) / 7 + 0.3 * rng.normal(size=1200)
    return split(x, y.astype(np.float32), 900, seed)


def six_ahead(seed: int) -> Data:
    """A day of hours that repeat: the next six of 24."""
    rng = np.random.default_rng(seed)
    t = np.arange(30)[None] + rng.integers(0, 24, (1100, 1))
    x = np.sin(t * np.pi / 12) * (0.5 + rng.random((1100, 1))) + rng.normal(size=(1100, 1)) * 0.3
    x = x + 0.1 * rng.normal(size=x.shape)
    return split(x[:, :24, None], x[:, 24:].astype(np.float32), 800, seed)


def soft_labels(seed: int) -> Data:
    """Digits with the shares that a teacher, sure of nothing, gives to each class."""
    x, y, x_val, y_val = digits(seed)

    def soft(y: np.ndarray) -> np.ndarray:
        share = np.exp(3.0 * np.eye(10)[y] + np.random.default_rng(seed).normal(size=(len(y), 10)) * 0.5)
        return (share / share.sum(1, keepdims=True)).astype(np.float32)

    return x, soft(y), x_val, soft(y_val)


def seldom(seed: int) -> Data:
    """Two classes, one of 8%, which overlap a little."""
    rng = np.random.default_rng(seed)
    y = (rng.random(2400) < 0.08).astype(np.int64)
    return split(rng.normal(size=(2400, 12)) + 1.3 * y[:, None], y, 1800, seed)


def targets_as_numbers(seed: int) -> Data:
    """Four classes, their numbers taken for what is to be predicted."""
    x, y, x_val, y_val = four_classes(seed)
    return x, y[:, None].astype(np.float32), x_val, y_val[:, None].astype(np.float32)
