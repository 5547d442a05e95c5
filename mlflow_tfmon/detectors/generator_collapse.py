"""Detector of adversarial trainings whose discriminator is always right, so that the generator learns nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table

# Losses at first of two players that know nothing, log(2) or the sum of two: an actor's and a critic's are others.
_GROWS = 1.2  # times what it was before: examples that are still becoming more different
_LIKE_ENTROPY = 0.3, 2.5
_BALANCE = (
    "Lower the discriminator's learning rate to a quarter of the generator's, and have it learn that real examples are "
    "0.9 instead of 1; have the generator minimize -log(D(G(z))), not log(1 - D(G(z))). If that does not help, give "
    "the discriminator Dropout or fewer units, or use a Wasserstein loss with a gradient penalty."
)


def detect(
    history: History,
    *,
    min_loss: float = 3.0,
    max_other: float = 0.1,
    min_loss_alone: float = 6.0,
    min_steps: int = 200,
    min_spread: float = 0.25,
    min_steps_of_spread: int = 500,
) -> Iterator[Problem]:
    """Finds a loss above 3 that rose threefold while that of the alternating optimizer fell below 0.1.

    Or a loss above 6, if the other fell to a third: it may be wrong about some of the real examples.

    Or a discriminator whose cross-entropy is below 0.1, whatever the generator's loss does: a saturating one falls.
    (Known of steps in graphs by which a network learns to be judged by the other, with a cross-entropy.)

    Also a generator whose examples are all alike: in the last quarter of the steps, the standard deviation of each of
    their numbers over a batch is a quarter of that of the real data, and does not grow. (Known of steps in graphs whose
    data come from a dataset, or are what the step is called with.)

    For losses that are cross-entropies: a generator that fools the discriminator with one of twenty examples has a loss
    of 3, and a discriminator that is 95% sure of each has 0.1 or less. Then the generator's gradient tells little.
    The second half of the steps so far counts. Source: Goodfellow, 2016, section 3.2.3. Does not find a generator that
    makes some of the modes of the data, far from each other.

    Args:
        history: the training up to some step.
        min_loss: least mean loss of the generator.
        max_other: largest mean loss of the discriminator.
        min_loss_alone: least mean loss of the generator if the discriminator's has fallen to a third only.
        min_steps: steps before which nothing is reported.
        min_spread: least harmless deviation of a generator's examples, as a share of the data's.
        min_steps_of_spread: steps before which nothing is reported of that.
    """
    if not history.alone and history.step - history.start >= min_steps_of_spread:
        yield from _alike(history, min_spread)
    curve = history.steps.column("loss")
    if (
        history.alone
        or history.step - history.start < min_steps
        or not len(curve)
        or not history.first_losses
    ):
        return
    begun, (loss, since) = float(np.median(history.first_losses)), _late(curve, history.at(0.5))
    if _judged(history):
        for name, other in history.others.items():
            low, _ = _late(other, history.at(0.5))
            # A discriminator begins with a cross-entropy near log 2; what does not may be another's error.
            first = float(other.mean[0, 0]) if len(other) else 0.0
            if _LIKE_ENTROPY[0] <= first <= _LIKE_ENTROPY[1] and 0 <= low <= max_other:
                yield Problem(
                    "generator_collapse", "critical", int(since), (),
                    f"The cross-entropy of {name or 'the other optimizer'} is {low:.3g} (threshold: {max_other:g}): "
                    "the discriminator is always right, and the generator learns little from it.",
                    _BALANCE, history.step, 0.8,
                )  # fmt: skip
                return
    if not _LIKE_ENTROPY[0] <= begun <= _LIKE_ENTROPY[1] or not loss >= max(min_loss, 3 * begun):
        return
    for name, other in history.others.items():
        first, (low, _) = float(other.mean[0, 0]) if len(other) else 0.0, _late(other, history.at(0.5))
        least = first / 3 if loss >= min_loss_alone else min(max_other, first / 3)
        if first <= _LIKE_ENTROPY[1] and 0 <= low <= least:
            yield Problem(
                "generator_collapse", "critical", int(since), (),
                f"The loss of {name or 'the other optimizer'} fell from {first:.3g} to {low:.3g} (threshold: "
                f"{least:.2g}) while this one rose from {begun:.3g} to {loss:.3g} (threshold: {min_loss:g}): the "
                "discriminator is always right, and the generator learns little from it.",
                _BALANCE, history.step, 0.7,
            )  # fmt: skip
            return


def _judged(history: History) -> bool:
    """Whether what is trained makes examples for another network that a cross-entropy judges."""
    data = history.premises
    return data is not None and data.loss == "binary_crossentropy" and bool(np.isfinite(data.spread))


def _alike(history: History, min_spread: float) -> Iterator[Problem]:
    """The problem that the examples of a generator are all alike."""
    curve, data = history.steps.column("output_spread"), history.premises
    real = data.spread if data is not None else float("nan")
    (before, _), (now, since) = (
        _late(curve.rows(curve.last <= history.at(0.75)), history.at(0.5)),
        _late(curve, history.at(0.75)),
    )
    if now < min_spread * real and now < _GROWS * before:
        yield Problem(
            "generator_collapse", "critical", int(since), (),
            f"What the generator makes of different noise is nearly the same: its numbers have a standard deviation of "
            f"{now:.3g} within a batch, those of the data {real:.3g} (threshold: {min_spread:.0%} of it).",
            "Let the discriminator see a batch as a whole (the standard deviation over the batch as one more of its "
            "inputs), or use a Wasserstein loss with a gradient penalty; lower the generator's learning rate.",
            history.step, 0.7,
        )  # fmt: skip


def _late(curve: Table, since: float) -> tuple[float, float]:
    """The mean of a curve since a step, and the step at which that begins."""
    rows = curve.since(since)
    return (float(rows.mean.mean()), float(rows.first[0])) if len(rows) else (float("nan"), 0.0)
