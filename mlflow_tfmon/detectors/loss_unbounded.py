"""Detector of losses without a lower bound, which the training drives below zero without end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import FEWEST_STEPS, learning, losses
from mlflow_tfmon.detectors.problem import Problem

_PARTS = 10  # of the curve, whose means are compared


def detect(history: History, *, min_depth: float = 10.0, min_done: float = 0.33) -> Iterator[Problem]:
    """Finds a distance to targets that is maximized, and negative losses that fall faster and faster.

    That a loss of Keras, a cross-entropy or a squared error has a minus sign is read off the graph of the step; it is
    reported once the loss is negative and falls. Of other losses, once a third of the training is over: the mean of the
    last tenth of the steps is ten times as far below zero as the first losses were from it, and the second half of the
    steps brought at least as much of the fall as the first. (A log-likelihood also goes below zero, but levels off.)
    Not of optimizers that take turns: a critic's loss may well fall. Does not find a bounded loss that is maximized.

    Args:
        history: the training up to some step.
        min_depth: least ratio of the loss's distance from zero to that of the first losses.
        min_done: share of the training before which nothing is said of other losses.
    """
    curve = losses(history)
    if not history.alone or history.step - history.start < FEWEST_STEPS or len(curve) < _PARTS:
        return
    level = curve.mean[:, 0]
    begun = float(np.median(history.first_losses)) if history.first_losses else float(level[0])
    parts = np.array([part.mean() for part in np.array_split(level, _PARTS)])
    middle, now = parts[_PARTS // 2 - 1], parts[-1]
    # A penalty for large weights that the sign spares would not change that it is the wrong way.
    maximized = history.premises is not None and history.premises.maximized and now < min(begun, 0.0)
    scale = max(abs(begun), float(np.std(level[: max(2, len(level) // _PARTS)])))
    # At first any log-likelihood falls ever faster.
    runs_off = (
        learning(history).share >= min_done
        and now < -min_depth * scale < 0
        and middle - now >= parts[0] - middle > 0
    )
    if not (maximized or runs_off):
        return
    below = curve.first[level < 0]
    what = (
        "the loss is a distance to the targets with a minus sign, so training makes that distance as large as "
        "possible"
        if maximized
        else f"it is {abs(now) / scale:.3g} times as far from zero (threshold: {min_depth:g}), and falls ever faster"
    )
    yield Problem(
        "loss_unbounded", "critical", int(below[0]) if len(below) else 1, (),
        f"The loss fell from {begun:.3g} in the first steps to {now:.3g}: {what}.",
        "Remove the minus sign from the loss (or from the gradients). If the loss is meant to be negative, give it a "
        "lower bound: a log-likelihood with a least variance, a score that is clipped.",
        history.step, 0.9 if maximized else 0.75,
    )  # fmt: skip
