"""Statistics of a sample of the inputs or targets, taken before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_MOST_EXAMPLES, _MOST_NUMBERS = 4096, 2_000_000  # examined of a data set
_MOST_CHECKED = 50_000_000  # numbers checked for NaN and infinity: some 20 ms
_QUANTILES = 101
_FEW_LABELS = 16  # of fewer, a batch says little of how labels are mixed


@dataclass(frozen=True)
class Sample:
    """Statistics of the first few thousand inputs or targets.

    Attributes:
        count: examples examined.
        nonfinite: how many numbers are NaN or infinite, among all of them if these are not too many to check.
        nonfinite_at: index of the first example with one, -1 for none.
        least: smallest number.
        most: largest number.
        mean: of all numbers.
        std: of all numbers.
        whole: whether all numbers are whole.
        columns: size of the last axis (1 for a plain vector).
        axes: number of axes of the array, including that of the examples.
        feature_std: smallest and largest standard deviation of a feature that is neither constant nor made of 0 and 1.
        feature_offset: largest distance of such a feature's mean from 0, in its standard deviations.
        variance: mean squared distance from the mean, which is taken per column of an example.
        spread: mean absolute distance from the median, likewise.
        class_counts: how often each class occurs, if these are labels (or one-hot).
        binary: if all numbers are between 0 and 1, the binary cross-entropy of each column's best constant, and that
            of the numbers themselves (0 for labels, more for values in between).
        one_hot: whether each row holds a single 1.
        mixed: how diverse the labels of a batch are, as a share of how diverse all are (`mixed`); NaN if unknown.
        negative: share of numbers below 0.
        quantiles: of the numbers, equally spaced, if an example is one number.
    """

    count: int = 0
    nonfinite: int = 0
    nonfinite_at: int = -1
    least: float = float("nan")
    most: float = float("nan")
    mean: float = float("nan")
    std: float = float("nan")
    whole: bool = False
    columns: int = 1
    axes: int = 1
    feature_std: tuple[float, float] = (float("nan"), float("nan"))
    feature_offset: float = float("nan")
    variance: float = float("nan")
    spread: float = float("nan")
    class_counts: tuple[int, ...] = ()
    binary: tuple[float, ...] = ()
    one_hot: bool = False
    mixed: float = float("nan")
    negative: float = 0.0
    quantiles: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Any, targets: bool = True) -> Sample:
        """Returns statistics of some examples, spread evenly over an array.

        Args:
            values: examples along the first axis.
            targets: whether what a constant prediction of them would lose is looked at as well; inputs are many.
        """
        array = np.asarray(values)
        if array.dtype == object or array.dtype.kind not in "biuf" or not array.size:
            return cls(count=len(array) if array.ndim else 0)
        most = min(_MOST_EXAMPLES, max(16, _MOST_NUMBERS * len(array) // array.size))
        stride = max(1, len(array) // most)
        # A memory-mapped file would be read as a whole.
        small = array.size <= _MOST_CHECKED and not isinstance(values, np.memmap)
        # One of each stretch, at random: at even distances, of labels that come in turn some would never be seen.
        stretches = np.arange(min(most, len(array) // stride)) * stride
        chosen = stretches + np.random.default_rng(0).integers(0, stride, len(stretches))
        lost, lost_at = _nonfinite(array if small else array[chosen])
        lost_at = lost_at if small or lost_at < 0 else int(chosen[lost_at])
        array = array[chosen].astype(np.float64)
        flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
        finite = flat[np.isfinite(flat).all(axis=1)]
        if not len(finite):
            return cls(count=len(array), nonfinite=lost, nonfinite_at=lost_at, columns=flat.shape[1])
        std, mean = finite.std(axis=0), finite.mean(axis=0)
        variance = spread = float("nan")
        if targets and array.ndim > 2 and len(finite) == len(flat):
            variance, spread = _deviations(array.reshape(len(array), -1), len(array))
        elif targets:
            variance, spread = _deviations(finite)
        # The standard deviation of an indicator shows how rare it is, not its scale.
        varies = (std > 0) & ~((finite == 0) | (finite == 1)).all(axis=0)
        whole = bool((finite == np.round(finite)).all())
        one_hot = (
            flat.shape[1] > 1
            and whole
            and bool(((finite == 1).sum(1) == 1).all() & (finite.sum(1) == 1).all())
        )
        classes: tuple[int, ...] = ()
        if one_hot:
            classes = tuple(int(n) for n in finite.sum(axis=0))
        elif targets and whole and finite.min() >= 0 and finite.max() < 100_000:
            classes = tuple(int(n) for n in np.bincount(finite.ravel().astype(np.int64)))
        return cls(
            count=len(array), nonfinite=lost, nonfinite_at=lost_at, least=float(finite.min()), most=float(finite.max()),
            mean=float(finite.mean()), std=float(finite.std()), whole=whole, columns=flat.shape[1],
            axes=array.ndim,
            feature_std=(float(std[varies].min()), float(std[varies].max())) if varies.any() else (0.0, 0.0),
            feature_offset=float((np.abs(mean[varies]) / std[varies]).max()) if varies.any() else 0.0,
            variance=variance, spread=spread,
            class_counts=classes,
            binary=_binary(finite) if targets else (), one_hot=one_hot,
            negative=float((finite < 0).mean()),
            quantiles=_quantiles(finite) if targets and flat.shape[1] == 1 else (),
        )  # fmt: skip


def _nonfinite(array: np.ndarray) -> tuple[int, int]:
    """How many numbers are not finite, and in which example the first of them is (-1 for none)."""
    if array.dtype.kind != "f":
        return 0, -1
    with np.errstate(all="ignore"):  # a sum takes less time, and is not finite if one number is not
        if np.isfinite(array.sum(dtype=np.float32 if array.dtype == np.float16 else None)):
            return 0, -1
    bad = ~np.isfinite(array.reshape(len(array), -1))
    return int(bad.sum()), int(bad.any(axis=1).argmax()) if bad.any() else -1


def mixed(batches: Sequence[np.ndarray]) -> float:
    """How diverse the labels of a batch are, as a share of how diverse those of all batches are.

    About 1 for shuffled examples, for batches with equally many of each class, and for one batch of all; 0 where each
    batch is of one class. Diversity is the chance that two labels differ. Batches of few examples are taken together.

    Args:
        batches: the labels of each batch (numbers, or indicators), in the order in which they are fed.

    Example:
        >>> mixed([np.array([0] * 16), np.array([1] * 16)])
        0.0
    """
    labels = [one.argmax(axis=1) if one.ndim == 2 and one.shape[1] > 1 else one.ravel() for one in batches]
    parts: list[list[np.ndarray]] = [[]]
    for one in labels:
        if sum(map(len, parts[-1])) >= _FEW_LABELS:
            parts.append([])
        parts[-1].append(one)
    if len(parts) > 1 and sum(map(len, parts[-1])) < _FEW_LABELS:
        last = parts.pop()
        parts[-1] += last
    whole = [np.concatenate(part) for part in parts if part]
    if not whole:
        return float("nan")
    every = _diversity(np.concatenate(whole))
    sizes = np.array([len(one) for one in whole])
    within = float(np.average([_diversity(one) for one in whole], weights=sizes))
    return within / every if every > 0 else float("nan")


def _diversity(labels: np.ndarray) -> float:
    """The chance that two of some labels, drawn without replacement, are different."""
    _, counts = np.unique(labels, return_counts=True)
    pairs = len(labels) * (len(labels) - 1)
    return float(1 - (counts * (counts - 1)).sum() / pairs) if pairs else 0.0


def _deviations(values: np.ndarray, examples: float = np.inf) -> tuple[float, float]:
    """Mean squared distance from each column's mean, and mean distance from its median.

    The variance is corrected for a small sample (Bessel's correction).
    """
    more = 1 / (1 - 1 / examples) if examples > 1 else 1.0
    return float(values.var(axis=0).mean() * more), float(np.abs(values - np.median(values, axis=0)).mean())


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    """As plain numbers, each in the middle of an equal share of the values."""
    found = np.quantile(values, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return tuple(float(one) for one in found)


def _binary(values: np.ndarray) -> tuple[float, ...]:
    if values.min() < 0 or values.max() > 1:
        return ()
    return float(_uncertainty(values.mean(axis=0)).mean()), float(_uncertainty(values).mean())


def _uncertainty(p: np.ndarray) -> np.ndarray:
    """The entropy of a choice between two, one of which has probability p."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    found: np.ndarray = -p * np.log(p) - (1 - p) * np.log(1 - p)
    return found
