"""The bins of all histograms: fixed, four to an octave, so that a step's can be laid on another's.

Bin 0 and the last hold what is beyond ±2^8, those in the middle what is below 2^-40 (zeros included); between them each
octave is cut into four equal parts. A bin holds its left edge and not its right one, as NumPy's do. The number of a
float32's bin is in its bits, exponent and first two digits: nothing is searched for, and nothing is rounded.
"""

from __future__ import annotations

import numpy as np

LOWEST, HIGHEST, PER_OCTAVE = -40, 8, 4
MIDDLE = (HIGHEST - LOWEST) * PER_OCTAVE + 1  # the bin around zero
COUNT = 2 * MIDDLE + 1
KINDS = ("weight", "gradient")
# A row of one histogram: the counts, how many are not finite, how many are zero, the least and the largest that is.
WIDTH = COUNT + 4


def _edges() -> np.ndarray:
    octaves = np.exp2(np.arange(LOWEST, HIGHEST))[:, None]
    inner = (octaves * (1 + np.arange(PER_OCTAVE) / PER_OCTAVE)).ravel()
    positive = np.concatenate([inner, [2.0**HIGHEST, np.finfo(np.float32).max]])
    return np.concatenate([-positive[::-1], positive])


EDGES = _edges()
# Of norms, which are never negative: four bins to an octave as well; zeros are counted apart.
NORM_EDGES = np.exp2(np.arange(-160, 161) / PER_OCTAVE)


def due(number: int) -> bool:
    """Whether the so-maniest (from 0) of things that go on has histograms: as `Ring.histogram_due`, for the host.

    Example:
        >>> [n for n in range(30, 41) if due(n)]
        [30, 31, 32, 34, 36, 38, 40]
    """
    return number % (1 << max(number.bit_length() - 5, 0)) == 0


def trimmed(counts: np.ndarray) -> tuple[int, int]:
    """The first bin that is not empty, and the one after the last; one bin in the middle if all are empty.

    Example:
        >>> trimmed(np.eye(1, COUNT, 5)[0])
        (5, 6)
    """
    filled = np.flatnonzero(counts)
    return (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (len(counts) // 2, len(counts) // 2 + 1)


def quantiles(
    edges: np.ndarray, counts: np.ndarray, shares: np.ndarray, least: float, most: float
) -> np.ndarray:
    """Quantiles, by taking the elements of a bin as evenly spread over it; exact to the width of a bin.

    Args:
        edges: of the bins.
        counts: in the bins.
        shares: which quantiles, from 0 to 1.
        least: the least element.
        most: the largest element.
    """
    total = np.concatenate([[0], np.cumsum(counts)]).astype(float)
    if total[-1] == 0:
        return np.full(len(shares), np.nan)
    ends = np.clip(edges, least, most)
    return np.interp(np.asarray(shares) * total[-1], total, ends)
