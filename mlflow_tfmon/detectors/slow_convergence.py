"""A loss that falls, but will not be down when the training ends."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, Learning, fell, learning, losses
from mlflow_tfmon.detectors.problem import Problem

_FEW = 0.15
_STEADY = 0.75


def detect(history: History) -> Iterator[Problem]:
    """Sees a loss that falls, and at its pace makes less than 30% of the way from a constant prediction to zero.

    It must still fall in the last half of what was done, and where it makes 15% at least, by three quarters of what it
    fell in the first half: one that bends may come to all there is. Looked at once half of the training is over, where
    its length and a constant prediction's loss are known.
    """
    state = learning(history)
    if not state.known or not history.total_steps or not state.little(0.5) or not fell(history, 0.5):
        return
    expected = state.learned / state.share
    if expected < _FEW or (expected < LITTLE and not _bends(history, state)):
        yield Problem(
            "slow_convergence", "warning", 1, (),
            f"After {state.share:.0%} of the training the loss has made {max(state.learned, 0):.0%} of the way from a "
            f"constant prediction ({state.reference:.3g}) to zero, and is on the way to {max(expected, 0):.0%} at its "
            f"end (below {LITTLE:.0%} counts).",
            "Raise the learning rate, use Adam or momentum, scale the inputs, or train for longer.",
            history.step, 0.6,
        )  # fmt: skip


def _bends(history: History, state: Learning) -> bool:
    """Whether it fell by less in the second half than by three quarters of the first, from a constant prediction's."""
    level = losses(history).mean[:, 0]
    half = float(level[int(0.45 * len(level)) : int(0.55 * len(level)) + 1].mean())
    return half - state.now < _STEADY * (min(state.begun, state.reference) - half)
