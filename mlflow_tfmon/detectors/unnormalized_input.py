"""Detector of inputs whose scale gets in the way of learning."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.detectors.updates import default_rate

_FEW_FEATURES = 100  # of more, such as pixels, some hardly vary: all are scaled alike
_ALIKE = 3.0  # ratio of the features' standard deviations up to which one number will do


def detect(
    history: History,
    *,
    max_std: float = 20.0,
    max_std_ratio: float = 100.0,
    max_offset: float = 20.0,
    min_range: float = 0.05,
) -> Iterator[Problem]:
    """Finds inputs with a standard deviation above 20 or below 1/20 of their mean, or features a hundredfold apart.

    Reported if the loss diverges or little is learned: many networks cope. Inputs that all lie within 0.05 are reported
    if nothing is learned. Models that begin with Normalization, Rescaling, BatchNormalization or an Embedding are left
    out. Source: LeCun et al., 1998.

    Args:
        history: the training up to some step.
        max_std: largest harmless standard deviation.
        max_std_ratio: largest harmless ratio of the features' standard deviations.
        max_offset: largest harmless mean of a feature, in standard deviations.
        min_range: least harmless difference of the largest and the smallest input.
    """
    data = history.premises
    if data is None or data.inputs is None or data.normalizes or not data.inputs.count:
        return
    state = learning(history)
    if not (state.little(0.15) or diverged(history)):
        return
    x = data.inputs
    low, high = x.feature_std
    reasons = []
    if high > max_std or abs(x.mean) + x.std > max_std * 2:
        reasons.append(
            f"they range from {x.least:.3g} to {x.most:.3g} (standard deviation: {high:.3g}; threshold: {max_std:g})"
        )
    if low > 0 and high > max_std_ratio * low and x.columns > 1 and high > 1:
        reasons.append(f"the standard deviations of the features range from {low:.2g} to {high:.2g}")
    if x.feature_offset > max_offset and x.columns <= 100:
        reasons.append(f"a feature's mean is {x.feature_offset:.0f} standard deviations from 0")
    if x.most == x.least and state.nothing(0.15):
        reasons.append(f"they are all {x.least:.3g}")
    elif x.most - x.least < min_range and state.nothing(0.15):
        reasons.append(
            f"they range only from {x.least:.3g} to {x.most:.3g} (threshold: {min_range:g} apart; scaled twice?)"
        )
    if reasons:
        yield Problem(
            "unnormalized_input", "critical", 1, (),
            f"The inputs are not normalized: {'; '.join(reasons)}. Little has been learned.",
            f"{scaling(x)}{_afterwards(history)}",
            history.step, 0.8,
        )  # fmt: skip


def scaling(x: Sample) -> str:
    """The line of code that scales these inputs; a feature that never varies is not divided by almost nothing."""
    low, high = x.feature_std
    if x.most == x.least:
        return "Check how the inputs are loaded: no scaling makes them differ."
    if x.axes > 2 and x.whole and x.least >= 0 and 1 < x.most <= 255:
        line = "x = x / 255 (or put keras.layers.Rescaling(1 / 255) first)"
    elif x.columns > _FEW_FEATURES or x.columns == 1 or high <= _ALIKE * low:
        line = f"x = (x - {x.mean:.4g}) / {x.std:.4g}"
    else:
        line = "s = x.std(axis=0); x = (x - x.mean(axis=0)) / numpy.where(s > 0, s, 1)"
    return f"Scale the inputs: {line}; the validation inputs likewise, with the numbers of the training data."


def _afterwards(history: History) -> str:
    """Advice on a learning rate that may have been chosen so low for the sake of these inputs."""
    higher = default_rate(history) if not diverged(history) else ""
    return f" Then {higher}." if higher else ""
