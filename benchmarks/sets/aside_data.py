"""Data for the configurations of `benchmarks.sets.aside`, different from those of the earlier sets."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks.sets.recipes import Data, split


# -- pictures ------------------------------------------------------------------------------------------------------
def signs(
    seed: int,
    train: int = 900,
    scale: float = 1.0,
    wrong: float = 0.0,
    number_from: int = 0,
    as_column: bool = False,
    one_hot: bool = False,
) -> Data:
    """Twelve signs of three strokes each, as someone writes them; `wrong` is a share of labels drawn at random."""
    rng = np.random.default_rng(seed)
    ends = np.random.default_rng(17).uniform(-0.8, 0.8, (12, 3, 2, 2))
    y = rng.integers(0, 12, train + 350)
    turn = rng.normal(0, 0.12, len(y))
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1)
    strokes = np.einsum("nij,nskj->nski", turned, ends[y]) + rng.normal(0, 0.06, (len(y), 3, 2, 2))
    strokes += rng.uniform(-0.12, 0.12, (len(y), 1, 1, 2))
    pixels = np.stack(np.meshgrid(*[np.linspace(-1, 1, 16)] * 2), -1).reshape(1, 1, 256, 2)
    start, way = strokes[:, :, :1], strokes[:, :, 1:] - strokes[:, :, :1]
    along = np.clip(((pixels - start) * way).sum(-1) / (way**2).sum(-1), 0, 1)
    away = np.linalg.norm(start + along[..., None] * way - pixels, axis=-1).min(1)
    x = np.clip(np.exp(-((away / 0.12) ** 2)) + 0.08 * rng.normal(size=away.shape), 0, 1)
    changed = rng.random(len(y)) < wrong
    y[changed] = rng.integers(0, 12, int(changed.sum()))
    told: np.ndarray = np.eye(12, dtype=np.float32)[y] if one_hot else y + number_from
    return split(x.reshape(-1, 16, 16, 1) * scale, told[:, None] if as_column else told, train, seed)


@functools.cache
def _photographs() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_sample_image

    both = [load_sample_image(name)[:400:2, :600:2] for name in ("china.jpg", "flower.jpg")]
    cut = [
        one[at : at + 16, to : to + 16] for one in both for at in range(0, 184, 9) for to in range(0, 284, 9)
    ]
    x = np.stack(cut)
    return x, np.arange(len(x)) * 2 // len(x)


def photographs(seed: int, what: str = "which", scale: float = 1.0, centred: bool = False) -> Data:
    """Pieces of two photographs: which is it from; `what` may be their "colours" from greys, or "again"."""
    x, y = _photographs()
    chosen = np.random.default_rng(seed).permutation(len(x))[:1000]
    if what == "which":
        return split(x[chosen], y[chosen].astype(np.int64), 750, seed)
    pieces = x[chosen] / 255.0 * scale
    pieces = (pieces - pieces.mean()) / pieces.std() if centred else pieces
    shown = pieces.mean(-1, keepdims=True) if what == "colours" else pieces
    return split(shown, pieces.astype(np.float32), 750, seed)


def films(seed: int) -> Data:
    """Eight frames of a spot that goes up, down, left or right, through noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 800)
    steps = (
        np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])[y][:, None] * (np.arange(8) - 3.5)[None, :, None] * 0.8
    )
    at = rng.uniform(3.5, 6.5, (800, 1, 2)) + steps
    rows, columns = np.mgrid[:10, :10]
    away = (rows - at[..., 0, None, None]) ** 2 + (columns - at[..., 1, None, None]) ** 2
    x = np.exp(-away / 1.5) + 0.15 * rng.random((800, 8, 10, 10))
    return split(x[..., None], y, 600, seed)


