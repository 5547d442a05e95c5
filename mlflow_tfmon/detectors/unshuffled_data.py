"""Detector of examples that are fed class by class, so that the model forgets one as it learns the next."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, behind, learning
from mlflow_tfmon.detectors.problem import Problem

_FEWEST = 64  # labels; of fewer, many neighbours are alike by chance


def detect(
    history: History, *, min_repeats: float = 0.9, max_chance: float = 0.6, min_done: float = 0.1
) -> Iterator[Problem]:
    """Finds labels that nearly always equal the one before, in the order in which the examples are fed.

    In `fit`: labels in memory with `shuffle=False`; in a loop: the labels of its batches. Reported once a tenth of the
    training is over, unless 70% is learned and the validation data are not behind. Does not see the order of a
    `tf.data` pipeline in `fit`, nor that of data without classes.

    Args:
        history: the training up to some step.
        min_repeats: least share of labels that equal the one before.
        max_chance: largest share that would by chance, of shuffled examples.
        min_done: share of the training before which nothing is reported.
    """
    data = history.premises
    labels = (data.targets or data.fed) if data is not None else None
    if data is None or labels is None or not data.in_order or labels.count < _FEWEST:
        return
    chance = sum((one / max(1, sum(labels.class_counts))) ** 2 for one in labels.class_counts)
    if not labels.repeats >= min_repeats or not 0 < chance <= max_chance:
        return
    state = learning(history)
    late = behind(history)
    # Of sorted examples the loss falls within each class: without validation nobody knows what is learned.
    if not state.share >= min_done or (late is False and state.learned >= MUCH):
        return
    yield Problem(
        "unshuffled_data", "critical", 1, (),
        f"The examples are fed class by class: {labels.repeats:.0%} of the labels equal the one before, of shuffled "
        f"examples {chance:.0%} would; the loss has {state.progress}.",
        "Shuffle the examples: fit without shuffle=False; dataset.shuffle(buffer_size) with a buffer as large as the "
        "data, or their files in random order.",
        history.step, 0.85,
    )  # fmt: skip
