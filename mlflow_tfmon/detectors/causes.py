"""Order of a training's problems: the cause first, and what follows from it named as a consequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mlflow_tfmon.detectors.problem import Problem

_OF_LOSS = frozenset({"oscillating_loss", "plateau", "slow_convergence", "underfitting"})
_OF_GRADIENTS = _OF_LOSS | {"stagnant_weights", "vanishing_gradient"}
_OF_UNITS = _OF_GRADIENTS | {"dead_relu", "saturated_activation"}
_OF_DIVERGENCE = _OF_UNITS | {"exploding_gradient", "loss_scale_collapse", "nan_or_inf"}
# What each kind brings about, the most basic kinds first: what is there before the first step explains the steps, these
# explain gradients and units, and those the loss.
_BRINGS_ABOUT: dict[str, frozenset[str]] = {
    "loss_output_mismatch": _OF_DIVERGENCE | {"improper_activation", "learning_rate_too_high"},
    "shape_broadcast": _OF_UNITS | {"learning_rate_too_high", "learning_rate_too_low"},
    "improper_activation": _OF_UNITS | {"learning_rate_too_high"},
    "poor_initialization": _OF_DIVERGENCE | {"learning_rate_too_high", "learning_rate_too_low"},
    "unnormalized_input": _OF_DIVERGENCE | {"learning_rate_too_high"},
    "unscaled_targets": _OF_DIVERGENCE | {"learning_rate_too_high", "learning_rate_too_low"},
    "accumulation_not_zeroed": _OF_DIVERGENCE | {"learning_rate_too_high"},
    "unshuffled_data": _OF_LOSS | {"learning_rate_too_high", "one_class_predicted", "overfitting"},
    "optimizer_renewed": _OF_DIVERGENCE | {"learning_rate_too_high", "learning_rate_too_low"},
    "loss_unbounded": _OF_DIVERGENCE | {"learning_rate_too_high", "overfitting"},
    "validation_mismatch": frozenset({"normalization_mismatch", "overfitting"}),
    "normalization_mismatch": frozenset({"overfitting"}),
    "learning_rate_too_high": _OF_DIVERGENCE,
    "exploding_gradient": _OF_UNITS | {"nan_or_inf"},
    "loss_scale_collapse": _OF_UNITS | {"nan_or_inf", "learning_rate_too_low"},
    "nan_or_inf": _OF_UNITS,
    "dead_relu": _OF_GRADIENTS,
    "saturated_activation": _OF_GRADIENTS | {"dead_relu"},
    "vanishing_gradient": _OF_LOSS | {"stagnant_weights"},
    "learning_rate_too_low": _OF_LOSS | {"stagnant_weights"},
    "stagnant_weights": _OF_LOSS | {"output_not_learning"},
    "one_class_predicted": _OF_LOSS,
    "input_bound": frozenset({"straggler"}),
}
_OF_DATA = _OF_DIVERGENCE | {"learning_rate_too_high"}  # by values that are not finite in the data
_EARLIER_STEPS, _EARLIER_SHARE = (
    20,
    0.1,
)  # by how much later than what it explains a cause may have been measured


def explained(problems: Iterable[Problem]) -> list[Problem]:
    """Returns the problems of one training, causes first; one that another explains says so, and has no advice.

    A problem explains another if its kind brings about the other's and it did not begin clearly later. Many signals are
    measured at some steps only, so 20 steps, or a tenth of the steps so far, do not count as later.

    Args:
        problems: as the detectors found them.

    Example:
        >>> [(one.kind, one.consequence_of) for one in explained([dead_relu, learning_rate_too_high])]
        [('learning_rate_too_high', ''), ('dead_relu', 'learning_rate_too_high')]
    """
    kinds = list(_BRINGS_ABOUT)
    found = sorted(
        problems,
        key=lambda one: (
            not _is_of_data(one),
            kinds.index(one.kind) if one.kind in kinds else len(kinds),
            one.severity != "critical",
        ),
    )
    causes: list[Problem] = []
    consequences: list[Problem] = []
    for problem in found:
        cause = next((one for one in causes if _explains(one, problem)), None)
        if cause is None:
            causes.append(problem)
        else:
            consequences.append(dataclasses.replace(problem, consequence_of=cause.kind, advice=""))
    return sorted(causes, key=lambda one: one.severity != "critical") + consequences


def _explains(cause: Problem, problem: Problem) -> bool:
    brought = _OF_DATA if _is_of_data(cause) else _BRINGS_ABOUT.get(cause.kind, frozenset())
    step = max(cause.last_step, problem.last_step)
    later = cause.first_step - problem.first_step > max(_EARLIER_STEPS, _EARLIER_SHARE * step)
    return problem.kind in brought and not later


def _is_of_data(problem: Problem) -> bool:
    """Whether it is that data are not finite, which is there before the first step."""
    return problem.kind == "nan_or_inf" and problem.first_step == 0
