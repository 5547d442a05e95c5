"""Detector of inputs whose scale gets in the way of learning."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning
from mlflow_tfmon.detectors.problem import Problem

_LARGE = 20.0
_UNEQUAL = 100.0
_OFFSET = 20.0
_SMALL = 0.05


def detect(history: History) -> Iterator[Problem]:
    """Finds inputs with a standard deviation above 20 or below 1/20 of their mean, or features a hundredfold apart.

    Reported if the loss diverges or little is learned: many networks cope. Inputs that all lie within 0.05 are reported
    if nothing is learned. Models that begin with Normalization, Rescaling, BatchNormalization or an Embedding are left
    out. Source: LeCun et al., 1998.
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
    if high > _LARGE or abs(x.mean) + x.std > _LARGE * 2:
        reasons.append(
            f"they range from {x.least:.3g} to {x.most:.3g} (standard deviation: {high:.3g}; threshold: {_LARGE:g})"
        )
    if low > 0 and high > _UNEQUAL * low and x.columns > 1 and high > 1:
        reasons.append(f"the standard deviations of the features range from {low:.2g} to {high:.2g}")
    if x.feature_offset > _OFFSET and x.columns <= 100:
        reasons.append(f"a feature's mean is {x.feature_offset:.0f} standard deviations from 0")
    if x.most - x.least < _SMALL and state.nothing(0.15):
        reasons.append(
            f"they range only from {x.least:.3g} to {x.most:.3g} (threshold: {_SMALL:g} apart; scaled twice?)"
        )
    if reasons:
        yield Problem(
            "unnormalized_input", "critical", 1, (),
            f"The inputs are not normalized: {'; '.join(reasons)}. Little has been learned.",
            "Scale each feature to mean 0 and standard deviation 1 (keras.layers.Normalization, or "
            "keras.layers.Rescaling(1 / 255) for images).",
            history.step, 0.8,
        )  # fmt: skip
