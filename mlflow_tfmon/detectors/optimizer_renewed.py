"""Detector of loops that make a new optimizer for each step, which has no memory of the steps before."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, learning
from mlflow_tfmon.detectors.problem import Problem

_WITHOUT_MEMORY = "SGD"  # which needs none, unless it has momentum


def detect(history: History, *, min_optimizers: int = 10, max_steps_each: float = 2.0) -> Iterator[Problem]:
    """Finds variables trained by ten optimizers or more, each of which made two steps at most, until 70% is learned.

    An optimizer that begins anew has no averages of gradients: each first step of Adam changes each weight by the
    learning rate, whatever the gradient. Not of SGD, which is as good without memory, nor of loops in which other
    optimizers take turns with these: an inner loop of meta-learning makes one for each task.

    Args:
        history: the training up to some step.
        min_optimizers: optimizers of the same variables from which on it is reported.
        max_steps_each: largest number of steps that an optimizer made, in the mean.
    """
    known, steps = history.premises, history.step - history.start
    if known is None or known.optimizers < min_optimizers or known.optimizer in ("", _WITHOUT_MEMORY):
        return
    state = learning(history)
    if (
        not history.alone
        or steps > max_steps_each * known.optimizers
        or (state.known and state.learned >= MUCH)
    ):
        return
    yield Problem(
        "optimizer_renewed", "warning", 1, (),
        f"{known.optimizers} optimizers ({known.optimizer}) have made {steps} steps of the same weights: each begins "
        "without what those before it knew of the gradients.",
        "Make the optimizer once, before the loop, unless the weights are set back for each.", history.step, 0.9,
    )  # fmt: skip
