"""Detector of losses that fall too slowly to get far before the training ends."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, Learning, fell, learning, losses
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import higher, update_ratio

_MOST_MOVED = 0.01  # of a kernel's norm, by a step with the advised learning rate


def detect(
    history: History, *, max_expected: float = 0.15, min_steadiness: float = 0.75
) -> Iterator[Problem]:
    """Finds losses that fall, but will close less than 30% of the gap between a constant prediction and zero.

    The loss must still fall in the second half of the steps so far; if it is to close 15% or more, it must fall by
    three quarters of its fall in the first half, since a curve that levels off may have learned all there is. Applied
    once half of the training is over, if its length and a constant prediction's loss are known.

    Args:
        history: the training up to some step.
        max_expected: share of the gap: a loss that is heading for less is reported in any case.
        min_steadiness: least fall in the second half of the steps, as a share of that in the first half.
    """
    state = learning(history)
    if not state.known or (history.premises is not None and history.premises.divergence):
        return
    if not history.total_steps or not state.little(0.5) or not fell(history, 0.5):
        return
    expected = state.learned / state.share
    if expected < max_expected or (expected < LITTLE and not _bends(history, state, min_steadiness)):
        yield Problem(
            "slow_convergence", "warning", 1, (),
            f"After {state.share:.0%} of the training the loss has closed {max(state.learned, 0):.0%} of the gap "
            f"between a constant prediction ({state.reference:.3g}) and zero; at this rate it closes "
            f"{max(expected, 0):.0%} by the end (threshold: {LITTLE:.0%}).",
            f"{_faster(history, expected)}. If that does not help, use Adam or momentum, scale the inputs, or train "
            "longer.",
            history.step, 0.6,
        )  # fmt: skip


def _faster(history: History, expected: float) -> str:
    """Advice: a loss that falls as fast as it is far has come by 95% after three of the times that it needs."""
    moved, _ = update_ratio(history)
    most = _MOST_MOVED / moved if moved > 0 else 10.0
    return higher(history, min(3 / max(expected, 0.01), max(most, 3.0)))


def _bends(history: History, state: Learning, min_steadiness: float) -> bool:
    """Whether the fall in the second half is less than that share of the fall in the first half.

    The first half is counted from the lower of the initial loss and a constant prediction's.
    """
    level = losses(history).mean[:, 0]
    half = float(level[int(0.45 * len(level)) : int(0.55 * len(level)) + 1].mean())
    return half - state.now < min_steadiness * (min(state.begun, state.reference) - half)
