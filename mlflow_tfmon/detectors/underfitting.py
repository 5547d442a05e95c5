"""Detector of models that do no better than a constant prediction."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import NOTHING, fell, learning
from mlflow_tfmon.detectors.problem import Problem

_FEW_CLASSES = 10  # whose weights are spelled out
_UNEQUAL = 3.0  # times as frequent as the rarest class: from there on weights make a difference
UNRELATED = (
    "Find a learning rate: model.fit(..., epochs=0, callbacks=[mlflow_tfmon.LearningRateRangeTest()]). If no rate "
    "makes the loss fall, check that inputs and targets belong together (shuffled separately?) and that the model can "
    "memorize a single batch; else use a larger one."
)


def detect(history: History, *, min_class_share: float = 0.9) -> Iterator[Problem]:
    """Finds losses that are less than 5% better than the best constant prediction's, and do not fall.

    Applied once a third of the training is over, and only if no cause was found. If one class makes up nine tenths of
    the targets, the evidence says so. Cannot distinguish a model that is too small from data in which there is nothing
    to learn. Counterpart of SageMaker Debugger's "loss not decreasing" and "class imbalance".

    Args:
        history: the training up to some step.
        min_class_share: least share of the most frequent class of which the evidence tells.
    """
    state = learning(history)
    if state.nothing(0.33) and not fell(history, 0.5):
        chance = history.premises.chance() if history.premises is not None else float("nan")
        rare = chance >= min_class_share
        what = "the best constant prediction's loss" if state.known else "that of the first steps"
        yield Problem(
            "underfitting", "critical" if state.known else "warning", 1, (),
            f"After {state.share:.0%} of the training the loss is {state.now:.4g}; {what} is {state.reference:.4g} "
            f"(threshold: {NOTHING:.0%} better)."
            + (f" One class makes up {chance:.0%} of the targets." if rare else ""),
            (class_weights(history) if rare else "") + UNRELATED,
            history.step, 0.8 if state.known else 0.6,
        )  # fmt: skip


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
