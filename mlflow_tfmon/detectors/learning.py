"""Whether a training learns: what tells a symptom that does harm from one that does none.

Deep nets have dead units, small gradients and unscaled inputs and learn all the same: tools that flag each symptom flag
up to two thirds of healthy trainings (Wardat et al., ICSE 2022; Zhang et al., ICSE 2021, therefore ask for the accuracy
as well). Here the measure is the loss of the best constant prediction, which needs no model at all: the entropy of the
classes, the variance of the targets. Where the targets are not known, the loss of the first steps stands in for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.premises import CROSS_ENTROPIES
from mlflow_tfmon.detectors.table import Table

NOTHING = 0.05  # less than this share of the way from the constant prediction to zero loss is nothing learned
LITTLE = 0.3
MUCH = 0.7  # what looks like a fault does no harm where so much is learned
_RISEN = 1.1
_FEWEST_STEPS = 30
_UNKNOWN_STEPS = 2000  # how long a training is taken to be whose length is not known, at least


@dataclass(frozen=True)
class Learning:
    """How far a training has come.

    Attributes:
        reference: loss of the best constant prediction, else that of the first steps; NaN if there is no loss.
        known: whether it is that of the constant prediction.
        begun: loss of the first steps.
        now: mean loss of the last tenth of the steps.
        low: loss that three quarters of the last tenth of the steps (of eight of them at least) are above.
        best: smallest mean loss of any tenth.
        learned: how much of the way from `reference` to a perfect prediction's loss (zero, as a rule) has been made
            now, at most 1; negative where the loss is above it. By the accuracy, or the loss of the validation data
            (which has no dropout, no augmentation, and maybe no outliers) where that says much. NaN if unknown.
        share: how much of the training is over, 0 to 1; an estimate where its length is not known and it goes on.
    """

    reference: float
    known: bool
    begun: float
    now: float
    low: float
    best: float
    learned: float
    share: float

    def nothing(self, after: float) -> bool:
        """Whether nothing was learned though this share of the training is over."""
        return self.share >= after and self.learned < NOTHING

    def little(self, after: float) -> bool:
        """Whether little was learned though this share of the training is over."""
        return self.share >= after and self.learned < LITTLE


def learning(history: History) -> Learning:
    """How far a training has come; unknown for one of several optimizers that take turns."""
    curve = losses(history)
    done = history.step - history.start
    total = max((history.total_steps or 0) - history.start, done)
    if not history.total_steps:
        # Its length is not known: as if it went on for as long again as it has gone on.
        total = max(2 * done, _UNKNOWN_STEPS)
    enough = done >= _FEWEST_STEPS or (history.ended and done >= 10 and len(history.epochs) > 10)
    share = done / total if enough else 0.0
    if not len(curve) or not history.alone:
        nan = float("nan")
        return Learning(nan, False, nan, nan, nan, nan, nan, share)
    level = curve.mean[:, 0]
    # Too large a step may have made the loss of the next ones worse; and single batches differ.
    first = history.first_losses or (float(level[0]),)
    begun = min(first[0], float(np.median(first)))
    tenths = [float(part.mean()) for part in np.array_split(level, min(10, len(level)))]
    now, best = tenths[-1], min(tenths)
    low = float(np.quantile(level[-max(8, len(level) // 10) :], 0.25))
    constant = history.premises.constant_loss() if history.premises is not None else float("nan")
    known = bool(np.isfinite(constant) and constant > 0)
    reference = constant if known else begun
    least = history.premises.least_loss() if known and history.premises is not None else 0.0
    way = reference - least  # from a constant prediction to a perfect one
    measures = [_by_accuracy(history)]
    # A cross-entropy below zero, that of labels out of range, says nothing.
    sound = now >= 0 or history.premises is None or history.premises.loss not in CROSS_ENTROPIES
    if sound and way > 0 and (known or not _trained_before(history)):
        # The first steps tell of a usual batch, and are compared with one.
        late = now if known else float(np.median(level[-max(8, len(level) // 10) :]))
        if late <= _RISEN * reference or supervised(history):
            measures.append((reference - late) / way)
        # Validation may be measured in another way, without weights.
        if known and history.premises is not None and not history.premises.weighted:
            held_out = (reference - _late(by_step(history, "val_loss"))) / way
            # A small validation set may seem to have learned a little, and by its accuracy even a lot.
            measures += [held_out] if held_out >= LITTLE else []
            measures += [_by_accuracy(history, "val_")] if held_out >= LITTLE / 2 else []
    learned = max((one for one in measures if np.isfinite(one)), default=float("nan"))
    # What a loop has learned may be all that it was meant to, where nobody knows how much there is.
    if history.ended and enough and not (learned >= NOTHING and not known and not history.total_steps):
        share = 1.0
    return Learning(reference, known, begun, now, low, best, learned, share)


def supervised(history: History) -> bool:
    """Whether the loss is known to measure a distance to targets.

    That of a loop may be of what is learned from its own predictions, or of examples that become harder: it may rise.
    """
    known = history.premises
    return known is not None and (bool(known.loss) or known.targets is not None)


def losses(history: History) -> Table:
    """The loss of the steps, without what regularizers add to it; that of the epochs where no step's is known."""
    curve = history.steps.column("loss")
    added = history.steps.column("regularization_loss")
    if len(added) and len(added) == len(curve):
        curve = Table(
            curve.names,
            curve.first,
            curve.last,
            curve.mean - added.mean,
            curve.least - added.mean,
            curve.most - added.mean,
        )
    return curve if len(curve) else by_step(history, "loss")


