"""Detector of batch normalization whose moving averages have not caught up with the training."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import accuracy, by_step, learning
from mlflow_tfmon.detectors.problem import Problem

_LATE = 0.5  # share of the training after which the former counts
_SETTLED = 0.01  # of the initial averages, with the momentum that is advised


def detect(
    history: History,
    *,
    min_left: float = 0.1,
    min_left_early: float = 0.3,
    min_epochs: int = 3,
    min_accuracy_gap: float = 0.25,
    min_loss_gap: float = 0.25,
) -> Iterator[Problem]:
    """Finds models that validate far worse than they train because BatchNormalization's averages lag behind.

    In training a batch is normalized by its own statistics, in validation by moving averages, of which each step keeps
    the share `momentum`: after n steps momentum^n of their initial values (mean 0, variance 1) is left. Reported if a
    tenth will be left at the end of the training (30% before half of it is over), and validation is 25 accuracy points
    behind (critical), or its loss is behind by a quarter of a constant prediction's (critical if there is no accuracy).
    Source: Ioffe and Szegedy, 2015.

    Args:
        history: the training up to some step.
        min_left: least share of the initial averages that is left at the training's end.
        min_left_early: the same before half of the training is over.
        min_epochs: epochs before which nothing is reported.
        min_accuracy_gap: least lag of the validation accuracy, where 1 is all examples.
        min_loss_gap: least lag of the validation loss, as a share of a constant prediction's loss.
    """
    known = history.premises
    train, held_out = by_step(history, "loss"), by_step(history, "val_loss")
    if known is None or known.trained_before or not 0 < known.norm_momentum < 1:
        return
    if len(held_out) < max(2, min_epochs) or len(train) != len(held_out):
        return
    state = learning(history)
    steps = max(history.total_steps or 0, history.step)
    left = known.norm_momentum**steps
    if left < min_left or (left < min_left_early and state.share < _LATE):
        return
    behind = [float(held_out.mean[at, 0] - train.mean[at, 0]) for at in (-2, -1)]
    learned, held = accuracy(history), accuracy(history, "val_")
    apart = len(learned) and len(held) and learned.mean[-1, 0] - held.mean[-1, 0] >= min_accuracy_gap
    if not apart and not (state.reference > 0 and min(behind) >= min_loss_gap * state.reference):
        return
    lower = math.floor(100 * _SETTLED ** (1 / steps)) / 100
    yield Problem(
        "normalization_mismatch", "critical" if apart or not len(held) else "warning", 1, (),
        f"BatchNormalization's moving averages (momentum {known.norm_momentum:g}) still hold {left:.0%} of their "
        f"initial values after the {steps} steps of this training (threshold: {min_left:.0%}), so the model does not "
        f"compute in validation what it was trained for: the training loss is {train.mean[-1, 0]:.3g}, the "
        f"validation loss {held_out.mean[-1, 0]:.3g}.",
        f"Use BatchNormalization(momentum={min(max(lower, 0.5), 0.95):g}), or train for more steps (smaller batches).",
        history.step, 0.9,
    )  # fmt: skip
