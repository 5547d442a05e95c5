"""The outputs of a model's layers for a batch: traced once from the model's own call, without any change of state."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.probes import graph
from mlflow_tfmon.probes.unchanging import called, unchanging
from mlflow_tfmon.stream.records import LayerActivations

# Share of the elements where less than 5% of an activation's largest slope is left.
_SATURATED = {
    "sigmoid": lambda a: 4 * a * (1 - a) < 0.05,
    "tanh": lambda a: 1 - a * a < 0.05,
    "softsign": lambda a: tf.square(1 - tf.abs(a)) < 0.05,
    "hard_sigmoid": lambda a: (a <= 0) | (a >= 1),
    "hard_tanh": lambda a: tf.abs(a) >= 1,
}
# Activations that TensorFlow has an op for; the others are known by a layer's attribute or class.
_OPS = {
    "Relu": "relu", "Relu6": "relu6", "LeakyRelu": "leaky_relu", "Elu": "elu", "Selu": "selu", "Sigmoid": "sigmoid",
    "Tanh": "tanh", "Softsign": "softsign", "Softplus": "softplus", "Softmax": "softmax",
}  # fmt: skip
_SAME = frozenset(
    {"Identity", "Reshape", "Transpose", "ExpandDims", "Squeeze"}
)  # the same values, arranged anew


class ActivationProbe:
    """Looks at a model's activations.

    Args:
        model: a Keras model.
        inputs: that it can be called with, as tensors.

    Raises:
        NotPossibleError: it can't be called so, or that would change something.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        leaves = tf.nest.flatten(inputs)
        self.spec = [(tuple(t.shape), t.dtype) for t in leaves]
        self._about: list[tuple[str, str, int, bool]] = []

        def run(*tensors: tf.Tensor) -> tf.Tensor:
            calls, outputs = _calls_of(model, tf.nest.pack_sequence_as(inputs, tensors))
            rows = []
            for layer, tensor in calls:
                name, after = _activation(layer, tensor)
                values = _by_unit(layer, after)
                given = any(_origin(after) is _origin(one) for one in outputs)
                self._about.append((_name_of(layer), name, int(values.shape[-1]), given))
                rows.append(_figures_of(name)(values))
            return tf.stack(rows) if rows else tf.zeros([0, 5])

        self._run = unchanging(run, leaves)

    def look(self, inputs: Any) -> tuple[LayerActivations, ...]:
        """The figures of each layer, in the order of the calls."""
        found = self._run(*tf.nest.flatten(inputs))[0].numpy().astype(float)
        about = zip(_unique([name for name, *_ in self._about]), self._about, found.tolist(), strict=True)
        return tuple(
            LayerActivations(layer, activation, units, output, *figures)
            for layer, (_, activation, units, output), figures in about
        )


def _calls_of(model: Any, inputs: Any) -> tuple[list[tuple[Any, tf.Tensor]], list[tf.Tensor]]:
    """Calls a model; the layers that were called, each with what it gave, and what the model gave.

    Of layers within layers the innermost count whose output is at hand: a cell's, within a loop, is not.
    """
    here, thread = tf.compat.v1.get_default_graph(), threading.get_ident()
    found: list[tuple[Any, tf.Tensor]] = []
    owner = kerases.of(model).layers.Layer
    original = owner.__call__

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = len(found)
        result = original(self, *args, **kwargs)
        # A recurrent cell is called for its shape before the loop that it runs in: the layer around it tells the truth.
        cell = hasattr(self, "state_size") and not hasattr(self, "cell")
        if threading.get_ident() == thread and len(found) == before and self is not model and not cell:
            tensor: Any = next(iter(tf.nest.flatten(result)), None)
            if tf.is_tensor(tensor) and tensor.dtype.is_floating and tensor.shape.rank:
                given = {id(_origin(t)) for t in tf.nest.flatten((args, kwargs)) if tf.is_tensor(t)}
                if getattr(tensor, "graph", None) is here and id(_origin(tensor)) not in given:
                    found.append((self, tensor))
        return result

    owner.__call__ = __call__
    try:
        outputs = called(model, inputs)
    finally:
        owner.__call__ = original
    return found, [t for t in tf.nest.flatten(outputs) if tf.is_tensor(t)]


def _origin(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor that a tensor's values come from."""
    while getattr(tensor, "op", None) is not None and tensor.op.type in _SAME and tensor.op.inputs:
        tensor = tensor.op.inputs[0]
    return tensor


def _activation(layer: Any, tensor: tf.Tensor) -> tuple[str, tf.Tensor]:
    """The activation that a layer's output goes through, within the layer or right after it, and what comes of it."""
    if origin := _OPS.get(_origin(tensor).op.type):
        return origin, tensor
    own = getattr(getattr(layer, "activation", None), "__name__", "")
    if hasattr(layer, "cell"):  # what a recurrent layer gives is more than its activation
        return "", tensor
    if own not in ("", "linear"):
        return own, tensor
    after = [op for op in tensor.consumers() if op.type in _OPS]
    if after:
        return _OPS[after[0].type], after[0].outputs[0]
    return own or _by_class(layer), tensor


def _by_class(layer: Any) -> str:
    known = kerases.every("layers.Activation") + kerases.every("layers.ReLU") + kerases.every("layers.ELU")
    known += (
        kerases.every("layers.LeakyReLU") + kerases.every("layers.PReLU") + kerases.every("layers.Softmax")
    )
    return type(layer).__name__.lower() if isinstance(layer, known) else ""


def _by_unit(layer: Any, tensor: tf.Tensor) -> tf.Tensor:
    """A layer's output as rows of its units: of a convolution, a unit is a filter, at each place in each picture."""
    rank = tensor.shape.rank
    if getattr(layer, "data_format", None) == "channels_first" and rank > 2:
        tensor = tf.transpose(tensor, [0, *range(2, rank), 1])
    units = tensor.shape[-1] if rank > 1 and tensor.shape[-1] else 1
    return tf.reshape(tf.cast(tensor, tf.float32), [-1, units])


@functools.cache
def _figures_of(activation: str) -> graph.Once:
    return graph.Once(functools.partial(_figures, activation))


def _figures(activation: str, values: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(values, [0, 1])
    zero = tf.equal(values, 0)
    saturated = _SATURATED.get(activation)
    return tf.stack(
        [
            mean,
            tf.sqrt(variance),
            tf.reduce_mean(tf.cast(zero, tf.float32)),
            tf.reduce_mean(tf.cast(tf.reduce_all(zero, axis=0), tf.float32)),
            tf.reduce_mean(tf.cast(saturated(values), tf.float32)) if saturated else np.nan,
        ]
    )


def _name_of(layer: Any) -> str:
    """A layer's name as its variables' names begin (`digits.hidden` of `digits.hidden.kernel`), else its own."""
    path = getattr(layer, "path", None)
    if path is None and layer.weights:  # of Keras 2
        path = graph.name(layer.weights[0]).rpartition(".")[0]
    return str(path or layer.name).replace("/", ".")


def _unique(names: list[str]) -> list[str]:
    """Names of calls; a layer that is called again gets a number."""
    return [
        name if name not in names[:at] else f"{name}_{names[:at].count(name) + 1}"
        for at, name in enumerate(names)
    ]
