"""Detector of models that do no better than a constant prediction."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import NOTHING, Learning, fell, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import RANGE_TEST, rounded

_FEW_CLASSES = 10  # whose weights are spelled out
_LIGHT = 0.03  # of a constant prediction's loss, that penalties of the weights are to begin with
_UNEQUAL = 3.0  # times as frequent as the rarest class: from there on weights make a difference
UNRELATED = (
    f"{RANGE_TEST}. If no rate makes the loss fall, check that inputs and targets belong together (shuffled "
    "separately?) and that the model can memorize a single batch; else use a larger one."
)
_COMPARED = (
    "Print the shapes of predictions and targets within the loss: (n, 1) and (n,) broadcast to (n, n), and then their "
    "mean is the best that can be learned. "
)


def detect(
    history: History, *, min_done: float = 0.25, min_class_share: float = 0.9, max_distance: float = 0.03
) -> Iterator[Problem]:
    """Finds losses that are less than 5% better than the best constant prediction's, and do not fall.

    Of a loop whose loss has no known formula: losses that have stopped within 3% of what a constant prediction of the
    targets has, their variance (squared errors), mean distance from the median or entropy.
    Applied once a quarter of the training is over, and only if no cause was found. If one class makes up nine tenths of
    the targets, the evidence says so. Cannot distinguish a model that is too small from data in which there is nothing
    to learn. Counterpart of SageMaker Debugger's "loss not decreasing" and "class imbalance".

    Args:
        history: the training up to some step.
        min_done: share of the training before which nothing is reported.
        min_class_share: least share of the most frequent class of which the evidence tells.
        max_distance: largest distance from a constant prediction's loss, as a share of it, where the formula of the
            loss is not known.
    """
    state = learning(history)
    if not state.known and (like := _like_a_constant(history, state, min_done, max_distance)):
        yield Problem(
            "underfitting", "critical", 1, (),
            f"After {state.share:.0%} of the training the loss stays at {state.now:.4g}, which is what a constant "
            f"prediction has: the {like[0]} of the targets is {like[1]:.4g} (threshold: {max_distance:.0%} apart).",
            (_COMPARED if like[0] != "entropy" else "") + UNRELATED, history.step, 0.7,
        )  # fmt: skip
        return
    # A loop whose length nobody knew may have been about to learn, until it has ended.
    over = state.known and history.ended and not history.total_steps
    if state.nothing(min_done) and (over or not fell(history, 0.5)):
        chance = history.premises.chance() if history.premises is not None else float("nan")
        rare = chance >= min_class_share
        what = "the best constant prediction's loss" if state.known else "that of the first steps"
        yield Problem(
            "underfitting", "critical" if state.known else "warning", 1, (),
            f"After {state.share:.0%} of the training the loss is {state.now:.4g}; {what} is {state.reference:.4g} "
            f"(threshold: {NOTHING:.0%} better)."
            + (f" One class makes up {chance:.0%} of the targets." if rare else ""),
            lighter_penalty(history) + (class_weights(history) if rare else "") + UNRELATED,
            history.step, 0.8 if state.known else 0.6,
        )  # fmt: skip


def _like_a_constant(
    history: History, state: Learning, min_done: float, max_distance: float
) -> tuple[str, float] | None:
    """What about the targets the loss has stopped at, in words, and its value; None if it is nothing known."""
    known = history.premises
    enough = state.share >= min_done or (history.ended and state.share > 0)
    if known is None or not enough or not state.now > 0 or fell(history, 0.5):
        return None
    for name, value in known.constant_losses().items():
        if value > 0 and abs(state.now - value) <= max_distance * value:
            return name, value
    return None


def lighter_penalty(history: History) -> str:
    """Advice for penalties of weights that outweigh all there is to learn; "" where they do not."""
    added, reference = history.steps.column("regularization_loss"), learning(history).reference
    begun = float(added.mean[0, 0]) if len(added) else 0.0
    if not begun > reference > 0:
        return ""
    light = rounded(_LIGHT * reference / begun)
    return (
        f"Multiply the penalty of the weights (kernel_regularizer) by {light:g}: it began at "
        f"{begun:.3g}, {begun / reference:.2g} times the loss that there is to learn from. "
    )


def class_weights(history: History) -> str:
    """Advice for rare classes: the weights that make all classes matter as much; "" if none is rare."""
    counts = history.premises.targets.class_counts if history.premises and history.premises.targets else ()
    some = [count for count in counts if count]
    if len(some) < 2 or max(some) < _UNEQUAL * min(some):
        return ""
    if len(counts) > _FEW_CLASSES or not all(counts):
        return "Give rare classes more weight (class_weight in fit), or sample them more often. "
    each = ", ".join(f"{at}: {sum(counts) / len(counts) / count:.3g}" for at, count in enumerate(counts))
    return f"Give rare classes more weight, fit(..., class_weight={{{each}}}), or sample them more often. "
