"""Edges: what the gradients that a function applies were made of, as it came into the function.

Where no tape is in reach, the ops of a function lead from the optimizer's gradients back to its arguments, to variables
and to what other functions gave. Their values are compared with those that tapes gave: so whatever the function did to
a gradient (noise, signs, momentum), it is known whose it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from mlflow_tfmon.probes import graph, origin

_MAX_EDGES = 4  # edges of a variable
_MOST_OPS = 100_000  # that are walked back over: a gradient that no tape gave leads through the whole model


def edges(
    gradients: Sequence[Any], variables: Sequence[Any], given: Mapping[int, tuple[origin.Call, str]]
) -> list[dict[str, Any]]:
    """What gradients were made of, for the variables of each shape alike.

    Args:
        gradients: as the optimizer is given them, in a graph.
        variables: that they are of.
        given: of the tensors in reach that a tape gave, by their ids: the call, and the key of the variable.

    Returns:
        The first edge of each variable, by its key, the second, and so on; nothing if they are the gradients.
    """
    weights = [getattr(graph.raw(v), "handle", None) for v in variables]
    found: dict[str, list[Any]] = {}
    left, plain = _MOST_OPS, True
    for gradient, variable in zip(gradients, variables, strict=True):
        of_one, walked = _edges(origin.values(gradient), given, weights, left)
        left -= walked
        if left <= 0:
            return []
        plain = plain and len(of_one) == 1 and of_one[0] is origin.values(gradient)
        found[graph.key(variable)] = [_like(gradient, edge) for edge in of_one[:_MAX_EDGES]]
    return (
        []
        if plain
        else [
            {key: some[at] for key, some in found.items() if at < len(some)}
            for at in range(max(map(len, found.values()), default=0))
        ]
    )


def _edges(tensor: Any, given: Mapping[int, Any], weights: Sequence[Any], most: int) -> tuple[list[Any], int]:
    """Tensors of a gradient's shape that it is made of and that come from elsewhere; how many ops led to them."""
    found: list[Any] = []
    pending = [tensor]
    seen: set[int] = set()
    while pending and len(seen) < most:
        at = origin.outward(pending.pop())
        if id(at) in seen:
            continue
        seen.add(id(at))
        same = at.shape.is_compatible_with(tensor.shape) and at.dtype == tensor.dtype
        if id(at) in given:
            found += [at] if same else []
            continue
        op = origin.op_of(at)
        if op is not None and at.shape.num_elements() == 1 != tensor.shape.num_elements():
            continue  # by which it was scaled
        if op is None or op.type == "Placeholder":
            found += [at] if same else []
        elif op.type == "ReadVariableOp":
            if not any(origin.outermost(op.inputs[0]) is weight for weight in weights):
                found += [at] if same else []
                pending += _written(op)
        else:
            if same and origin.calls_function(op):
                found.append(at)
            pending += [one for one in op.inputs if one.dtype != tf.resource]
    return found, len(seen)


def _written(read: tf.Operation) -> list[Any]:
    """What a graph wrote into a variable before it read it there."""
    found: list[Any] = []
    for op in read.inputs[0].consumers():
        if (
            op.type in _WRITES and op._id < read._id
        ):  # ops are numbered in the order of the program (TF 2.16 to 2.21)
            found.append(op.inputs[-1])
    return found


_WRITES = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatterAdd")


def _like(gradient: Any, edge: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(edge, gradient.indices, gradient.dense_shape)
    return edge
