"""Detectors of problems in a training: one module per kind, each a pure function of a `History`.

This package imports neither TensorFlow nor MLflow: a recording can be diagnosed again at any time. A new kind is a
module with a function `detect`, listed in `CAUSES` (or in `OUTCOMES`, reported only if no cause was found). Its
thresholds are the function's keyword-only arguments, which the setting `detectors` can change.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from mlflow_tfmon.detectors import (
    accumulation_not_zeroed,
    dead_relu,
    desync,
    exploding_gradient,
    generator_collapse,
    improper_activation,
    input_bound,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_output_mismatch,
    loss_scale_collapse,
    loss_unbounded,
    memory_growth,
    nan_or_inf,
    normalization_mismatch,
    one_class_predicted,
    optimizer_renewed,
    oscillating_loss,
    output_not_learning,
    overfitting,
    plateau,
    poor_initialization,
    retracing,
    saturated_activation,
    shape_broadcast,
    slow_convergence,
    stagnant_weights,
    straggler,
    underfitting,
    unnormalized_input,
    unscaled_targets,
    unshuffled_data,
    validation_mismatch,
    vanishing_gradient,
    worker_stopped,
)
from mlflow_tfmon.detectors.history import Gatherer, History
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.thresholds import Chosen, Detect, chosen_of, kind_of
from mlflow_tfmon.detectors.witnesses import witnessed
from mlflow_tfmon.errors import contained

__all__ = ["CAUSES", "KINDS", "OUTCOMES", "Detect", "Gatherer", "History", "Problem", "judge"]

CAUSES: tuple[Detect, ...] = (
    nan_or_inf.detect, loss_output_mismatch.detect, shape_broadcast.detect, improper_activation.detect,
    poor_initialization.detect, unnormalized_input.detect, unscaled_targets.detect, accumulation_not_zeroed.detect,
    unshuffled_data.detect, optimizer_renewed.detect, loss_scale_collapse.detect, loss_unbounded.detect,
    exploding_gradient.detect, vanishing_gradient.detect, dead_relu.detect, saturated_activation.detect,
    learning_rate_too_high.detect, learning_rate_too_low.detect, stagnant_weights.detect,
    oscillating_loss.detect, output_not_learning.detect, generator_collapse.detect,
    validation_mismatch.detect, normalization_mismatch.detect, overfitting.detect, input_bound.detect,
    retracing.detect, memory_growth.detect, desync.detect, straggler.detect, worker_stopped.detect,
)  # fmt: skip
OUTCOMES: tuple[Detect, ...] = (
    one_class_predicted.detect,
    underfitting.detect,
    plateau.detect,
    slow_convergence.detect,
)
KINDS = tuple(sorted(kind_of(detect) for detect in (*CAUSES, *OUTCOMES)))
# These do not explain what is learned.
_BESIDE = {"desync", "input_bound", "memory_growth", "retracing", "straggler", "worker_stopped"}


def judge(
    history: History, further: Iterable[Detect] = (), chosen: Chosen = MappingProxyType({})
) -> list[Problem]:
    """Returns the problems of a training, the most severe first.

    Args:
        history: the training up to some step.
        further: detectors of other packages.
        chosen: detectors that are turned off, and thresholds, as in the setting `detectors`.

    Example:
        >>> judge(History())
        []
    """
    found = [witnessed(one, history) for one in _found(CAUSES, history, chosen)]
    found += [one for detect in further for one in detect(history)]
    if all(problem.kind in _BESIDE for problem in found):
        found += _found(OUTCOMES, history, chosen)
    found = [problem for problem in found if chosen.get(problem.kind) is not False]
    if any(problem.kind == "normalization_mismatch" for problem in found):
        # Then the validation loss tells nothing of the data.
        found = [problem for problem in found if problem.kind != "overfitting"]
    return sorted(found, key=lambda problem: problem.severity != "critical")


def _found(detectors: Iterable[Detect], history: History, chosen: Chosen) -> list[Problem]:
    found: list[Problem] = []
    for kind, detect in chosen_of(detectors, chosen):
        with contained(f"the detector {kind}", "problems of its kind may go unnoticed"):
            found += detect(history)
    return found
