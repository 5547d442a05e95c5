"""Detector of classifiers that give every example the same class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import accuracy, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.detectors.underfitting import UNRELATED, class_weights, lighter_penalty

_SAME = 1e-6  # accuracies that differ by less are equal: metrics are float32
_WHOLE = 4096  # examples, all of which a `Sample` has counted
_ALL = 0.999
_FEWEST = 200  # labels: of fewer, an accuracy may stay the same by chance


def detect(history: History, *, min_epochs: int = 3, max_distance: float = 0.02) -> Iterator[Problem]:
    """Finds accuracies that equal the share of one class at each of the last epochs, while little is learned.

    A model whose predictions vary at all changes its accuracy from epoch to epoch. Needs the epochs' accuracy and the
    labels (arrays in memory), of the validation data if there are any. Applied once a third of the training is over,
    and only if no cause was found. Models that rank rare examples well and never name their class are found as well:
    for them a lower threshold than 0.5 is enough.

    Args:
        history: the training up to some step.
        min_epochs: epochs at which the accuracy was the same.
        max_distance: largest distance of the accuracy from a class's share, where only a sample of the labels is known.
    """
    known, state = history.premises, learning(history)
    if known is None or not state.little(0.33):
        return
    for prefix, name, labels in (("val_", "validation ", known.val_targets), ("", "", known.targets)):
        curve = accuracy(history, prefix)
        if not len(curve) or labels is None:
            continue
        late = curve.rows(slice(-max(min_epochs, len(curve) // 4), None))
        value = float(late.mean[-1, 0])
        if len(late) < min_epochs or late.most.max() - late.least.min() > _SAME or not value < _ALL:
            return
        named = _class_of(labels, value, max_distance)
        if named is None:
            return
        rare = class_weights(history)
        yield Problem(
            "one_class_predicted", "critical" if state.nothing(0.33) else "warning", int(late.first[0]), (),
            f"Every {name}example is given the same class{named}: the {name}accuracy is {value:.4g}, that class's "
            f"share, at each of the last {len(late)} epochs, and the loss has {state.progress}.",
            lighter_penalty(history) + rare + UNRELATED, history.step, 0.85,
        )  # fmt: skip
        return


def _class_of(labels: Sample, value: float, max_distance: float) -> str | None:
    """The class whose share is an accuracy, in words ("" if several have it); None if there is none."""
    counts = np.array(labels.class_counts, float)
    if len(counts) < 2 or counts.sum() < _FEWEST or (labels.columns > 1 and not labels.one_hot):
        return None
    near = _SAME if counts.sum() < _WHOLE else max_distance
    found = np.flatnonzero(np.abs(counts / counts.sum() - value) <= near)
    if not len(found):
        return None
    return f", {found[0]}" if len(found) == 1 else ""
