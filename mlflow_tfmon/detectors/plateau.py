"""Detector of losses that fell a little and then stopped."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import NOTHING, fell, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.underfitting import UNRELATED, lighter_penalty


def detect(history: History, *, max_learned: float = 0.15) -> Iterator[Problem]:
    """Finds losses that closed 5% to 15% of the gap between a constant prediction and zero, then stopped falling.

    They have not fallen for half of the steps so far. Applied once half of the training is over. If more was learned,
    that may well be all there is to learn. Cannot distinguish targets that are mostly noise from a model that learns
    too little of them. Counterpart of SageMaker Debugger's "loss
    not decreasing".

    Args:
        history: the training up to some step.
        max_learned: share of the gap from which on what is learned may be all there is.
    """
    state = learning(history)
    if (
        state.known
        # The divergence of a variational autoencoder takes a part of what is learned.
        and not (history.premises is not None and history.premises.divergence)
        and state.share >= 0.5
        and NOTHING <= state.learned < max_learned
        and not fell(history, 0.5)
    ):
        yield Problem(
            "plateau", "warning", int(history.at(0.5)), (),
            f"The loss has stayed at {state.now:.3g} since step {history.at(0.5):.0f}, having closed "
            f"{state.learned:.0%} of the gap between a constant prediction ({state.reference:.3g}) and zero "
            f"(threshold: {max_learned:.0%}).",
            lighter_penalty(history) + UNRELATED,
            history.step, 0.6,
        )  # fmt: skip
