"""What is known of a training before its first step: the model, its loss and optimizer, a sample of the data."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.detectors.premises import Layer, Premises, Sample
from mlflow_tfmon.errors import contained
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.probes import graph
from mlflow_tfmon.stream import records

_SCALES = (
    "Normalization",
    "Rescaling",
    "BatchNormalization",
    "LayerNormalization",
    "Embedding",
    "TextVectorization",
    "StringLookup",
    "IntegerLookup",
    "Discretization",
    "Hashing",
)
_PASSES = ("InputLayer", "Reshape", "Flatten", "Permute", "Dropout", "Activation")
_ACTIVATION_LAYERS = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "PReLU": "prelu",
    "Softmax": "softmax",
}
_MOST_NUMBERS = 1_000_000
_LOSSES = {"mse": "mean_squared_error", "mae": "mean_absolute_error"}


def premises_of(model: Any, inputs: Any = None, targets: Any = None, weighted: bool = False) -> Premises:
    """What is known of a training before its first step.

    Args:
        model: a built Keras model, with its initial weights.
        inputs: of the data, as an array; None if unknown. Only arrays are looked at: a dataset is never read.
        targets: the same.
        weighted: whether examples or classes are weighted, so that the loss of a constant prediction is not known.

    Example:
        >>> premises_of(model, x, y).loss
        'sparse_categorical_crossentropy'
    """
    layers = _layers(model)
    loss, from_logits = _loss(getattr(model, "loss", None))
    optimizer = getattr(model, "optimizer", None)
    return Premises(
        layers=layers,
        loss=loss,
        from_logits=from_logits,
        optimizer=type(optimizer).__name__ if optimizer is not None else "",
        learning_rate=_number(getattr(optimizer, "learning_rate", None)),
        clips=any(
            getattr(optimizer, name, None) is not None
            for name in ("clipnorm", "clipvalue", "global_clipnorm")
        ),
        normalizes=_normalizes(model),
        inputs=_sample(inputs),
        targets=_sample(targets),
        weighted=weighted,
        trained_before=_number(getattr(optimizer, "iterations", None)) > 0,
    )


def _layers(model: Any) -> tuple[Layer, ...]:
    outputs = _output_layers(model)
    found: list[Layer] = []
    for layer in _leaves(model):
        kind, activation, kernel = type(layer).__name__, _activation(layer), _kernel(layer)
        if kernel is None and activation == "linear":
            continue
        name = _name(layer)
        if (
            kernel is None
            and found
            and kind in ("Activation", *_ACTIVATION_LAYERS)
            and found[-1].activation == "linear"
        ):
            # An activation of its own belongs to the layer before.
            before = found.pop()
            found.append(
                dataclasses.replace(
                    before, activation=activation, is_output=before.is_output or layer in outputs
                )
            )
        elif kernel is None:
            found.append(Layer(name, kind, activation, is_output=layer in outputs))
        else:
            shape, values = tuple(kernel.shape), _values(kernel)
            mean, std = (float(values.mean()), float(values.std())) if values.size else _announced(layer)
            receptive = int(np.prod(shape[:-2]))
            found.append(
                Layer(
                    name,
                    kind,
                    activation,
                    int(shape[-1]),
                    graph.name(kernel),
                    receptive * int(shape[-2]),
                    receptive * int(shape[-1]),
                    mean,
                    std,
                    bool(layer.trainable),
                    layer in outputs,
                )
            )
    return tuple(found)


def _leaves(model: Any) -> list[Any]:
    """The layers that hold no others, in order."""
    found: list[Any] = []
    for layer in getattr(model, "layers", ()):
        found += _leaves(layer) if getattr(layer, "layers", None) else [layer]
    return found


def _output_layers(model: Any) -> list[Any]:
    """The layers that give the model's outputs: known for functional and sequential models."""
    try:
        operations = [tensor._keras_history[0] for tensor in model.outputs]
    except (AttributeError, TypeError):
        return []
    found = []
    for operation in operations:
        leaves = _leaves(operation)
        found.append(leaves[-1] if leaves else operation)
    for one in list(found):  # what an activation of its own gives comes of the layer before
        if _kernel(one) is None and len(found) == 1:
            with_kernel = [layer for layer in _leaves(model) if _kernel(layer) is not None]
            found += with_kernel[-1:]
    return found


def _activation(layer: Any) -> str:
    activation = getattr(layer, "activation", None)
    if activation is not None:
        return str(getattr(activation, "__name__", type(activation).__name__))
    return _ACTIVATION_LAYERS.get(type(layer).__name__, "linear")