# -- sequences -----------------------------------------------------------------------------------------------------
def names(seed: int, train: int = 1400, wrong: float = 0.0) -> Data:
    """Names of 5 to 12 letters from one of four languages, then zeros."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(23)
    follow = fixed.dirichlet(np.full(20, 0.08), (4, 20)).cumsum(-1)
    y = rng.integers(0, 4, train + 400)
    x = np.zeros((len(y), 12), np.int32)
    letter = rng.integers(0, 20, len(y))
    for at in range(12):
        x[:, at] = letter + 1
        letter = np.minimum((rng.random((len(y), 1)) > follow[y, letter]).sum(1), 19)
    x[np.arange(12) >= rng.integers(5, 13, (len(y), 1))] = 0
    changed = rng.random(len(y)) < wrong
    y[changed] = rng.integers(0, 4, int(changed.sum()))
    return split(x, y.astype(np.int64), train, seed)


def opinions(seed: int) -> Data:
    """Sentences of fourteen words: good ones, bad ones, others, and one that turns the next over."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 40, (2600, 14)).astype(np.int32)
    x[rng.random(x.shape) < 0.15] = 20
    worth = np.where(x < 8, 1, np.where(x < 16, -1, 0))
    worth[:, 1:] *= np.where(x[:, :-1] == 20, -1, 1)
    kept = np.flatnonzero(worth.sum(1))[:2000]
    return split(x[kept], (worth.sum(1)[kept] > 0).astype(np.int64), 1600, seed)


def turned(seed: int) -> Any:
    """Words of five symbols, and the same from behind: what was written so far goes in as well."""
    x = np.random.default_rng(seed).integers(1, 8, (2200, 5)).astype(np.int32)
    y = x[:, ::-1].astype(np.int64)
    so_far = np.hstack([np.zeros((2200, 1), np.int32), x[:, :0:-1]])
    return [x[:1800], so_far[:1800]], y[:1800], [x[1800:], so_far[1800:]], y[1800:]


def first(seed: int) -> Data:
    """Long rows of numbers; all that matters is whether the first one, marked by nothing, is above zero."""
    x = np.random.default_rng(seed).normal(size=(900, 60, 1))
    return split(x, (x[:, 0, 0] > 0).astype(np.int64), 700, seed)


def _windows(series: np.ndarray, length: int, train: int, seed: int) -> Data:
    x = np.stack([series[at : at + length] for at in range(len(series) - length)])
    return split(x[..., None], series[length:, None].astype(np.float32), train, seed)


def passengers(seed: int, spread: float = 1.0) -> Data:
    """A series that grows and swings by the year, in its standard deviations times `spread`: the next month."""
    rng, t = np.random.default_rng(seed), np.arange(924)
    series = (1 + t / 300) * (
        3 + np.sin(t * np.pi / 6) + 0.4 * np.sin(t * np.pi / 3) + 0.12 * rng.normal(size=924)
    )
    return _windows((series - series.mean()) / series.std() * spread, 24, 700, seed)


def prices(seed: int) -> Data:
    """What a share costs from day to day, as it is quoted: the next day."""
    walk = 24000 + np.cumsum(150 * np.random.default_rng(seed).normal(size=1000))
    return _windows(walk, 20, 760, seed)


def returns(seed: int) -> Data:
    """By how much a price changes: what the last changes tell of the next one is little."""
    rng = np.random.default_rng(seed)
    series = rng.normal(size=2420)
    for at in range(2, 2420):
        series[at] += 0.3 * series[at - 1] - 0.25 * series[at - 2]
    return _windows(series / series.std(), 16, 1800, seed)


