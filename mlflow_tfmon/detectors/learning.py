"""Measure of how much a training has learned, which separates harmful symptoms from harmless ones.

Deep networks have dead units, small gradients and unscaled inputs and learn nevertheless: tools that flag each symptom
flag up to two thirds of healthy trainings (Wardat et al., ICSE 2022; Zhang et al., ICSE 2021, therefore require low
accuracy as well). Here the yardstick is the loss of the best constant prediction, which needs no model at all: the
entropy of the classes, the variance of the targets. If the targets are unknown, the loss of the first steps stands in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.premises import CROSS_ENTROPIES
from mlflow_tfmon.detectors.table import Table

NOTHING = (
    0.05  # less than this share of the gap between the constant prediction and zero loss: nothing is learned
)
LITTLE = 0.3
MUCH = 0.7  # an apparent fault does no harm if this much is learned
_RISEN = 1.1
_ABOVE, _FALLEN = 1.5, 3.0  # times the other
FEWEST_STEPS = 30
_BEHIND = 0.1  # of the accuracy, or of a constant prediction's loss
_UNKNOWN_STEPS = 2000  # least length assumed of a training whose length is unknown


@dataclass(frozen=True)
class Learning:
    """How far a training has come.

    Attributes:
        reference: loss of the best constant prediction, else that of the first steps; NaN if there is no loss.
        known: whether it is that of the constant prediction.
        begun: loss of the first steps.
        now: mean loss of the last tenth of the steps.
        low: lower quartile of the loss over the last tenth of the steps (at least eight).
        best: smallest mean loss of any tenth.
        learned: share of the gap between `reference` and a perfect prediction's loss (usually zero) that is closed
            now, at most 1; negative if the loss is above `reference`. Taken from the accuracy, or the loss of the
            validation data (no dropout, no augmentation, maybe no outliers), if that is higher. NaN if unknown.
        share: how much of the training is over, 0 to 1; an estimate while its length is unknown.
    """

    reference: float
    known: bool
    begun: float
    now: float
    low: float
    best: float
    learned: float
    share: float

    @property
    def progress(self) -> str:
        """What the loss "has" done so far, for the evidence of a problem."""
        return f"closed {max(self.learned, 0):.0%} of the gap between a constant prediction and zero"

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
        # Unknown length: assume that it runs for as long again as it has run.
        total = max(2 * done, _UNKNOWN_STEPS)
    enough = done >= FEWEST_STEPS or (history.ended and done >= 10 and len(history.epochs) > 10)
    share = done / total if enough else 0.0
    if not len(curve) or not history.alone:
        nan = float("nan")
        return Learning(nan, False, nan, nan, nan, nan, nan, share)
    level = curve.mean[:, 0]
    # The first step may have been so large that later losses are worse; and single batches differ.
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
    measures = [by_accuracy(history)]
    # A negative cross-entropy comes from labels out of range and says nothing.
    sound = now >= 0 or history.premises is None or history.premises.loss not in CROSS_ENTROPIES
    if sound and way > 0 and (known or not _trained_before(history)):
        # The first steps show a usual batch, so compare them with one.
        late = now if known else float(np.median(level[-max(8, len(level) // 10) :]))
        if late <= _RISEN * reference or supervised(history):
            measures.append((reference - late) / way)
        # Validation may be measured differently: without weights.
        if known and history.premises is not None and not history.premises.weighted:
            held_out = (reference - _late(by_step(history, "val_loss"))) / way
            # A small validation set may suggest by chance that a little was learned; its accuracy, even a lot.
            measures += [held_out] if held_out >= LITTLE else []
            measures += [by_accuracy(history, "val_")] if held_out >= LITTLE / 2 else []
    learned = max((one for one in measures if np.isfinite(one)), default=float("nan"))
    if known and _fell_from_far(history, begun, now, reference):
        learned = float("nan")
    # A loop without a known reference may have learned all there is.
    if history.ended and enough and not (learned >= NOTHING and not known and not history.total_steps):
        share = 1.0
    return Learning(reference, known, begun, now, low, best, learned, share)


def _fell_from_far(history: History, begun: float, now: float, reference: float) -> bool:
    """Whether the loss of a loop is on its way from far above a constant prediction's, and no accuracy is known.

    A classifier that is very confident in all that it says has such a loss, and may be right nearly always.
    """
    loop = history.premises is not None and history.premises.more
    far = now > _ABOVE * reference and begun > _FALLEN * now
    return loop and far and not len(accuracy(history)) and not len(accuracy(history, "val_"))


def supervised(history: History) -> bool:
    """Whether the loss is known to measure a distance to targets.

    The loss of a custom loop may rise for good reasons: targets from its own predictions, or ever harder examples.
    """
    known = history.premises
    return known is not None and (bool(known.loss) or known.targets is not None)


def losses(history: History) -> Table:
    """The loss of the steps without regularization penalties, or that of the epochs if no step's is known.

    Of a loop whose loss has several terms, the distance from targets alone.
    """
    curve = history.steps.column("data_loss")
    if len(curve):
        return curve
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
    """An epoch metric with optimizer steps for rows; the loss of a loop that logs none is its steps' mean."""
    found, steps = history.epochs.column(metric), history.epochs.column("step")
    if metric == "loss" and not len(found) and len(steps) and len(history.steps.column("loss")):
        return _over_epochs(history, steps)
    if not len(found) or len(found) != len(steps):
        return found
    return Table(found.names, steps.least[:, 0], steps.most[:, 0], found.mean, found.least, found.most)


