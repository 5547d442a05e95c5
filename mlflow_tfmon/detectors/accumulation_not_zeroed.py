"""Detector of gradients that are added up over steps and never set back to zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, MUCH, learning
from mlflow_tfmon.detectors.problem import Problem

_FIRST_ROWS = 5
_ADVICE = "Set the accumulators back to zero after each update: for s in sums: s.assign(tf.zeros_like(s))."


def detect(
    history: History, *, min_steps: int = 40, min_growth: float = 3.0, max_change: float = 0.02
) -> Iterator[Problem]:
    """Finds steps that apply the gradient of the step before with their own added, until 70% is learned.

    That is told by the values of the gradients. Where these are not known: gradient norms that grow threefold and
    change by less than 2% a step, of steps whose loss is not known either. The gradients of single batches differ by
    more than that. A sum of all gradients so far, which a loop that accumulates micro-batches applies if it never
    clears its accumulators, is like that of the step before, and grows; and it is made of many steps' losses. (Of a
    loop over the whole data the norm may grow as smoothly, and its loss is known.) Not reported once 30% is learned.

    Args:
        history: the training up to some step.
        min_steps: steps before which nothing is reported.
        min_growth: least growth of the gradient norm, a factor.
        max_change: largest median change of the norm from one step to the next, as a share of it (single batches:
            0.07 to 0.3 in a loop over digits).
    """
    state, norms = learning(history), history.steps.column("grad_norm")
    if history.premises is not None and history.premises.piles:
        if len(norms) and not state.learned >= MUCH:
            yield Problem(
                "accumulation_not_zeroed", "critical", int(norms.first[0]), (),
                f"Each step applies the gradient of the step before with its own added to it: the gradients are "
                f"accumulated and not set back to zero after an update. Their norm went from {norms.mean[0, 0]:.3g} to "
                f"{norms.mean[-1, 0]:.3g}.",
                _ADVICE, history.step, 0.95,
            )  # fmt: skip
        return
    first, last = _FIRST_ROWS, len(norms) // 2
    if history.step - history.start < min_steps or last < first or state.learned >= LITTLE:
        return
    begun, now = float(np.median(norms.mean[:first, 0])), float(norms.mean[-1, 0])
    late = norms.rows(slice(-last, None))
    if 2 * len(history.steps.column("loss").since(late.first[0])) > len(late):
        return
    level = late.mean[:, 0]
    if not begun > 0 or now < min_growth * begun or (level <= 0).any():
        return
    steps = np.maximum(1.0, late.last - late.first + 1)
    within = (late.most - late.least)[:, 0] / level / steps
    between = np.abs(np.diff(level)) / level[1:] / steps[1:]
    change = float(np.median(within) + np.median(between))
    rising = float(np.mean(np.diff(level) > 0))
    if change < max_change and rising >= 0.5:
        yield Problem(
            "accumulation_not_zeroed", "critical", int(norms.first[0]), (),
            f"The gradient norm rose from {begun:.3g} to {now:.3g} and changes by only {change:.1%} from step to step "
            f"(threshold: {max_change:.0%}), as that of a sum to which each step adds: the gradients are accumulated "
            "and not set back to zero after an update.",
            _ADVICE, history.step, 0.8,
        )  # fmt: skip
