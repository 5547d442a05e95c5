"""Calls of a model that change nothing: traced once from the model's own `call`, and of that only the outputs are kept.

So no counter, no batch normalization's average and no random generator moves, whatever the model's `call` does. A call
of which that can't be said is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import tensorflow as tf

from mlflow_tfmon.internals import internal
from mlflow_tfmon.probes.alone import alone
from mlflow_tfmon.random_state import same_random_numbers

# Stateful by their definition, but they change nothing that a training could tell.
_HARMLESS = frozenset(
    {
        "VarHandleOp", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarIsInitializedOp", "Placeholder",
        "PartitionedCall", "StatefulPartitionedCall", "If", "While", "Case", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3",
        "HashTableV2", "MutableHashTableV2", "LookupTableFindV2", "LookupTableSizeV2", "Assert",
    }
)  # fmt: skip
# The same, within a call that is traced anew; within a pipeline, its later numbers would be others.
_RANDOM = frozenset(
    {"RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal", "Multinomial"}
)


class NotPossibleError(Exception):
    """A model can't be called so; the message says why."""


def unchanging(run: Callable[..., Any], inputs: Sequence[Any]) -> Callable[..., list[tf.Tensor]]:
    """A function of tensors that gives what `run` gives of them, as a flat list, and does nothing else.

    Args:
        run: traced here; what it gives are tensors.
        inputs: tensors such as it will be called with.

    Raises:
        NotPossibleError: its outputs can't be had without a change.
    """
    specs = [tf.TensorSpec(t.shape, t.dtype) for t in inputs]
    with same_random_numbers(), alone():
        traced = tf.compat.v1.wrap_function(run, specs)
        pruned = traced.prune(traced.inputs[: len(inputs)], list(traced.outputs))
        culprit = effect(pruned.graph)
        if culprit:
            raise NotPossibleError(f"the model's call has an effect besides its output ({culprit})")
        # Called by itself, what `prune` gives tries another signature first, in vain: 0.5 ms a call (TF 2.21).
        found: Callable[..., list[tf.Tensor]] = tf.function(
            lambda *tensors: pruned(*tensors)
        ).get_concrete_function(*specs)
    return found


def called(model: Any, inputs: Any) -> Any:
    """What a model gives for inputs with `training=False`.

    Raises:
        NotPossibleError: it can't be called so.
    """
    try:
        return model(inputs, training=False)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise NotPossibleError(
            f"calling the model on the examples failed ({type(error).__name__}: {why})"
        ) from error
    finally:
        model._clear_losses()  # those that its layers added belong to this call


class Forward:
    """What a model gives for inputs of one structure and shape.

    Args:
        model: a Keras model.
        inputs: that it can be called with, as tensors.

    Raises:
        NotPossibleError: it can't be called so, or that would change something.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        self._like: Any = None

        def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
            outputs = called(model, tf.nest.pack_sequence_as(inputs, tensors))
            leaves = tf.nest.flatten(outputs)
            if not all(isinstance(one, tf.Tensor) for one in leaves):
                raise NotPossibleError("the model gives something that is no tensor")
            self._like = tf.nest.map_structure(lambda _: None, outputs)
            return [tf.cast(t, tf.float32) if t.dtype.is_floating else tf.identity(t) for t in leaves]

        self._run = unchanging(run, tf.nest.flatten(inputs))

    def __call__(self, inputs: Any) -> Any:
        """The model's outputs as arrays, nested as the model nests them."""
        found = self._run(*tf.nest.flatten(inputs))
        return tf.nest.pack_sequence_as(self._like, [one.numpy() for one in found])


def effect(graph: Any, random: bool = False) -> str:
    """The first op of a graph, or of the functions that it calls, that may change some state, or "".

    Args:
        graph: a `tf.Graph`.
        random: whether to draw a random number is an effect.
    """
    known_op = internal(
        "tensorflow.python.framework.op_def_registry.get", None, "what a model gives is not looked at"
    )
    if known_op is None:
        return "which can't be told"
    definition = graph.as_graph_def()
    functions = attrgetter("library.function")(definition)
    harmless = _HARMLESS if random else _HARMLESS | _RANDOM
    nodes = [*definition.node, *(node for function in functions for node in function.node_def)]
    for node in nodes:
        known = known_op(node.op)
        if known is not None and known.is_stateful and node.op not in harmless:
            return str(node.op)
    return ""
