"""A loss that falls, but will not be down when the training ends."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import fell, learning
from mlflow_tfmon.detectors.problem import Problem

_WAY = 0.15
_LATE = 0.5


def detect(history: History) -> Iterator[Problem]:
    """Sees a loss that falls, and at its pace makes less than 15% of the way from a constant prediction to zero.

    It must still fall in the last half of what was done. Looked at once half of the training is over, where its
    length and a constant prediction's loss are known.
    """
    state = learning(history)
    if not state.known or not history.total_steps or not state.little(0.5) or not fell(history, _LATE):
        return
    expected = state.learned / state.share
    if expected < _WAY:
        yield Problem(
            "slow_convergence", "warning", 1, (),
            f"After {state.share:.0%} of the training the loss has made {max(state.learned, 0):.0%} of the way from a "
            f"constant prediction ({state.reference:.3g}) to zero, and is on the way to {max(expected, 0):.0%} at its "
            f"end (below {_WAY:.0%} counts).",
            "Raise the learning rate, use Adam or momentum, scale the inputs, or train for longer.",
            history.step, 0.6,
        )  # fmt: skip
