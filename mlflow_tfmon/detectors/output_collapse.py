"""Detector of outputs that have become the same for every example, under a loss without targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem

_FIRST_ROWS = 5


def detect(
    history: History,
    *,
    max_left: float = 0.01,
    max_left_of_constant: float = 0.05,
    max_of_size: float = 0.05,
    min_steps: int = 50,
) -> Iterator[Problem]:
    """Finds outputs whose standard deviation over a batch is 1% of what it was; or 5%, and 5% of their own size.

    Such a loss may be as small as can be: embeddings of which only the distances of those that belong together count
    are best all the same. Known of steps in graphs whose loss compares with no targets, of the outputs of the last
    kernel; the last quarter of the steps so far counts. Not of optimizers that take turns. Does not find embeddings
    that use some of their dimensions only.

    Args:
        history: the training up to some step.
        max_left: largest standard deviation, as a share of that at the first steps.
        max_left_of_constant: the same, where it is also a small share of the outputs' size.
        max_of_size: largest standard deviation, as a share of the root mean square of the outputs.
        min_steps: steps before which nothing is reported.
    """
    spread, size = history.steps.column("output_spread"), history.steps.column("output_size")
    if (
        not history.alone
        or history.step - history.start < min_steps
        or len(size) != len(spread)
        or not len(size)
    ):
        return
    begun = float(np.median(spread.mean[:_FIRST_ROWS, 0]))
    late, of = spread.since(history.at(0.75)), size.since(history.at(0.75))
    if not len(late) or not begun > 0:
        return
    now, large = float(late.mean.mean()), float(of.mean.mean())
    constant = now < max_of_size * large
    left = max_left_of_constant if constant else max_left
    if now < left * begun:
        below = spread.first[spread.mean[:, 0] < left * begun]
        yield Problem(
            "output_collapse", "critical", int(below[0]), (),
            f"The outputs are nearly the same for every example: their standard deviation over a batch fell from "
            f"{begun:.3g} to {now:.3g} (threshold: {left:.0%} of it"
            + (f", where it is less than {max_of_size:.0%} of their size)." if constant else ")."),
            "Have the loss keep different examples apart: negatives (InfoNCE, triplets), a term for the variance of "
            "each output over the batch (VICReg), or stop_gradient and a predictor on one side (SimSiam, BYOL).",
            history.step, 0.8,
        )  # fmt: skip
