"""Detector of losses in which every prediction is compared with every target."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, learning
from mlflow_tfmon.detectors.problem import Problem


def detect(history: History) -> Iterator[Problem]:
    """Finds, before the first step, a loss that subtracts shapes (n, 1) and (n,), which gives (n, n).

    Each prediction is then drawn to the mean of all targets. Withdrawn if 70% is learned nevertheless. Seen in graphs
    (`fit`, `tf.function`); what a loop computes eagerly, or a function that it calls, is not looked into.
    """
    shapes = history.premises.broadcast if history.premises is not None else ""
    if shapes and not learning(history).learned >= MUCH:
        yield Problem(
            "shape_broadcast", "critical", min(1, history.step), (),
            f"The loss subtracts tensors of shapes {shapes}: they broadcast to every pair, so each prediction is "
            "compared with all targets, and the best that can be learned is their mean.",
            "Give both the same shape, such as predictions[:, 0] (or tf.squeeze(predictions, axis=-1)), or "
            "targets[:, None].",
            history.step, 0.95,
        )  # fmt: skip
