"""Steps that are too small to get anywhere within the training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import rate, update_ratio, way

_PATH = 0.1
_SLOPE = 0.3


def detect(history: History) -> Iterator[Problem]:
    """Sees weights that all the steps of the training together could not move by a tenth, while little is learned.

    What is to come is taken to go at the pace of late (a warm-up's grows). Nor may one step have moved them so far:
    then the others are small since there is nothing left to move. The gradient must still have a third of its first
    norm: where it is gone, larger steps would not help. Looked at once a quarter of the training is over. A loop of the
    user's, whose length is not known, is taken to go on for as long again as it has gone on, and for 2,000 steps at
    least: so it may be said too early, or too late.
    """
    state = learning(history)
    usual, most = update_ratio(history)
    norms = history.steps.column("grad_norm")
    if not state.little(0.25) or not len(norms) or not np.isfinite(usual):
        return
    path = way(history, state.share)
    begun = float(np.median(norms.mean[: max(1, len(norms) // 20), 0]))
    now = float(np.median(norms.mean[-max(1, len(norms) // 10) :, 0]))
    if 0 < path < _PATH and most < _PATH and now >= _SLOPE * begun > 0:
        yield Problem(
            "learning_rate_too_low", "critical", 1, (),
            f"A step changes the weights by {usual:.1g} of their norm, so the whole training by {path:.1%} at most "
            f"({_PATH:.0%} counts); the loss has made {max(state.learned, 0):.0%} of the way from a constant "
            "prediction to zero, and its gradient has not become smaller.",
            f"Raise the learning rate{f' ({rate(history):.3g})' if rate(history) == rate(history) else ''} by a factor "
            "of 10 to 100, until a step changes the weights by about a thousandth.",
            history.step, 0.85,
        )  # fmt: skip
