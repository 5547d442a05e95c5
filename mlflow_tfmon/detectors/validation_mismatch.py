"""Detector of validation data that are of another kind than the training data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import behind
from mlflow_tfmon.detectors.premises import CROSS_ENTROPIES, REGRESSIONS, Premises
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.sample import Sample

_FEWEST = 30  # examples; of fewer, shares and deviations say little
_FEWEST_EXPECTED = 10  # training examples of a class, if it were as frequent there, that are missed


def detect(
    history: History,
    *,
    min_unseen: float = 0.1,
    min_shifted: float = 0.5,
    min_ratio: float = 5.0,
    min_certain_ratio: float = 20.0,
    min_distance: float = 3.0,
) -> Iterator[Problem]:
    """Finds validation data with other classes, or on another scale, than the training data.

    `validation_split` takes the last examples: of data that are sorted by class, those of the last classes. Data that
    were prepared in another way (not divided by 255, say) have another scale. What is certain is reported before the
    first step, and withdrawn if validation is not behind: a tenth of the validation examples of classes that the
    training data lack, or a scale 20 times as large or as small. The rest is reported only if validation is behind:
    half of the examples in other classes, a scale 5 times as large or as small, or means 3 standard deviations apart.
    Looks at arrays in memory alone.

    Args:
        history: the training up to some step.
        min_unseen: least share of validation examples whose class the training data lack.
        min_shifted: least share of examples that would have to change their class for both to have the same shares.
        min_ratio: least ratio of the standard deviations, where validation is behind.
        min_certain_ratio: least ratio of the standard deviations in any case.
        min_distance: least distance of the means, in standard deviations, where validation is behind.
    """
    data = history.premises
    if data is None:
        return
    late = behind(history)
    if late is False:  # then it does no harm
        return
    found = list(_classes(data, min_unseen=min_unseen, min_shifted=min_shifted if late else np.inf))
    pairs = [("inputs", data.inputs, data.val_inputs)]
    if data.loss in REGRESSIONS:
        pairs.append(("targets", data.targets, data.val_targets))
    for name, train, held_out in pairs:
        ratio, distance = (min_ratio, min_distance) if late else (min_certain_ratio, np.inf)
        found += _scale(name, train, held_out, min_ratio=ratio, min_distance=distance)
    if found:
        evidence = "; ".join(text for text, _ in found)
        yield Problem(
            "validation_mismatch", "critical", min(1, history.step), (),
            f"{evidence[0].upper()}{evidence[1:]}.", found[0][1], history.step, 0.9 if late else 0.8,
        )  # fmt: skip


def _classes(data: Premises, *, min_unseen: float, min_shifted: float) -> Iterator[tuple[str, str]]:
    """Evidence and advice, where the classes differ."""
    y, held_out = data.targets, data.val_targets
    if data.loss not in CROSS_ENTROPIES or y is None or held_out is None:
        return
    if not (y.class_counts and held_out.class_counts) or (y.columns > 1 and not y.one_hot):
        return
    size = max(len(y.class_counts), len(held_out.class_counts))
    train, other = (np.pad(one.class_counts, (0, size - len(one.class_counts))) for one in (y, held_out))
    if min(train.sum(), other.sum()) < _FEWEST:
        return
    # A rare class may be missing in a sample: how many of it would be expected decides.
    unseen = (train == 0) & (other > 0) & (train.sum() * other / other.sum() >= _FEWEST_EXPECTED)
    share = float(other[unseen].sum() / other.sum())
    shifted = float(np.abs(train / train.sum() - other / other.sum()).sum() / 2)
    advice = (
        "Shuffle x and y together before fit(validation_split=...), which takes the last examples as they come: "
        "order = numpy.random.default_rng(0).permutation(len(x)); x, y = x[order], y[order]."
    )
    if share >= min_unseen:
        numbers = [str(one) for one in np.flatnonzero(unseen)]
        classes = ", ".join([*numbers[:5], *(["…"] if len(numbers) > 5 else [])])
        yield (
            f"{share:.0%} of the validation examples are of classes that the training data do not have ({classes})",
            advice,
        )
    elif shifted >= min_shifted:
        yield (
            f"the classes have other shares in the validation data than in the training data: {shifted:.0%} of the "
            f"examples would have to change theirs (threshold: {min_shifted:.0%})",
            advice,
        )


def _scale(
    name: str, train: Sample | None, held_out: Sample | None, *, min_ratio: float, min_distance: float
) -> Iterator[tuple[str, str]]:
    """Evidence and advice, where the scales differ."""
    if train is None or held_out is None or min(train.count, held_out.count) < _FEWEST:
        return
    if not (train.std > 0 and held_out.std > 0):
        return
    ratio = held_out.std / train.std
    distance = abs(held_out.mean - train.mean) / max(train.std, held_out.std)
    if max(ratio, 1 / ratio) >= min_ratio or distance >= min_distance:
        yield (
            f"the validation {name} are on another scale than the training {name}: mean {held_out.mean:.3g} and "
            f"standard deviation {held_out.std:.3g}, against {train.mean:.3g} and {train.std:.3g}",
            f"Prepare the validation {name} exactly as the training {name}: the same scaling, with the mean and "
            "standard deviation of the training data.",
        )
