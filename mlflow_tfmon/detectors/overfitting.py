"""Detector of models that memorize their training data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import NOTHING, Learning, accuracy, by_accuracy, by_step, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table

_HALF = 0.5
_GOOD = 0.75  # of the way from always naming the most frequent class to perfect accuracy
_FALLEN = 0.02  # of the validation examples
_APART = 3.0  # times the other, at most


def detect(
    history: History,
    *,
    min_rise: float = 0.1,
    min_behind: float = 0.05,
    min_epochs: int = 5,
    min_gap: float = 0.25,
) -> Iterator[Problem]:
    """Finds validation losses that rose from their best by a tenth of a constant prediction's loss, and stay there.

    The last quarter of the epochs (at least three) must be above the best by that much, five epochs must have passed
    since the best, the training loss must have kept falling, and, where accuracies are known, that of the validation
    data must be 5 points behind, and below three quarters of the way from chance to 1, or 2 points below its best.
    Source: Prechelt, 1998. A loss that rises from 0.05 to 0.08 at a steady accuracy is
    not reported. Counterpart of SageMaker Debugger's "overfit" and "overtraining". Once half of the training is over,
    two more cases are reported: a validation loss that was never 5% better than a constant prediction's while the
    training loss is 15% better (nothing that is learned generalizes); and a validation accuracy 25 points behind while
    the two losses differ by a quarter of a constant prediction's.

    In an eager loop also a dataset of which the same batch was taken 20 times in a row, and no other.

    Args:
        history: the training up to some step.
        min_rise: least rise of the validation loss, as a share of a constant prediction's loss.
        min_behind: least lag of the validation accuracy, where 1 is all examples.
        min_epochs: epochs that must have passed since the best.
        min_gap: least lag of the validation accuracy, and of the loss as a share of a constant prediction's, where the
            validation loss need not rise.
    """
    known = history.premises
    if known is not None and known.repeated:
        yield Problem(
            "overfitting", "critical", 1, (),
            f"The same batch comes at each step: the first of the {known.repeated} that its dataset has.",
            "Go on with one iterator: for batch in dataset. next(iter(dataset)) makes a new one, which begins anew.",
            history.step, 0.95,
        )  # fmt: skip
        return
    state = learning(history)
    train, held_out = by_step(history, "loss"), by_step(history, "val_loss")
    if len(held_out) < min_epochs + 1 or len(train) != len(held_out) or not state.reference > 0:
        return
    if "loss" not in history.epochs and not _alike(train, held_out):
        return  # what a loop calls its validation loss is something else than what its steps minimize
    found = (
        _holds_for_nothing(history, state, train, held_out)
        or _rose(
            history, state, train, held_out, min_rise=min_rise, min_epochs=min_epochs, min_behind=min_behind
        )
        or _apart(history, state, train, held_out, min_gap=min_gap)
    )
    if found:
        yield found


def _alike(train: Table, held_out: Table) -> bool:
    """Whether two losses may be the same figure: at the first epoch's end they are no more than a factor apart."""
    return (
        bool(1 / _APART < held_out.mean[0, 0] / train.mean[0, 0] < _APART) if train.mean[0, 0] > 0 else False
    )


def _holds_for_nothing(history: History, state: Learning, train: Table, held_out: Table) -> Problem | None:
    """The problem that nothing learned from the training data holds for the validation data, or None."""
    # The epochs' losses include regularization penalties; a constant prediction's loss does not.
    added = history.steps.column("regularization_loss")
    penalty = float(added.mean[-1, 0]) if len(added) else 0.0
    low, now = float(held_out.mean[:, 0].min()) - penalty, float(train.mean[-1, 0]) - penalty
    alike = (
        history.premises is None or not history.premises.weighted
    )  # class weights do not apply to validation
    learned, known = 1 - now / state.reference, 1 - low / state.reference
    # Where it is known that not even a constant prediction was reached, less is to be learned by heart to say so.
    least = NOTHING if state.known and known < 0 else 3 * NOTHING
    if not (alike and _half_over(state) and learned >= least and known < NOTHING):
        return None
    return Problem(
        "overfitting", "warning", int(held_out.first[0]), (),
        f"The validation loss was never better than {low:.3g} while the training loss fell to {now:.3g}; a constant "
        f"prediction's loss is {state.reference:.3g} (threshold: 5% better).",
        "Check that inputs and labels belong together (shuffled separately?) and that the validation data are prepared "
        "like the training data; then use a smaller model, or more data.",
        history.step, 0.8,
    )  # fmt: skip


