"""Of which losses a gradient is made, told by the values: those that were applied, and those that tapes gave.

Each gradient is known by samples of it (`ledger`). An update that is linear in what tapes gave is so in the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_SAME = 1e-6  # relative difference of what is one gradient, or a sum of some, in single precision
MADE_OF, MADE_OF_HALVES = (
    1e-5,
    1e-3,
)  # and of what has been scaled or added up; with the roundings of half precision
_MAX_CALLS = 64  # calls between which weights are sought
_EARLIER = 4  # of those before, among which something is sought that was added to this step's


@dataclass(frozen=True)
class Given:
    """What one call of a tape gave.

    Attributes:
        site: a mark of the place in the program where the tape was asked.
        loss: what was differentiated.
        samples: of the gradient, for the variables of the step; 0 for those that the call is not about.
    """

    site: int
    loss: float
    samples: np.ndarray = field(repr=False)


def loss_of(
    applied: np.ndarray,
    parts: Sequence[slice],
    calls: Sequence[Given],
    earlier: Sequence[Given],
    edges: Sequence[np.ndarray] = (),
    tolerance: float = MADE_OF,
) -> float | None:
    """The loss of which a gradient was made, or None where the values don't tell.

    One that a tape gave, whatever it was scaled by since, is of that tape's loss. A sum, or a mean, is of the sum or
    the mean of the losses; so are micro-batches whose sum was scaled as a whole (clipped), of which the mean is taken.
    Other weights are no answer: that of gradients which were projected on each other is not what is minimized.

    Args:
        applied: samples of the gradient.
        parts: which of the samples are of one variable.
        calls: what tapes gave since the step before.
        earlier: what they gave before that.
        edges: samples of what a function is known to have made the gradient of, in whatever way; 0 where there is none.
        tolerance: relative difference of what is taken to be the same but for a factor.
    """
    told = _Weighing(parts, calls, earlier, tolerance).linear(applied)
    if told is None and len(edges) == 1:
        told = _Weighing(parts, calls, earlier, tolerance).linear(edges[0])
    if told is None and edges:
        recent = [one.loss for one in calls if _is_edge(one.samples, parts, edges)]
        before = [one.loss for one in earlier if _is_edge(one.samples, parts, edges)]
        told = _one(recent or before) if recent or before else None
    return told


def _is_edge(given: np.ndarray, parts: Sequence[slice], edges: Sequence[np.ndarray]) -> bool:
    """Whether what a tape gave is among what a gradient was made of."""
    parts = [part for part in parts if np.any(given[part])]
    return bool(parts) and all(
        any(_close(edge[part], given[part], _SAME) for edge in edges) for part in parts
    )


@dataclass(frozen=True)
class _Weighing:
    """A comparison of a gradient with what tapes gave, as `loss_of` has it."""

    parts: Sequence[slice]
    calls: Sequence[Given]
    earlier: Sequence[Given]
    tolerance: float

    def linear(self, applied: np.ndarray) -> float | None:
        """The loss of a gradient that is linear in what tapes gave."""
        calls = self.calls
        whole, scaled = self._total(applied)
        told = [one.loss for one in calls if _close(applied, one.samples, _SAME)] + whole
        if told and np.any(applied):
            return _one(told)
        if not np.any(applied) or not np.isfinite(applied).all():
            finite = bool(np.isfinite(applied).all())
            told = [one.loss for one in calls if _says_nothing(one.samples, finite)]
            return _one(told) if told else None
        delayed = [one.loss for one in self.earlier if _close(applied, one.samples, _SAME)]
        scaled += [one.loss for one in calls if self._is_scaled(applied, one.samples)]
        if delayed or scaled:
            return _one(delayed if delayed and len(applied) > 1 else [*delayed, *scaled])
        told_by_weights = self._weighted(applied)
        return self._of_one(applied) if told_by_weights is None else told_by_weights

    def _total(self, applied: np.ndarray) -> tuple[list[float], list[float]]:
        """The loss of what is the sum of all calls, or their mean; and of what is a mean that was scaled as a whole."""
        if len(self.calls) < 2:
            return [], []
        factor = self._factor(applied, np.sum([one.samples for one in self.calls], axis=0))
        told = None if factor is None else _loss(factor, self.calls)
        if told is None:
            return [], []
        return ([told], []) if _is_plain(factor, len(self.calls)) else ([], [told])

    def _factor(self, applied: np.ndarray, given: np.ndarray) -> float | None:
        """What a gradient was multiplied by, or None if it was not."""
        if not np.any(given) or not (np.isfinite(given).all() and np.isfinite(applied).all()):
            return None
        factor = float(applied @ given / (given @ given))
        return factor if factor and _close(applied, factor * given, self.tolerance) else None

    def _is_scaled(self, applied: np.ndarray, given: np.ndarray) -> bool:
        """Whether each variable's gradient was multiplied by something (clipped together, or each by itself).

        A number is a multiple of any other: what counts is how many numbers a factor is true of beside the first.
        """
        if self._factor(applied, given) is not None and np.count_nonzero(given) > 1:
            return True
        told_of = [part for part in self.parts if np.any(applied[part])]
        beside = sum(int(np.count_nonzero(given[part])) - 1 for part in told_of)
        return beside > 1 and all(self._factor(applied[part], given[part]) is not None for part in told_of)

    def _weights(self, applied: np.ndarray, calls: Sequence[Given]) -> np.ndarray | None:
        """The weights with which some calls add up to a gradient; None if they do not, or could in several ways."""
        given = np.stack([one.samples for one in calls], axis=1)
        if not np.isfinite(given).all():
            return None
        weights, _, rank, _ = np.linalg.lstsq(given, applied)
        if rank < len(calls) or not _close(applied, given @ weights, self.tolerance):
            return None
        return np.where(np.abs(weights) > self.tolerance * np.abs(weights).max(), weights, 0.0)

    def _weighted(self, applied: np.ndarray) -> float | None:
        """The loss of a sum or mean of some of the calls, or of a mean with weights."""
        if not 2 <= len(self.calls) <= min(_MAX_CALLS, len(applied) // 2):
            return None
        weights = self._weights(applied, self.calls)
        if weights is None:
            return None
        chosen = [one for one, weight in zip(self.calls, weights, strict=True) if weight]
        weights = weights[weights != 0.0]
        if np.allclose(weights, weights[0], rtol=max(1e-4, self.tolerance)):
            return _loss(float(weights.mean()), chosen)
        is_mean = (weights > 0).all() and np.isclose(weights.sum(), 1.0, rtol=1e-4)
        return float(weights @ np.array([one.loss for one in chosen])) if is_mean else None

    def _of_one(self, applied: np.ndarray) -> float | None:
        """The loss of the one call since the step before that has a part in a gradient, or else of the one before."""
        calls = [*self.calls, *self.earlier[-_EARLIER:]]
        if not calls or 4 * len(calls) > len(applied):  # more weights than that could make anything
            return None
        weights = self._weights(applied, calls)
        if weights is None:
            return None
        count = len(self.calls)
        recent = [one.loss for one, weight in zip(calls[:count], weights[:count], strict=True) if weight]
        before = [one.loss for one, weight in zip(calls[count:], weights[count:], strict=True) if weight]
        some = recent or before
        return some[0] if len(some) == 1 else None


def _one(losses: Sequence[float]) -> float | None:
    """What several explanations agree on."""
    return losses[0] if np.allclose(losses, losses[0], rtol=1e-9, atol=0.0, equal_nan=True) else None


def _close(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    most = np.max(np.abs(one), initial=0.0, where=np.isfinite(one))
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance * most, equal_nan=True))


def _says_nothing(given: np.ndarray, finite: bool) -> bool:
    """Whether what a tape gave is all zeros, or is not finite."""
    return not np.any(given) if finite else not np.isfinite(given).all()


def _is_plain(factor: float | None, count: int) -> bool:
    """Whether a factor makes a sum or a mean."""
    return factor is not None and bool(np.isclose([factor, factor * count], 1.0, rtol=1e-4).any())


def _loss(factor: float, calls: Sequence[Given]) -> float | None:
    """The loss of the sum of some calls, times a factor; None if a sum or a mean may have been scaled."""
    losses = [one.loss for one in calls]
    if np.isclose(factor, 1.0, rtol=1e-4):
        return float(np.sum(losses))
    if _is_plain(factor, len(calls)) or len({one.site for one in calls}) == 1:  # micro-batches
        return float(np.mean(losses))
    return None
