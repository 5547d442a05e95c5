"""Layers of a model as far as they affect what can be learned: activations, initial kernels, outputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.detectors.premises import OVER_EXAMPLES, UNKNOWN, Layer
from mlflow_tfmon.probes import graph

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
    "CategoryEncoding",
)
_NORMS = ("BatchNormalization", "LayerNormalization", "GroupNormalization")
# What gives the same numbers, some of them, or none in their place.
_ARRANGES = (
    "InputLayer", "Reshape", "Flatten", "Permute", "RepeatVector", "Dropout", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D", "ActivityRegularization", "Identity", "Masking",
)  # fmt: skip
_PICTURES = (
    "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D", "Resizing",
    "CenterCrop", "GaussianNoise", "GaussianDropout", "AlphaDropout",
)  # fmt: skip
# What adds up, scales or pools what comes in, and no more.
_LINEAR = (
    *_ARRANGES, *_PICTURES, "Activation", "Normalization", "Rescaling", "BatchNormalization", "Add", "Subtract",
    "Average", "Concatenate", "UpSampling1D", "UpSampling2D", "UpSampling3D",
)  # fmt: skip
_ACTIVATION_LAYERS = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "PReLU": "prelu",
    "Softmax": "softmax",
}
_AROUND = ("TimeDistributed", "SpectralNormalization")  # layers around the one that does the work
_KERAS = ("keras", "tf_keras")
_MOST_NUMBERS = 1_000_000
_LOADED = 3.0  # a kernel so many times wider or narrower than its initializer draws them was not drawn by it


def layers_of(model: Any, drawn: bool = True) -> tuple[Layer, ...]:
    """The layers with an activation or a kernel, and others that may be more than linear, in the order of the calls.

    Args:
        model: a Keras model.
        drawn: whether its kernels are as they were drawn; else mean and deviation are not told of them.
    """
    ends, units = _ends(model), _last_axis(model)
    found: list[Layer] = []
    for part in _leaves(model):
        layer = _within(part)
        kind, activation, kernel = type(layer).__name__, _activation(layer), _kernel(layer)
        is_output = any(part is end for end in ends)
        if kernel is not None:
            found.append(_with_kernel(layer, activation, kernel, drawn))
        elif activation == "linear" and _is_linear(layer) and not is_output:
            continue
        elif (
            kind in ("Activation", *_ACTIVATION_LAYERS) and found and found[-1].activation == "linear"
        ):  # it belongs to the layer before
            found.append(dataclasses.replace(found.pop(), activation=activation))
        else:
            found.append(
                Layer(
                    _name(layer), kind, UNKNOWN if activation == "linear" else activation,
                    trainable=bool(getattr(layer, "trainable", True)), radius=_radius(layer) if drawn else float("nan"),
                )
            )  # fmt: skip
        if is_output:
            found[-1] = dataclasses.replace(found[-1], is_output=True, units=units)
    return tuple(found)


def is_graph(model: Any) -> bool:
    """Whether it is known what a model computes: no `call` of the user's is in it."""
    own = isinstance(model, kerases.every("Sequential")) or bool(
        getattr(model, "_is_graph_network", hasattr(model, "operations"))
    )
    within = [one for one in _parts(model) if isinstance(one, kerases.every("Model"))]
    return own and all(is_graph(one) for one in within)


def norm_momentum(model: Any) -> float:
    """The largest momentum of a model's trainable BatchNormalization layers; NaN without any."""
    found = [_within(part) for part in _leaves(model)]
    momenta = [
        float(layer.momentum)
        for layer in found
        if type(layer).__name__ == "BatchNormalization" and _of_keras(layer) and layer.trainable
    ]
    return max(momenta, default=float("nan"))


def normalizes(model: Any) -> bool:
    """Whether a model sees to the scale of its inputs itself, or has been trained with theirs."""
    leaves = [_within(part) for part in _leaves(model)]
    for at, layer in enumerate(leaves):
        kind = type(layer).__name__
        # Of an operation or a layer of the user's nobody knows; one without weights may well be a division.
        if kind in _SCALES or not _is_layer(layer) or (not _of_keras(layer) and not layer.weights):
            return True
        if kind in (*_ARRANGES, *_PICTURES, "Activation") or kind.startswith("Random"):
            continue
        if not layer.trainable:
            return True  # trained before, with inputs of the scale that it wants
        after = type(leaves[at + 1]).__name__ if at + 1 < len(leaves) else ""
        return kind == "Lambda" or (_activation(layer) == "linear" and after in _NORMS)
    return False


def _leaves(model: Any) -> list[Any]:
    """The layers and operations that hold no others, in order."""
    found: list[Any] = []
    for part in _parts(model):
        found += _leaves(part) if getattr(part, "layers", None) else [part]
    return found


def _parts(model: Any) -> list[Any]:
    # `layers` leaves out what is no layer: an operation such as `keras.ops.relu`.
    parts = getattr(model, "operations", None) or getattr(model, "layers", None) or ()
    return list(parts)


