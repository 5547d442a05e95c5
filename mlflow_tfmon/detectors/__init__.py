"""What goes wrong in a training: one module a kind of problem, pure functions of a `History`.

Nothing in here knows TensorFlow or MLflow: what was recorded can be judged again at any time. A new kind is a module
with a function `detect`, named in `CAUSES` (or in `OUTCOMES`, said only where no cause was found).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlflow_tfmon.detectors import (
    dead_relu,
    exploding_gradient,
    improper_activation,
    input_bound,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_output_mismatch,
    nan_or_inf,
    oscillating_loss,
    overfitting,
    plateau,
    poor_initialization,
    retracing,
    saturated_activation,
    slow_convergence,
    stagnant_weights,
    underfitting,
    unnormalized_input,
    vanishing_gradient,
)
from mlflow_tfmon.detectors.history import Gatherer, History
from mlflow_tfmon.detectors.problem import Problem

__all__ = ["CAUSES", "OUTCOMES", "Detect", "Gatherer", "History", "Problem", "judge"]

Detect = Callable[[History], Iterable[Problem]]
CAUSES: tuple[Detect, ...] = (
    nan_or_inf.detect, loss_output_mismatch.detect, improper_activation.detect, poor_initialization.detect,
    unnormalized_input.detect, exploding_gradient.detect, vanishing_gradient.detect, dead_relu.detect,
    saturated_activation.detect, learning_rate_too_high.detect, learning_rate_too_low.detect, stagnant_weights.detect,
    oscillating_loss.detect, overfitting.detect, input_bound.detect, retracing.detect,
)  # fmt: skip
OUTCOMES: tuple[Detect, ...] = (underfitting.detect, plateau.detect, slow_convergence.detect)
_BESIDE = {"input_bound", "retracing"}  # cost time, and are no reason for what is learned


def judge(history: History, further: Iterable[Detect] = ()) -> list[Problem]:
    """The problems of a training, those that matter most first.

    Args:
        history: the training up to some step.
        further: detectors of other people.

    Example:
        >>> judge(History())
        []
    """
    found = [problem for detect in (*CAUSES, *further) for problem in detect(history)]
    if all(problem.kind in _BESIDE for problem in found):
        found += [problem for detect in OUTCOMES for problem in detect(history)]
    return sorted(found, key=lambda problem: problem.severity != "critical")