def _kernel(layer: Any) -> Any:
    for name in ("kernel", "embeddings"):
        value = getattr(layer, name, None)
        if value is not None and len(getattr(value, "shape", ())) >= 2:
            return value
    return None


def _values(kernel: Any) -> np.ndarray:
    """A kernel's numbers, or as many of them as are quickly had."""
    size = int(np.prod(kernel.shape))
    rows = max(1, kernel.shape[0] * _MOST_NUMBERS // size) if size > _MOST_NUMBERS else kernel.shape[0]
    return np.asarray(graph.raw(kernel)[:rows], np.float64)


def _announced(layer: Any) -> tuple[float, float]:
    """Mean and deviation that a kernel will have: one whose layer is just being traced has no numbers yet."""
    initializer: Any = getattr(layer, "kernel_initializer", None)
    kind, nan = type(initializer).__name__, float("nan")
    if kind in ("Zeros", "Ones", "Constant"):
        value = getattr(initializer, "value", float(kind == "Ones"))
        return (float(value), 0.0) if isinstance(value, (int, float)) else (nan, nan)
    if kind in ("RandomNormal", "TruncatedNormal"):
        return float(initializer.mean), float(initializer.stddev)
    return nan, nan


def _name(layer: Any) -> str:
    """The layer's name as the names of its variables begin."""
    weights = getattr(layer, "weights", None)
    return graph.name(weights[0]).rpartition(".")[0] if weights else str(layer.name)


def _normalizes(model: Any) -> bool:
    for layer in _leaves(model):
        kind = type(layer).__name__
        if kind in _SCALES:
            return True
        if kind not in _PASSES:
            return False
    return False


def _loss(loss: Any) -> tuple[str, bool]:
    """A loss's name in snake case, and whether it takes logits; "" for one of the user's own, or several."""
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    if isinstance(loss, str):
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", loss).lower()
        return _LOSSES.get(name, name), False
    if callable(loss) and hasattr(loss, "__name__"):
        ours = getattr(loss, "__module__", "").startswith(("keras", "tf_keras"))
        return (str(loss.__name__), False) if ours else ("", False)
    if isinstance(loss, kerases.every("losses.Loss")) and type(loss).__module__.startswith(
        ("keras", "tf_keras")
    ):
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(loss).__name__).lower()
        if name == "huber" and getattr(loss, "_fn_kwargs", {}).get("delta", 1.0) != 1.0:
            return "", False  # the constant prediction's loss is another
        return name, bool(
            getattr(loss, "from_logits", False) or getattr(loss, "_fn_kwargs", {}).get("from_logits")
        )
    return "", False


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _sample(values: Any) -> Sample | None:
    if isinstance(values, (pd.DataFrame, pd.Series)):
        values = values.to_numpy()
    known = isinstance(values, np.ndarray) or (tf.is_tensor(values) and hasattr(values, "numpy"))
    return Sample.of(values) if known else None


class Telling:
    """Tells what is known of a model's training, once, while its weights are the initial ones.

    A model that is built by its first call has weights when the step has been traced, and before it runs: so this is
    asked when the training starts, and when its first optimizer is seen.

    Attributes:
        arguments: of the call of fit, where there is one that is known.

    Args:
        model: the model, or None.
    """

    def __init__(self, model: Any) -> None:
        self.arguments: FitArguments | None = None
        self._model = model
        self._told = model is None

    def tell(self, prefix: str, recorded: int = 0) -> tuple[records.Premises, ...]:
        """The record, if there is something new to tell.

        Args:
            prefix: that of the model's series.
            recorded: how many of the model's steps are in the run: what it learned in these is known.
        """
        # Within a replica's thread no variable can be read.
        if (
            self._told
            or not self._model.built
            or (not tf.distribute.in_cross_replica_context() and tf.distribute.has_strategy())
        ):
            return ()
        with contained("looking at model and data", "some problems are found later, or not at all"):
            self._told = True
            data: tuple[Any, ...] = (None, None, False)
            if self.arguments is not None:
                values = self.arguments.values
                weighted = self.arguments.sample_weight is not None or bool(values.get("class_weight"))
                data = self.arguments.x, self.arguments.y, weighted
            found = premises_of(self._model, *data)
            found = dataclasses.replace(found, trained_before=found.trained_before and not recorded)
            return (records.Premises(dataclasses.asdict(found), prefix),)
        return ()

    def again(self) -> None:
        """A further fit begins."""
        self._told = self._model is None
