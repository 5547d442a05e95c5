"""Detector of examples that are fed class by class, so that the model forgets one as it learns the next."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, behind, learning
from mlflow_tfmon.detectors.problem import Problem


def detect(
    history: History,
    *,
    max_mixed: float = 0.3,
    max_chance: float = 0.6,
    min_labels: int = 64,
    min_done: float = 0.1,
) -> Iterator[Problem]:
    """Finds batches of which nearly each is of one class, while all together are of several.

    Compared is how diverse the labels of a batch are with how diverse all are: batches with equally many of each class,
    in whatever order, are as diverse as shuffled ones, and so is one batch of all. In `fit`: labels in memory with
    `shuffle=False`; in a loop: the labels of its batches. Reported once a tenth of the training is over, unless 70% is
    learned and the validation data are not behind. Does not see the order of a `tf.data` pipeline in `fit`, nor that of
    data without classes.

    Args:
        history: the training up to some step.
        max_mixed: largest diversity of a batch (the chance that two of its labels differ), as a share of that of all.
        max_chance: largest chance that two labels of all are alike.
        min_labels: labels that must be known.
        min_done: share of the training before which nothing is reported.
    """
    data = history.premises
    labels = (data.targets or data.fed) if data is not None else None
    if data is None or labels is None or not data.in_order or labels.count < min_labels:
        return
    chance = sum((one / max(1, sum(labels.class_counts))) ** 2 for one in labels.class_counts)
    if not labels.mixed <= max_mixed or not 0 < chance <= max_chance:
        return
    state = learning(history)
    late = behind(history)
    # Of sorted examples the loss falls within each class: without validation nobody knows what is learned.
    if not state.share >= min_done or (late is False and state.learned >= MUCH):
        return
    yield Problem(
        "unshuffled_data", "critical", 1, (),
        f"The examples are fed class by class: two labels of a batch differ {labels.mixed:.0%} as often as two labels "
        f"of all (threshold: {max_mixed:.0%}; shuffled: about 100%); the loss has {state.progress}.",
        "Shuffle the examples: fit without shuffle=False; dataset.shuffle(buffer_size) with a buffer as large as the "
        "data, or their files in random order.",
        history.step, 0.85,
    )  # fmt: skip
