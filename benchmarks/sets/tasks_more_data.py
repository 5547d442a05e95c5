"""More data for the configurations of `benchmarks.sets.tasks`: tables, point clouds, bodies and series."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.sets.recipes import Data, split


def visits(seed: int) -> Any:
    """What is known of a guest and of the place that was visited, which fits; a target that nobody reads."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2000, 6))
    fixed = np.random.default_rng(4)
    guest = np.tanh(hidden @ fixed.normal(size=(6, 20))) + 0.1 * rng.normal(size=(2000, 20))
    place = np.tanh(hidden @ fixed.normal(size=(6, 16))) + 0.1 * rng.normal(size=(2000, 16))
    x, y, x_val, y_val = split(np.hstack([guest, place]), np.zeros((2000, 1), np.float32), 1600, seed)
    return [x[:, :20], x[:, 20:]], y, [x_val[:, :20], x_val[:, 20:]], y_val


def clouds(seed: int) -> Data:
    """Thirty-two points, in any order, of a ring, a square or a cross that is turned and stretched."""
    rng = np.random.default_rng(seed)
    y, s = rng.integers(0, 3, 1200), rng.uniform(-1, 1, (1200, 32))
    side = rng.integers(0, 2, (1200, 32))
    ring = np.stack([np.cos(np.pi * s), np.sin(np.pi * s)], 2)
    edge = np.stack([s, 2.0 * rng.integers(0, 2, s.shape) - 1], 2)
    square = np.where(side[..., None] == 1, edge, edge[..., ::-1])
    cross = np.stack([s * side, s * (1 - side)], 2) * 1.2
    points = np.choose(y[:, None, None], [ring, square, cross])
    turn = rng.uniform(-0.5, 0.5, 1200)
    turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = np.einsum("npi,ijn->npj", points, turned) * rng.uniform(0.7, 1.3, (1200, 1, 1))
    return split(points + 0.05 * rng.normal(size=points.shape), y, 900, seed)


def bodies(seed: int) -> Data:
    """Rods, plates and blocks in a room of 8 by 8 by 8."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 700)
    x = 0.3 * rng.normal(size=(700, 8, 8, 8))
    sizes = np.array([[2, 2, 6], [2, 5, 5], [4, 4, 4]])
    for at, kind in enumerate(y):
        size = rng.permutation(sizes[kind])
        start = rng.integers(0, 9 - size)
        (i, j, k), (up, wide, deep) = start, size
        x[at, i : i + up, j : j + wide, k : k + deep] += 1.0
    return split(x[..., None], y, 520, seed)


def rolled(seed: int) -> Data:
    """Points on a sheet that is rolled up: how far along the sheet?"""
    from sklearn.datasets import make_swiss_roll

    x, y = make_swiss_roll(1300, noise=0.3, random_state=seed)
    return split((x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std()).astype(np.float32), 1000, seed)


def hastie(seed: int, signed: bool = False) -> Data:
    """Are ten numbers far from nothing, on the whole? No is 0; -1 if `signed`."""
    from sklearn.datasets import make_hastie_10_2

    x, y = make_hastie_10_2(2400, random_state=seed)
    return split(x, (y if signed else y > 0).astype(np.int64), 1900, seed)


def directions(seed: int) -> Data:
    """Twenty numbers, and the direction in twelve dimensions that they stand for."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(6)
    x = rng.normal(size=(1600, 20))
    y = np.tanh(x @ fixed.normal(size=(20, 24)) / 4) @ fixed.normal(size=(24, 12))
    y += 0.1 * rng.normal(size=y.shape)
    return split(x, (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float32), 1200, seed)


def tails(seed: int) -> Data:
    """A regression with outliers now and then."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1800, 6))
    y = x[:, 0] * np.sign(x[:, 1]) + 0.7 * x[:, 2] + 0.25 * rng.standard_t(2.5, 1800)
    return split(x, y.astype(np.float32), 1350, seed)


def demand(seed: int) -> Data:
    """What is sold: from two up to some thirty."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1600, 7))
    y = 2 + 4 * np.exp(0.6 * x[:, 0] - 0.4 * x[:, 1] * (x[:, 2] > 0) + 0.1 * rng.normal(size=1600))
    return split(x, y[:, None].astype(np.float32), 1200, seed)


def machine(seed: int) -> Data:
    """Friedman's second regression as it comes: features and targets up to thousands."""
    from sklearn.datasets import make_friedman2

    x, y = make_friedman2(1300, noise=20.0, random_state=seed)
    return split(x, y.astype(np.float32), 1000, seed)


def power(seed: int, gaps: bool = False) -> Data:
    """Power used by the hour and the temperature, for a day and a half; the hour that follows."""
    rng = np.random.default_rng(seed)
    hours = np.arange(1500)
    warmth = np.convolve(rng.normal(size=1560), np.ones(60) / 8, "valid")[:1500]
    load = np.sin(hours * np.pi / 12) + 0.5 * np.sin(hours * np.pi / 84) - 0.6 * warmth
    load += 0.15 * rng.normal(size=1500)
    rows = np.stack([load, warmth], 1) / (load.std(), warmth.std())
    x = np.stack([rows[at : at + 36] for at in range(1464)])
    if gaps:
        x[5::400, 20, 1] = np.nan
    return split(x, rows[36:, 0].astype(np.float32), 1100, seed)


def parity(seed: int) -> Data:
    """Eight signs: is the product of the first three positive?"""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], (1800, 8))
    y = (x[:, :3].prod(1) > 0).astype(np.int64)
    return split(x + 0.1 * rng.normal(size=x.shape), y, 1300, seed)


def faint(seed: int) -> Data:
    """A regression in which most is noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3000, 10))
    y = np.tanh(x @ np.linspace(-0.6, 0.6, 10)) + 1.6 * rng.normal(size=3000)
    return split(x, (y / y.std()).astype(np.float32), 2300, seed)


def islands(seed: int, offset: float = 0.0) -> Data:
    """Four heaps in five dimensions, of a few examples each."""
    from sklearn.datasets import make_blobs

    x, y = make_blobs(240, 5, centers=4, cluster_std=2.5, random_state=seed + 20)
    return split((x - x.mean(0)) / x.std(0) + offset, y.astype(np.int64), 160, seed)


def scarce(seed: int, share: float = 0.05, apart: float = 0.9) -> Data:
    """Two classes, of which one is scarce."""
    rng = np.random.default_rng(seed)
    y = (rng.random(3000) < share).astype(np.int64)
    shift = apart * np.sign(np.arange(8) % 3 - 0.5)
    return split(rng.normal(size=(3000, 8)) + y[:, None] * shift, y, 2200, seed)


def regions(seed: int) -> Data:
    """A regression that follows another rule on either side."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.5, 1.5, (1800, 5))
    y = np.where(x[:, 0] > 0, 2 * x[:, 1] - x[:, 2], np.sin(3 * x[:, 3]) - x[:, 1])
    y += 0.15 * rng.normal(size=1800)
    return split(x, ((y - y.mean()) / y.std()).astype(np.float32), 1350, seed)
