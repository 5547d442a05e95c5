"""Detector of losses that go up and down without settling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning, losses
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import lower

_WINDOWS = 20


def detect(
    history: History, *, min_swing: float = 0.1, min_turns: float = 0.5, min_over_noise: float = 3.0
) -> Iterator[Problem]:
    """Finds losses whose mean over twentieths of the training swings by a tenth of a constant prediction's loss.

    In the second half of the steps so far, at least half of the changes must reverse the one before, and the loss must
    not have fallen. The noise of single batches is averaged out; a loss near zero cannot swing that far.

    Args:
        history: the training up to some step.
        min_swing: least swing, as a share of a constant prediction's loss.
        min_turns: least share of the changes that reverse the one before.
        min_over_noise: least ratio of the swing to what means differ by chance (1.1 by chance alone).
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
    if (
        swing >= min_swing * state.reference
        and swing > min_over_noise * noise
        and turns >= min_turns
        and not came_down
    ):
        yield Problem(
            "oscillating_loss", "warning", int(curve.first[len(curve) // 2]), (),
            f"The loss, averaged over twentieths of the training, swings up and down by {swing:.3g}: "
            f"{swing / state.reference:.0%} of a constant prediction's loss (threshold: {min_swing:.0%}).",
            f"{lower(history)}. If that does not help, use larger batches or less momentum.",
            history.step, 0.8,
        )  # fmt: skip
