"""Detector of losses that go up and down without settling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning, losses
from mlflow_tfmon.detectors.problem import Problem

_WINDOWS = 20
_SWING = 0.1
_TURNS = 0.5
_CLEAR = 3.0  # means that differ by chance alone swing by 1.1 times their standard deviation


def detect(history: History) -> Iterator[Problem]:
    """Finds losses whose mean over twentieths of the training swings by a tenth of a constant prediction's loss.

    In the second half of the steps so far, at least half of the changes must reverse the one before, and the loss must
    not have fallen. The noise of single batches is averaged out; a loss near zero cannot swing that far.
    """
    state = learning(history)
    curve = losses(history)
    if not state.share >= 0.3 or len(curve) < 4 * _WINDOWS or diverged(history) or not state.reference > 0:
        return
    parts = np.array_split(curve.mean[:, 0], _WINDOWS)[_WINDOWS // 2 :]
    level = np.array([part.mean() for part in parts])
    noise = float(np.mean([part.std() / np.sqrt(len(part)) for part in parts]))
    changes = np.diff(level)
    swing = float(np.abs(changes).mean())
    turns = float((changes[1:] * changes[:-1] < 0).mean())
    came_down = level[-1] < level[0] - swing
    if swing >= _SWING * state.reference and swing > _CLEAR * noise and turns >= _TURNS and not came_down:
        yield Problem(
            "oscillating_loss", "warning", int(curve.first[len(curve) // 2]), (),
            f"The loss, averaged over twentieths of the training, swings up and down by {swing:.3g}: "
            f"{swing / state.reference:.0%} of a constant prediction's loss (threshold: {_SWING:.0%}).",
            "Lower the learning rate, use larger batches, or decay the learning rate (keras.optimizers.schedules).",
            history.step, 0.8,
        )  # fmt: skip
