"""Of which losses a gradient is made, told by the values: those that were applied, and those that tapes gave.

Each gradient is known by samples of it (`ledger`). An update that is linear in what tapes gave is so in the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_SAME = 1e-6  # relative difference of what is one gradient, or a sum of some, in single precision
_MADE_OF = 1e-3  # and of what has been scaled, in half precision as well
_MOST = 64  # calls between which weights are sought


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
    made_of_them: bool = True,
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
        made_of_them: whether it may have been made of what these gave in a way that is not linear.
    """
    whole, scaled = _total(applied, calls)
    told = [one.loss for one in calls if _close(applied, one.samples, _SAME)] + whole
    if told and np.any(applied):
        return _one(told)
    if not np.any(applied) or not np.isfinite(applied).all():  # of anything
        return _one([one.loss for one in calls]) if calls else None
    delayed = [one.loss for one in earlier if _close(applied, one.samples, _SAME)]
    scaled += [one.loss for one in calls if _is_scaled(applied, one.samples, parts)]
    if delayed or scaled:
        return _one(delayed if delayed and len(applied) > 1 else [*delayed, *scaled])
    if len(calls) == 1:
        return calls[0].loss if made_of_them and _alike(applied, calls[0].samples) else None
    return _weighted(applied, calls)


def _one(losses: Sequence[float]) -> float | None:
    """What several explanations agree on."""
    return losses[0] if np.allclose(losses, losses[0], rtol=1e-9, atol=0.0, equal_nan=True) else None


def _close(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    most = np.max(np.abs(one), initial=0.0, where=np.isfinite(one))
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance * most, equal_nan=True))


def _alike(applied: np.ndarray, given: np.ndarray) -> bool:
    """Whether a gradient may be what another was turned into: noise added, its mean taken out, its signs."""
    if not (np.isfinite(applied).all() and np.isfinite(given).all()):
        return True
    norms = np.linalg.norm(applied) * np.linalg.norm(given)
    return bool(norms == 0 or abs(applied @ given) >= 0.5 * norms)


def _total(applied: np.ndarray, calls: Sequence[Given]) -> tuple[list[float], list[float]]:
    """The loss of what is the sum of all calls, or their mean; and of what is a mean that was scaled as a whole."""
    if len(calls) < 2:
        return [], []
    factor = _factor(applied, np.sum([one.samples for one in calls], axis=0))
    told = None if factor is None else _loss(factor, calls)
    return ([], []) if told is None else ([told], []) if _is_plain(factor, len(calls)) else ([], [told])


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


def _factor(applied: np.ndarray, given: np.ndarray) -> float | None:
    """What a gradient was multiplied by, or None if it was not."""
    if not np.any(given) or not (np.isfinite(given).all() and np.isfinite(applied).all()):
        return None
    factor = float(applied @ given / (given @ given))
    return factor if factor and _close(applied, factor * given, _MADE_OF) else None


def _is_scaled(applied: np.ndarray, given: np.ndarray, parts: Sequence[slice]) -> bool:
    """Whether each variable's gradient was multiplied by something (clipped together, or each by itself)."""
    if _factor(applied, given) is not None:
        return True
    return all(_factor(applied[part], given[part]) is not None or not np.any(applied[part]) for part in parts)


def _weighted(applied: np.ndarray, calls: Sequence[Given]) -> float | None:
    """The loss of a sum or mean of some of the calls, or of a mean with weights."""
    if not 2 <= len(calls) <= min(_MOST, len(applied) // 2):
        return None
    given = np.stack([one.samples for one in calls], axis=1)
    if not np.isfinite(given).all():
        return None
    weights, _, rank, _ = np.linalg.lstsq(given, applied)
    if rank < len(calls) or not _close(applied, given @ weights, _MADE_OF):
        return None
    used = np.abs(weights) > 1e-3 * np.abs(weights).max()
    chosen = [one for one, is_used in zip(calls, used, strict=True) if is_used]
    if np.allclose(weights[used], weights[used][0], rtol=1e-3):
        return _loss(float(weights[used].mean()), chosen)
    losses = np.array([one.loss for one in chosen])
    return float(weights[used] @ losses) if np.isclose(weights[used].sum(), 1.0, rtol=1e-4) else None