def _within(part: Any) -> Any:
    return part.layer if type(part).__name__ in _AROUND else part


def _is_layer(part: Any) -> bool:
    return isinstance(part, kerases.every("layers.Layer")) and "OpLambda" not in type(part).__name__


def _of_keras(layer: Any) -> bool:
    return type(layer).__module__.split(".")[0] in _KERAS


def _is_linear(layer: Any) -> bool:
    kind = type(layer).__name__
    return _of_keras(layer) and (kind in _LINEAR or kind.startswith("Random") or "Pooling" in kind)


def _ends(model: Any) -> list[Any]:
    """What gives the model's outputs, apart from how they are arranged; nothing where its `call` is the user's."""
    return [end for end in map(_end, _outputs(model)) if end is not None]


def _outputs(model: Any) -> list[Any]:
    try:
        return list(model.outputs or ())
    except (AttributeError, TypeError, ValueError):  # of Keras: it has none yet, or never will
        return []


def _end(tensor: Any) -> Any:
    history: Any = getattr(tensor, "_keras_history", (None, 0, 0))
    part, node, _ = history
    inner = _outputs(part) if getattr(part, "layers", None) else []
    if len(inner) == 1:
        return _end(inner[0])
    if type(part).__name__ in _ARRANGES or (part is not None and "Pooling" in type(part).__name__):
        before = tf.nest.flatten(part._inbound_nodes[node].input_tensors)
        source = _end(before[0]) if len(before) == 1 else None
        # The mean of logits is one; that of rectified values is nothing that has a name.
        if type(part).__name__ in _ARRANGES or (
            source is not None and _activation(_within(source)) == "linear"
        ):
            return source or part
    return part


def _last_axis(model: Any) -> int:
    outputs = _outputs(model)
    shape = tuple(outputs[0].shape) if len(outputs) == 1 else ()
    return int(shape[-1] or 0) if shape else 0


def _with_kernel(layer: Any, activation: str, kernel: Any, drawn: bool) -> Layer:
    shape, values = tuple(kernel.shape), _values(kernel) if drawn else np.empty(0)
    receptive = int(np.prod(shape[:-2]))
    fan_in, fan_out = receptive * int(shape[-2]), receptive * int(shape[-1])
    mean, std = (float(values.mean()), float(values.std())) if values.size else _announced(layer)
    mean, std = (mean, std) if drawn else (float("nan"), float("nan"))
    usual = _scaled(layer, fan_in, fan_out)
    if std > 0 and usual > 0 and not usual / _LOADED < std < usual * _LOADED:
        std = float("nan")
    return Layer(
        _name(layer), type(layer).__name__, activation, int(shape[-1]), graph.name(kernel), fan_in, fan_out, mean, std,
        bool(layer.trainable), drawn and not layer.trainable and _is_untouched(layer),
    )  # fmt: skip


def _is_untouched(layer: Any) -> bool:
    bias = getattr(layer, "bias", None)
    values = np.empty(0) if bias is None else _values(bias)
    return values.size > 0 and not values.any()


def _radius(layer: Any) -> float:
    """About the spectral radius of a recurrent kernel; NaN without one, and for one that is to be orthogonal."""
    cell = getattr(layer, "cell", layer)
    kernel = getattr(cell, "recurrent_kernel", None)
    drawn_so = type(getattr(cell, "recurrent_initializer", None)).__name__.startswith("Orthogonal")
    if kernel is None or len(kernel.shape) != 2 or drawn_so:
        return float("nan")
    values = _values(kernel)
    return float(values.std() * np.sqrt(kernel.shape[0])) if values.size else float("nan")


def _activation(layer: Any) -> str:
    if not _is_layer(layer):
        return UNKNOWN
    kind, activation = type(layer).__name__, getattr(layer, "activation", None)
    if kind == "Softmax" and (axis := getattr(layer, "axis", -1)) != -1:
        return OVER_EXAMPLES if axis == 0 else UNKNOWN  # over what are no units
    if activation is None:
        return _ACTIVATION_LAYERS.get(kind, "linear" if _of_keras(layer) and kind != "Lambda" else UNKNOWN)
    name = str(getattr(activation, "__name__", type(activation).__name__))
    name = _ACTIVATION_LAYERS.get(name, name)
    return UNKNOWN if name == "linear" and not _of_keras(layer) else name


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


def _scaled(layer: Any, fan_in: int, fan_out: int) -> float:
    """The deviation that Glorot's, He's or LeCun's initializer gives a kernel; NaN for another initializer."""
    names = ("kernel_initializer", "depthwise_initializer")
    initializer: Any = next((getattr(layer, one) for one in names if hasattr(layer, one)), None)
    mode = getattr(initializer, "mode", None)
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        return float("nan")
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    return float(np.sqrt(initializer.scale / max(1.0, fan)))


def _name(layer: Any) -> str:
    """The layer's name as the names of its variables begin."""
    weights = getattr(layer, "weights", None)
    return graph.name(weights[0]).rpartition(".")[0] if weights else str(layer.name)
