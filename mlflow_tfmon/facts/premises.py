"""What is known of a training before its first step, for the detectors: model, loss, optimizer, a sample of the data."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from mlflow_tfmon import kerases
from mlflow_tfmon.detectors.premises import Layer, Premises, Sample
from mlflow_tfmon.probes import graph

_SCALES = ("Normalization", "Rescaling", "BatchNormalization", "LayerNormalization", "Embedding", "TextVectorization",
           "StringLookup", "IntegerLookup", "Discretization", "Hashing")  # fmt: skip
_PASSES = ("InputLayer", "Reshape", "Flatten", "Permute", "Dropout", "Activation")
_ACTIVATION_LAYERS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "PReLU": "prelu", "Softmax": "softmax"}
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
        loss="" if weighted else loss,
        from_logits=from_logits,
        optimizer=type(optimizer).__name__ if optimizer is not None else "",
        learning_rate=_number(getattr(optimizer, "learning_rate", None)),
        clips=any(getattr(optimizer, name, None) is not None for name in ("clipnorm", "clipvalue", "global_clipnorm")),
        normalizes=_normalizes(model),
        inputs=_sample(inputs),
        targets=_sample(targets),
    )


def _layers(model: Any) -> tuple[Layer, ...]:
    outputs = _output_layers(model)
    found: list[Layer] = []
    for layer in _leaves(model):
        kind, activation, kernel = type(layer).__name__, _activation(layer), _kernel(layer)
        if kernel is None and activation == "linear":
            continue
        name = _name(layer)
        if kernel is None and found and kind in ("Activation", *_ACTIVATION_LAYERS) and found[-1].activation == "linear":
            # An activation of its own belongs to the layer before.
            before = found.pop()
            found.append(_with(before, activation=activation, is_output=before.is_output or layer in outputs))
        elif kernel is None:
            found.append(Layer(name, kind, activation, is_output=layer in outputs))
        else:
            shape, values = tuple(kernel.shape), np.asarray(kernel, np.float64)
            receptive = int(np.prod(shape[:-2]))
            found.append(
                Layer(
                    name, kind, activation, int(shape[-1]), graph.name(kernel),
                    receptive * int(shape[-2]), receptive * int(shape[-1]),
                    float(values.mean()), float(values.std()), bool(layer.trainable), layer in outputs,
                )  # fmt: skip
            )
    return tuple(found)


def _with(layer: Layer, **changes: Any) -> Layer:
    import dataclasses

    return dataclasses.replace(layer, **changes)


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
    if isinstance(loss, kerases.every("losses.Loss")) and type(loss).__module__.startswith(("keras", "tf_keras")):
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(loss).__name__).lower()
        return name, bool(getattr(loss, "from_logits", False) or getattr(loss, "_fn_kwargs", {}).get("from_logits"))
    return "", False


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _sample(values: Any) -> Sample | None:
    return Sample.of(values) if isinstance(values, np.ndarray) or hasattr(values, "__array__") else None
