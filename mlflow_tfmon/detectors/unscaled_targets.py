"""Detector of targets whose scale gets in the way of learning."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning
from mlflow_tfmon.detectors.premises import LINEAR, REGRESSIONS
from mlflow_tfmon.detectors.problem import Problem

_IN_PERCENT = "mean_absolute_percentage_error"  # the scale of its targets does not matter


def detect(history: History, *, max_std: float = 20.0, max_offset: float = 20.0) -> Iterator[Problem]:
    """Finds regressions on targets with a standard deviation above 20, or with a mean 20 of them away from 0.

    Reported if the loss diverges or little is learned: with a squared error, gradients are as large as the targets, and
    an output that starts near 0 has far to go. Models that scale their output themselves (an output that is no plain
    linear layer) are left out. Source: Bishop, Neural Networks for Pattern Recognition, 1995, section 8.2.

    Args:
        history: the training up to some step.
        max_std: largest harmless standard deviation.
        max_offset: largest harmless mean, in standard deviations.
    """
    data = history.premises
    y, out = (data.targets, data.output) if data is not None else (None, None)
    if data is None or y is None or out is None or not y.std > 0 or y.nonfinite:
        return
    if data.loss not in REGRESSIONS or data.loss == _IN_PERCENT or out.activation not in LINEAR:
        return
    state = learning(history)
    if not (state.little(0.15) or diverged(history)):
        return
    if y.std > max_std:
        why = f"their standard deviation is {y.std:.3g} (threshold: {max_std:g})"
    elif abs(y.mean) > max_offset * y.std:
        away = abs(y.mean) / y.std
        why = (
            f"their mean, {y.mean:.3g}, is {away:.0f} standard deviations from 0 (threshold: {max_offset:g})"
        )
    else:
        return
    yield Problem(
        "unscaled_targets", "critical", 1, (),
        f"The targets are not scaled: {why}, and the loss has {state.progress}.",
        f"Train on y = (y - {y.mean:.4g}) / {y.std:.4g}, the validation targets likewise; the model's prediction is "
        f"then {y.std:.4g} * output + {y.mean:.4g}.",
        history.step, 0.8,
    )  # fmt: skip