def _rose(
    history: History,
    state: Learning,
    train: Table,
    held_out: Table,
    *,
    min_rise: float,
    min_epochs: int,
    min_behind: float,
) -> Problem | None:
    """The problem that the validation loss was better before, or None."""
    values, best = held_out.mean[:, 0], int(held_out.mean[:, 0].argmin())
    last = values[-max(3, len(values) // 4) :]
    rise = float(np.median(last) - values[best])
    passed = (len(values) - 1 - best) * history.epochs.last[-1] / len(values)
    fell = train.mean[-1, 0] < train.mean[best, 0]
    if (
        rise < min_rise * state.reference
        or last.min() < values[best] + rise / 3
        or passed < min_epochs
        or not fell
    ):
        return None
    learned, known = accuracy(history), accuracy(history, "val_")
    gap = ""
    if len(learned) and len(known):
        behind = float(learned.mean[-1, 0] - known.mean[-1, 0])
        if behind < min_behind or _is_good(history, known):
            return None
        gap = f" The validation accuracy is {behind * 100:.0f} points behind."
    return Problem(
        "overfitting", "warning", int(held_out.last[best]), (),
        f"The validation loss was best at {values[best]:.3g} (step {held_out.last[best]:.0f}) and is now "
        f"{values[-1]:.3g} (threshold: a rise of {min_rise * state.reference:.2g}), while the training loss fell from "
        f"{train.mean[best, 0]:.3g} to {train.mean[-1, 0]:.3g}.{gap}",
        "Stop at the best epoch (keras.callbacks.EarlyStopping(restore_best_weights=True)), add Dropout or weight "
        "decay, augment the data, or use a smaller model.",
        history.step, 0.9,
    )  # fmt: skip


def _is_good(history: History, known: Table) -> bool:
    """Whether the validation accuracy is high, and as high as it has been: then a loss that rises does no harm."""
    fallen = float(known.mean[:, 0].max() - known.mean[-1, 0])
    return by_accuracy(history, "val_") >= _GOOD and fallen <= _FALLEN


def _apart(
    history: History, state: Learning, train: Table, held_out: Table, *, min_gap: float
) -> Problem | None:
    """The problem that training and validation differ widely in loss and accuracy (no rise needed), or None."""
    seen, other = accuracy(history), accuracy(history, "val_")
    if not _half_over(state) or not len(seen) or not len(other):
        return None
    late = max(1, len(held_out) // 5)
    behind = float(seen.mean[-late:, 0].mean() - other.mean[-late:, 0].max())
    loss, known = float(train.mean[-late:, 0].mean()), float(held_out.mean[-late:, 0].min())
    if behind < min_gap or known - loss < min_gap * state.reference:
        return None
    return Problem(
        "overfitting", "warning", int(held_out.first[0]), (),
        f"The validation loss is {known:.3g}, the training loss {loss:.3g} (a constant prediction's is "
        f"{state.reference:.3g}), and the validation accuracy is {behind * 100:.0f} points behind "
        f"(threshold: {min_gap * 100:.0f}).",
        "Check that each epoch draws from all of the training data, shuffled, and that the validation data are "
        "prepared in the same way; if BatchNormalization has seen few steps, that its averages have settled "
        "(momentum=0.9); then add Dropout, weight decay or data.",
        history.step, 0.8,
    )  # fmt: skip


def _half_over(state: Learning) -> bool:
    return state.known and state.share >= _HALF
