"""Detector of losses that do not match the model's outputs or the labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, NOTHING, learning
from mlflow_tfmon.detectors.premises import CROSS_ENTROPIES, LINEAR, REGRESSIONS, Premises
from mlflow_tfmon.detectors.problem import Problem

_BINARY, _SPARSE = "binary_crossentropy", "sparse_categorical_crossentropy"
_ONE_HOT = "categorical_crossentropy"
_CLASSES = {
    _BINARY: "BinaryCrossentropy",
    _SPARSE: "SparseCategoricalCrossentropy",
    _ONE_HOT: "CategoricalCrossentropy",
}
_NOT_EXCLUSIVE = (
    "The labels are not mutually exclusive (not every row has a single 1), but the outputs of a softmax sum to 1.",
    'Use activation="sigmoid" in the last layer with binary_crossentropy.',
)


def detect(history: History, *, min_done: float = 0.4) -> Iterator[Problem]:
    """Finds, before the first step: logits used as probabilities, softmax over one unit, labels out of range.

    These are withdrawn if 70% is learned nevertheless. Never withdrawn are a softmax over one unit or for labels that
    are not exclusive (Keras computes the loss from the input of the softmax, so that it falls while the predictions
    stay wrong), and categorical cross-entropy of one unit, which is 0.
    So are numbers of classes that a squared error, or another distance, compares with the outputs of a softmax.
    What may be harmless is reported only if nothing is learned in 40% of the training: a sigmoid or softmax that does
    not match the loss. (A network with sigmoid outputs does learn exclusive classes: Keras scales its outputs to a sum
    of 1.) Likewise probabilities used as logits, with which the loss cannot fall far: until 70% of that is learned.
    Sources: UMLAUT (CHI 2021), NeuraLint (TOSEM 2021).

    Args:
        history: the training up to some step.
        min_done: share of the training after which what may be harmless is reported.
    """
    data = history.premises
    out = data.output if data is not None else None
    if data is None or out is None or data.loss not in (*CROSS_ENTROPIES, *REGRESSIONS):
        return
    state = learning(history)
    if data.loss in REGRESSIONS:
        # Compared with probabilities of classes, each of them is drawn to the number.
        if _are_numbers_of_classes(data) and not state.learned >= MUCH:
            yield Problem(
                "loss_output_mismatch", "critical", min(1, history.step), (out.name,),
                f"{data.loss} compares the probabilities of {out.units} classes with numbers of classes.",
                'Compile with loss="sparse_categorical_crossentropy".', history.step, 0.9,
            )  # fmt: skip
        return
    certain = _always_wrong(data) or (None if state.learned >= MUCH else _certain(data))
    over = state.share >= min_done
    suspect = _suspect(data) if over and state.learned < max(NOTHING, MUCH * _reachable(data)) else None
    if certain or suspect:
        evidence, advice = certain or suspect or ("", "")
        yield Problem(
            "loss_output_mismatch", "critical", min(1, history.step), (out.name,), evidence, advice, history.step,
            0.95 if certain else 0.7,
        )  # fmt: skip


def _are_numbers_of_classes(data: Premises) -> bool:
    out, y = data.output, data.targets
    if out is None or y is None or out.units < 3 or out.activation != "softmax":
        return False
    return y.columns == 1 and y.whole and y.least >= 0 and 1 < y.most < out.units


def _certain(data: Premises) -> tuple[str, str] | None:
    out, y = data.output, data.targets
    assert out is not None
    # Of a loop's last layer it may be known what comes out of it alone.
    if out.activation in LINEAR and not data.from_logits and (out.kernel or not out.kind):
        return (
            f"The last layer has no activation, but {data.loss} expects probabilities (from_logits=False).",
            f"Compile with loss=keras.losses.{_CLASSES[data.loss]}(from_logits=True), or end the model with "
            f"{out.with_activation('sigmoid' if data.loss == _BINARY else 'softmax')}.",
        )
    if y is None or not y.count or y.nonfinite:
        return None
    if data.loss == _SPARSE and out.units > 0 and (y.least < 0 or y.most >= out.units):
        return (
            f"The labels range from {y.least:g} to {y.most:g}, but the model has {out.units} outputs, for labels 0 "
            f"to {out.units - 1}.",
            "Number the labels from 0, or give the last layer as many units as there are classes.",
        )
    if data.loss != _SPARSE and (y.least < 0 or y.most > 1):
        return (
            f"The labels range from {y.least:g} to {y.most:g}, but {data.loss} expects 0 to 1.",
            "Use labels 0 and 1 (one-hot for several classes), or sparse_categorical_crossentropy for class numbers.",
        )
    return None


def _always_wrong(data: Premises) -> tuple[str, str] | None:
    out = data.output
    assert out is not None
    if out.units == 1 and (out.activation == "softmax" or data.loss == _ONE_HOT):
        return (
            "A softmax over one unit always outputs 1."
            if out.activation == "softmax"
            else "The cross-entropy of one class is 0 whatever the model outputs.",
            'Use activation="sigmoid" with one unit and binary_crossentropy.',
        )
    return _NOT_EXCLUSIVE if data.loss == _BINARY and _several(data) else None


def _several(data: Premises) -> bool:
    """Whether a softmax is used for labels of which several, or none, may apply."""
    out, y = data.output, data.targets
    assert out is not None
    return out.activation == "softmax" and y is not None and y.columns > 1 and y.whole and not y.one_hot


def _reachable(data: Premises) -> float:
    """The largest share of what there is to learn that a loss shows which takes probabilities for logits; 0 else."""
    out = data.output
    if out is None or not data.from_logits or out.activation not in ("softmax", "sigmoid"):
        return 0.0
    if data.loss == _BINARY:  # logits of 0 and 1, for as many examples of either class
        return 1 - (np.log(2) + np.log1p(np.exp(-1))) / 2 / np.log(2)
    return float(1 - np.log1p((out.units - 1) / np.e) / np.log(out.units)) if out.units > 1 else 0.0


def _suspect(data: Premises) -> tuple[str, str] | None:
    out, y = data.output, data.targets
    assert out is not None
    if data.from_logits and out.activation in ("softmax", "sigmoid"):
        return (
            f"The last layer's {out.activation} outputs probabilities, but the loss expects logits (from_logits=True).",
            "Remove from_logits=True, or the activation.",
        )
    if data.loss == _ONE_HOT and _several(data):
        return _NOT_EXCLUSIVE
    if data.loss == _BINARY and out.activation == "softmax":
        return (
            "The last layer is a softmax, but the loss is binary_crossentropy.",
            "Use categorical_crossentropy for mutually exclusive classes, or a sigmoid for independent ones.",
        )
    exclusive = data.loss != _BINARY and (data.loss == _SPARSE or (y is not None and y.one_hot))
    if exclusive and out.activation in ("sigmoid", "hard_sigmoid", "tanh") and out.units > 1:
        return (
            f"The classes are mutually exclusive, but the last layer is a {out.activation}.",
            'Use activation="softmax".',
        )
    return None
