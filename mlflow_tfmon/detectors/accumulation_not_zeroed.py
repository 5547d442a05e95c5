"""Detector of gradients that are added up over steps and never set back to zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, learning
from mlflow_tfmon.detectors.problem import Problem

_FEWEST_STEPS = 40
_FIRST_ROWS = 5
_GROWTH = 3.0
_CHANGE = 0.02  # of the norm from one step to the next; 0.07 to 0.3 of single batches in a loop over digits


def detect(history: History) -> Iterator[Problem]:
    """Finds gradient norms that grow threefold and change by less than 2% a step, of steps whose loss is not known.

    The gradients of single batches differ by more than that. A sum of all gradients so far, which a loop that
    accumulates micro-batches applies if it never clears its accumulators, is like that of the step before, and grows;
    and it is made of many steps' losses, so that none is recorded for its own. (Of a loop over the whole data the norm
    may grow as smoothly, and its loss is known.) Not reported once 30% is learned.
    """
    norms = history.steps.column("grad_norm")
    first, last = _FIRST_ROWS, len(norms) // 2
    if history.step - history.start < _FEWEST_STEPS or last < first or learning(history).learned >= LITTLE:
        return
    begun, now = float(np.median(norms.mean[:first, 0])), float(norms.mean[-1, 0])
    late = norms.rows(slice(-last, None))
    if 2 * len(history.steps.column("loss").since(late.first[0])) > len(late):
        return
    level = late.mean[:, 0]
    if not begun > 0 or now < _GROWTH * begun or (level <= 0).any():
        return
    steps = np.maximum(1.0, late.last - late.first + 1)
    within = (late.most - late.least)[:, 0] / level / steps
    between = np.abs(np.diff(level)) / level[1:] / steps[1:]
    change = float(np.median(within) + np.median(between))
    rising = float(np.mean(np.diff(level) > 0))
    if change < _CHANGE and rising >= 0.5:
        yield Problem(
            "accumulation_not_zeroed", "critical", int(norms.first[0]), (),
            f"The gradient norm rose from {begun:.3g} to {now:.3g} and changes by only {change:.1%} from step to step "
            f"(threshold: {_CHANGE:.0%}), as that of a sum to which each step adds: the gradients are accumulated "
            "and not set back to zero after an update.",
            "Set the accumulators back to zero after each update: for s in sums: s.assign(tf.zeros_like(s)).",
            history.step, 0.8,
        )  # fmt: skip
