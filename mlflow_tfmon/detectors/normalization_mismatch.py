"""Detector of batch normalization whose moving averages have not caught up with the training."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import accuracy, by_step, learning
from mlflow_tfmon.detectors.problem import Problem

_LEFT, _MOSTLY_LEFT = 0.1, 0.3  # of the initial averages, at the training's end
_LATE = 0.5  # share of the training after which the former counts
_EPOCHS = 3
_ACCURACY, _LOSS = 0.25, 0.25  # by how much validation is behind
_SETTLED = 0.01  # of the initial averages, with the momentum that is advised


def detect(history: History) -> Iterator[Problem]:
    """Finds models that validate far worse than they train because BatchNormalization's averages lag behind.

    In training a batch is normalized by its own statistics, in validation by moving averages, of which each step keeps
    the share `momentum`: after n steps momentum^n of their initial values (mean 0, variance 1) is left. Reported if a
    tenth will be left at the end of the training (30% before half of it is over), and validation is 25 accuracy points
    behind (critical), or its loss is behind by a quarter of a constant prediction's (critical if there is no accuracy).
    Source: Ioffe and Szegedy, 2015.
    """
    known = history.premises
    train, held_out = by_step(history, "loss"), by_step(history, "val_loss")
    if known is None or known.trained_before or not 0 < known.norm_momentum < 1:
        return
    if len(held_out) < _EPOCHS or len(train) != len(held_out):
        return
    state = learning(history)
    steps = max(history.total_steps or 0, history.step)
    left = known.norm_momentum**steps
    if left < _LEFT or (left < _MOSTLY_LEFT and state.share < _LATE):
        return
    behind = [float(held_out.mean[at, 0] - train.mean[at, 0]) for at in (-2, -1)]
    learned, held = accuracy(history), accuracy(history, "val_")
    apart = len(learned) and len(held) and learned.mean[-1, 0] - held.mean[-1, 0] >= _ACCURACY
    if not apart and not (state.reference > 0 and min(behind) >= _LOSS * state.reference):
        return
    lower = math.floor(100 * _SETTLED ** (1 / steps)) / 100
    yield Problem(
        "normalization_mismatch", "critical" if apart or not len(held) else "warning", 1, (),
        f"BatchNormalization's moving averages (momentum {known.norm_momentum:g}) still hold {left:.0%} of their "
        f"initial values after the {steps} steps of this training (threshold: {_LEFT:.0%}), so the model does not "
        f"compute in validation what it was trained for: the training loss is {train.mean[-1, 0]:.3g}, the "
        f"validation loss {held_out.mean[-1, 0]:.3g}.",
        f"Use BatchNormalization(momentum={min(max(lower, 0.5), 0.95):g}), or train for more steps (smaller batches).",
        history.step, 0.9,
    )  # fmt: skip