def by_step(history: History, metric: str) -> Table:
    """An epoch metric with optimizer steps for rows."""
    found, steps = history.epochs.column(metric), history.epochs.column("step")
    if not len(found) or len(found) != len(steps):
        return found
    return Table(found.names, steps.least[:, 0], steps.most[:, 0], found.mean, found.least, found.most)


def accuracy(history: History, prefix: str = "") -> Table:
    """The epochs' accuracy, under whichever of Keras's names; without rows where there is none."""
    for name in ("accuracy", "acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"):
        if prefix + name in history.epochs:
            return by_step(history, prefix + name)
    return Table()


def fell(history: History, after: float) -> bool:
    """Whether the loss still fell since a share of what was done, by more than chance and 1% of the reference."""
    curve = losses(history)
    level = curve.mean[int(len(curve) * after) :, 0]
    if len(level) < 8:
        return True
    early, late = np.array_split(level, 2)
    noise = np.sqrt(early.var() / len(early) + late.var() / len(late))
    drop = early.mean() - late.mean()
    return bool(drop > 2 * noise and drop > 0.01 * abs(learning(history).reference))


def _by_accuracy(history: History, prefix: str = "") -> float:
    """How much better than always naming the most frequent class the last epochs were, as a share of the possible."""
    chance = history.premises.chance() if history.premises is not None else float("nan")
    return (_late(accuracy(history, prefix)) - chance) / (1 - chance) if 0 < chance < 1 else float("nan")


def _late(curve: Table) -> float:
    """The mean of the last tenth of an epoch metric; NaN where there is none."""
    return float(curve.mean[-max(1, len(curve) // 10) :, 0].mean()) if len(curve) else float("nan")


def _trained_before(history: History) -> bool:
    """Whether the first losses are those of a model that had learned something, we know not what."""
    return history.premises is not None and history.premises.trained_before


def broken(history: History) -> bool:
    """Whether the loss is not finite any more."""
    bad = history.nonfinite.get("loss") or history.nonfinite.get("epoch loss")
    return bad is not None and bad.count > 1 and bad.last >= history.step - bad.count // 2


def diverged(history: History) -> bool:
    """Whether the loss is not finite any more, or twice as large as at the start and for a constant prediction.

    Three of four steps must be that bad: where a few examples make most of the loss, one batch is many times another.
    A classifier that is very sure of the few examples that it gets wrong has a large loss, and has not diverged: its
    accuracy tells.
    """
    state = learning(history)
    worse = state.low > 2 * max(state.begun, state.reference) and not state.learned >= MUCH
    return broken(history) or bool(worse and state.share > 0 and state.reference > 0)