def chirps(seed: int) -> Data:
    """Tones that rise, fall or stay, through noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 1000)
    t = np.linspace(0, 1, 160)
    slope, tone = np.array([14.0, -14.0, 0.0])[y][:, None], rng.uniform(18, 26, (1000, 1))
    x = np.sin(2 * np.pi * (tone * t + slope * t * (t - 1) / 2) + 6 * rng.random((1000, 1)))
    return split((x + 0.5 * rng.normal(size=x.shape))[..., None], y, 750, seed)


# -- tables --------------------------------------------------------------------------------------------------------
def houses(seed: int, unit: float = 1e5, constant: bool = False, date: bool = False) -> Data:
    """Area, rooms, age, way to town and income, in their own units: the price, in units of as many dollars."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(1500, 5))
    price = 2.4 + 0.7 * z[:, 0] + 0.3 * z[:, 4] - 0.25 * np.abs(z[:, 3]) + 0.2 * z[:, 0] * z[:, 1]
    price = np.maximum(price + 0.15 * rng.normal(size=1500), 0.2) * 1e5 / unit
    x = z * (40, 1.2, 18, 6, 21e3) + (120, 4, 40, 15, 62e3)
    if date:
        x = np.hstack([x, 1.7e9 + 1e7 * rng.normal(size=(1500, 1))])
    if constant:
        x = np.hstack([x, np.ones((1500, 1))])
        with np.errstate(invalid="ignore"):
            x = (x - x.mean(0)) / x.std(0)
    return split(x, price[:, None].astype(np.float32), 1150, seed)


def clients(seed: int, train: int = 1800, wrong: float = 0.0) -> Data:
    """Age, years, balance, calls, income and three without meaning, in their own units: who leaves, one in eight."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(train + 700, 8))
    score = 1.6 * z[:, 3] - 1.2 * z[:, 1] + 1.2 * z[:, 0] * z[:, 2] + 0.4 * rng.normal(size=len(z))
    y = (score > 2.6) ^ (rng.random(len(z)) < wrong)
    x = z * (12, 3, 9e3, 2, 2.5e4, 1, 50, 400) + (44, 6, 2e4, 5, 6e4, 0, 300, 1000)
    return split(x, y.astype(np.int64), train, seed)


def shells(seed: int, wrong: float = 0.0) -> Data:
    """Three classes, each around the one before, in six dimensions."""
    from sklearn.datasets import make_gaussian_quantiles

    rng = np.random.default_rng(seed)
    x, y = make_gaussian_quantiles(n_samples=2100, n_features=6, n_classes=3, random_state=seed)
    changed = rng.random(2100) < wrong
    y[changed] = rng.integers(0, 3, int(changed.sum()))
    return split(x, y.astype(np.int64), 1600, seed)


def genes(seed: int, train: int = 140) -> Data:
    """Three hundred features of which a few tell something, and few examples to learn from."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        600, 300, n_informative=6, n_redundant=0, class_sep=1.4, random_state=seed, flip_y=0.1
    )
    return split(x, y.astype(np.int64), train, seed)


def spectra(seed: int, scaled: bool = True) -> Data:
    """Thirty-two bands in decibels: which of five makes is the machine?"""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, 1400)
    bands = np.arange(32)
    peaks = np.random.default_rng(29).uniform(2, 30, (5, 3))
    x = 9 * np.exp(-(((bands - peaks[y][..., None]) / 2) ** 2)).sum(1) + 5 * rng.normal(size=(1400, 32))
    return split(x / 6 - 0.5 if scaled else x - 75, y, 1050, seed)


def curve(seed: int, power: int = 0) -> Data:
    """A number, and a wave of it; or its power, of numbers from -10 to 10."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (500, 1))
    y = (10 * x) ** power if power else np.sin(7 * x) * (x + 0.4) + 0.03 * rng.normal(size=x.shape)
    return split(10 * x if power else x, y.astype(np.float32), 380, seed)


def branches(seed: int) -> Data:
    """A curve from its side: for some numbers there are three that fit."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, (1600, 1))
    return split(y + 0.6 * np.sin(5 * y) + 0.06 * rng.normal(size=y.shape), y.astype(np.float32), 1200, seed)


def either_or(_: int) -> Data:
    """The four cases of which students ask first."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([0, 1, 1, 0])
    return x, y, x, y


def cooling(seed: int) -> Data:
    """Moments, and how warm it is by then, which only the validation sees."""
    t = np.random.default_rng(seed).uniform(0, 3, (400, 1)).astype(np.float32)
    check = np.linspace(0, 3, 100, dtype=np.float32)[:, None]
    return t, np.zeros_like(t), check, np.exp(-1.5 * check) + 0.5 * np.sin(2 * check)