def _over_epochs(history: History, ends: Table) -> Table:
    """The mean loss of the steps of each epoch, for which steps were recorded."""
    curve = losses(history)
    last = ends.most[:, 0]
    at = np.searchsorted(last, curve.last)  # the epoch that each row ends in
    level = [
        curve.mean[at == epoch, 0].mean() if (at == epoch).any() else np.nan for epoch in range(len(last))
    ]
    mean = np.array(level)[:, None]
    whole = Table(("loss",), ends.least[:, 0], last, mean, mean, mean)
    return whole if np.isfinite(mean).all() else Table()


def accuracy(history: History, prefix: str = "") -> Table:
    """The epochs' accuracy, under any of Keras's names for it; without rows if there is none."""
    for name in ("accuracy", "acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy"):
        if prefix + name in history.epochs:
            return by_step(history, prefix + name)
    return Table()


def fell(history: History, after: float) -> bool:
    """Whether the loss has fallen since a share of the steps so far, by more than noise and 1% of the reference."""
    curve = losses(history)
    return fell_by(history, curve.rows(slice(int(len(curve) * after), None)))


def fell_by(history: History, curve: Table) -> bool:
    """Whether a part of the loss fell within itself; as long as it is too short to say, that is supposed."""
    level = curve.mean[:, 0]
    if len(level) < 8:
        return True
    early, late = np.array_split(level, 2)
    noise = np.sqrt(early.var() / len(early) + late.var() / len(late))
    drop = early.mean() - late.mean()
    return bool(drop > 2 * noise and drop > 0.01 * abs(learning(history).reference))


def by_accuracy(history: History, prefix: str = "") -> float:
    """Share of the gap between always naming the most frequent class and perfect accuracy that is closed."""
    chance = history.premises.chance() if history.premises is not None else float("nan")
    return (_late(accuracy(history, prefix)) - chance) / (1 - chance) if 0 < chance < 1 else float("nan")


def _late(curve: Table) -> float:
    """The mean of the last tenth of an epoch metric; NaN where there is none."""
    return float(curve.mean[-max(1, len(curve) // 10) :, 0].mean()) if len(curve) else float("nan")


def _trained_before(history: History) -> bool:
    """Whether the model had learned an unknown amount before the first losses."""
    return history.premises is not None and history.premises.trained_before


def behind(history: History) -> bool | None:
    """Whether the model is worse on the validation data than on the training data; None before it was validated."""
    seen, other = accuracy(history), accuracy(history, "val_")
    if len(seen) and len(other):
        return bool(seen.mean[-1, 0] - other.mean[-1, 0] >= _BEHIND)
    train, held_out = by_step(history, "loss"), by_step(history, "val_loss")
    reference = learning(history).reference
    if not len(train) or not len(held_out):
        return None
    return bool(reference > 0 and held_out.mean[-1, 0] - train.mean[-1, 0] >= _BEHIND * reference)


def broken(history: History) -> bool:
    """Whether the loss is no longer finite."""
    bad = history.nonfinite.get("loss") or history.nonfinite.get("epoch loss")
    return bad is not None and bad.count > 1 and bad.last >= history.step - bad.count // 2


def diverged(history: History) -> bool:
    """Whether the loss is no longer finite, or is twice both the initial loss and a constant prediction's.

    Three of four steps must be that bad: if a few examples make up most of the loss, batches differ many times over.
    A classifier that is very confident in the few examples it gets wrong has a large loss, but has not diverged: its
    accuracy shows that.
    """
    state = learning(history)
    worse = state.low > 2 * max(state.begun, state.reference) and not state.learned >= MUCH
    return broken(history) or bool(worse and state.share > 0 and state.reference > 0)
