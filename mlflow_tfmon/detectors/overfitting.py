"""A model that learns its training data by heart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import NOTHING, Learning, accuracy, by_step, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table

_RISE = 0.1
_WITHIN = 0.05
_EPOCHS = 5
_HALF = 0.5
_APART = 0.25


def detect(history: History) -> Iterator[Problem]:
    """Sees a validation loss that rose by a tenth of a constant prediction's loss since its best, and stays there.

    The last quarter of the epochs (three at least) must be above the best by that much, five epochs must have passed
    since the best, the training loss must have gone on falling, and, where accuracies are known, that of the validation
    data must be 5 points behind. Source: Prechelt, 1998. A loss that rises from 0.05 to 0.08 while the accuracy stands
    is none. Counterpart of SageMaker Debugger's "overfit" and "overtraining". Sees as well, when half of the training
    is over, a validation loss that never was 5% better than a constant prediction's while the training loss is 15%
    better: nothing of what is learned holds for other data; and an accuracy of the validation data 25 points behind
    while the losses are a quarter of a constant prediction's apart.
    """
    state = learning(history)
    train, held_out = by_step(history, "loss"), by_step(history, "val_loss")
    if len(held_out) < _EPOCHS + 1 or len(train) != len(held_out) or not state.reference > 0:
        return
    for rule in (_holds_for_nothing, _rose, _apart):
        if found := rule(history, state, train, held_out):
            yield found
            return


def _holds_for_nothing(history: History, state: Learning, train: Table, held_out: Table) -> Problem | None:
    """Whether what is learned of the training data says nothing of the validation data."""
    # What regularizers add is in the epochs' losses, and in no constant prediction's.
    added = history.steps.column("regularization_loss")
    penalty = float(added.mean[-1, 0]) if len(added) else 0.0
    low, now = float(held_out.mean[:, 0].min()) - penalty, float(train.mean[-1, 0]) - penalty
    alike = history.premises is None or not history.premises.weighted  # validation has no weights of classes
    learned, known = 1 - now / state.reference, 1 - low / state.reference
    if not (alike and _half_over(state) and learned >= 3 * NOTHING and known < NOTHING):
        return None
    return Problem(
        "overfitting", "warning", int(held_out.first[0]), (),
        f"The validation loss was never better than {low:.3g}, a constant prediction's is {state.reference:.3g} "
        f"(5% better counts); meanwhile the training loss fell to {now:.3g}.",
        "Look at whether inputs and labels belong together (shuffled apart?) and whether the validation data are "
        "made as the training data are; then take a smaller model, or more data.",
        history.step, 0.8,
    )  # fmt: skip


def _rose(history: History, state: Learning, train: Table, held_out: Table) -> Problem | None:
    """Whether the validation loss was better before."""
    values, best = held_out.mean[:, 0], int(held_out.mean[:, 0].argmin())
    last = values[-max(3, len(values) // 4) :]
    rise = float(np.median(last) - values[best])
    passed = (len(values) - 1 - best) * history.epochs.last[-1] / len(values)
    fell = train.mean[-1, 0] < train.mean[best, 0]
    if rise < _RISE * state.reference or last.min() < values[best] + rise / 3 or passed < _EPOCHS or not fell:
        return None
    learned, known = accuracy(history), accuracy(history, "val_")
    gap = ""
    if len(learned) and len(known):
        behind = float(learned.mean[-1, 0] - known.mean[-1, 0])
        if behind < _WITHIN:
            return None
        gap = f" Its accuracy is {behind * 100:.0f} points behind."
    return Problem(
        "overfitting", "warning", int(held_out.last[best]), (),
        f"The validation loss was best at {values[best]:.3g} (step {held_out.last[best]:.0f}) and is {values[-1]:.3g} "
        f"now, while the training loss fell from {train.mean[best, 0]:.3g} to {train.mean[-1, 0]:.3g} (a rise of "
        f"{_RISE * state.reference:.2g} counts).{gap}",
        "Stop at the best epoch (keras.callbacks.EarlyStopping(restore_best_weights=True)), add Dropout or weight "
        "decay, augment the data, or take a smaller model.",
        history.step, 0.9,
    )  # fmt: skip


def _apart(history: History, state: Learning, train: Table, held_out: Table) -> Problem | None:
    """Whether training and validation are far apart, by loss and by accuracy, though the one need not rise."""
    seen, other = accuracy(history), accuracy(history, "val_")
    if not _half_over(state) or not len(seen) or not len(other):
        return None
    late = max(1, len(held_out) // 5)
    behind = float(seen.mean[-late:, 0].mean() - other.mean[-late:, 0].max())
    loss, known = float(train.mean[-late:, 0].mean()), float(held_out.mean[-late:, 0].min())
    if behind < _APART or known - loss < _APART * state.reference:
        return None
    return Problem(
        "overfitting", "warning", int(held_out.first[0]), (),
        f"The validation loss is {known:.3g}, that of the training {loss:.3g} (a constant prediction's is "
        f"{state.reference:.3g}), and the accuracy of the validation data is {behind * 100:.0f} points behind "
        f"({_APART * 100:.0f} count).",
        "See that each epoch draws from all of the training data, shuffled, and that the validation data are made as "
        "they are; where BatchNormalization has made few steps, that its averages are right (momentum=0.9); then add "
        "Dropout, weight decay or data.",
        history.step, 0.8,
    )  # fmt: skip


def _half_over(state: Learning) -> bool:
    return state.known and state.share >= _HALF
