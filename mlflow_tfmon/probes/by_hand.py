"""Descents by hand: steps in which a loop itself changes weights by their gradients, without an optimizer.

What a traced function assigns is known at the end of its tracing; of eager code, when a tape is asked for the same
gradients again. Then a row is written, with the loss and the norms of the gradients; neither the learning rate nor how
far the weights have moved is known.
"""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

from mlflow_tfmon.probes import graph, replicas, tape
from mlflow_tfmon.probes.origin import Call, op_of, outermost, outward, values
from mlflow_tfmon.probes.step import OnRing, probe_of

_ASSIGNS = frozenset({"AssignSubVariableOp", "AssignAddVariableOp", "AssignVariableOp"})
_MOST_OPS = 20_000  # of a function are looked at
_UNKNOWN = float("nan")


class ByHand:
    """What takes the place of an optimizer."""


# By the keys of the variables: a function that is traced again goes on.
_known: weakref.WeakValueDictionary[frozenset[str], ByHand] = weakref.WeakValueDictionary()
_of_eager: dict[frozenset[str], ByHand] = {}


def takes(function: Any, call: Call, on_ring: OnRing) -> bool:
    """Whether a step was made by hand of what a tape gave; then it is watched.

    Args:
        function: whose tracing ends; None for eager code, of which it is known.
        call: of a tape in it, of which it is not known whose step it is.
        on_ring: told of a new ring and what stands for its optimizer.
    """
    if call.reading is None or replicas.count() > 1 or graph.in_pfor() or tape.applied(call.variables):
        return False
    if function is not None and not _changes(function, call):
        return False
    keys = frozenset(call.gradients)
    one = _known.get(keys)
    is_new = one is None
    if one is None:
        one = _known[keys] = ByHand()
    if function is not None:
        graph.keep_alive(one)
    elif is_new:  # as long as its variables
        _of_eager[keys] = one
        weakref.finalize(graph.raw(call.variables[0]), _of_eager.pop, keys, None)
    tape.changed_by_hand(keys)
    gradients = [graph.tensor(call.gradients[graph.key(v)]) for v in call.variables]
    probe = probe_of(one, call.variables, ("grad_norm",), (), call.parts, on_ring)
    before = probe.before(gradients, traced_again=True)  # nothing deep: the weights are changed already
    made_of = tape.Step(call.reading, [], None, call.parts)
    probe.after(before, made_of, {"grad_norm": gradients}, tf.constant(_UNKNOWN, tf.float64), [])
    return True


def _changes(function: Any, call: Call) -> bool:
    """Whether the function assigns to at least half of the variables what is made of their gradients."""
    assigned: dict[int, list[Any]] = {}  # by the ids of handles: the values
    for op in function.get_operations():
        if op.type in _ASSIGNS:
            assigned.setdefault(id(outermost(op.inputs[0])), []).append(op.inputs[1])
    handles = {key: getattr(graph.raw(v), "handle", None) for key, v in _by_key(call).items()}
    changed = [
        key for key, handle in handles.items()
        if any(_is_made_of(one, values(call.gradients[key]), assigned) for one in assigned.get(id(handle), ()))
    ]  # fmt: skip
    return 2 * len(changed) >= len(handles) > 0


def _by_key(call: Call) -> dict[str, Any]:
    return {graph.key(v): v for v in call.variables}


def _is_made_of(tensor: Any, gradient: Any, assigned: dict[int, list[Any]]) -> bool:
    """Whether a tensor is computed from a gradient, also by way of variables such as a momentum's."""
    pending, seen = [tensor], set[int]()
    while pending and len(seen) < _MOST_OPS:
        at = outward(pending.pop())
        if at is gradient:
            return True
        op = op_of(at)
        if op is None or id(op) in seen:
            continue
        seen.add(id(op))
        if op.type == "ReadVariableOp":
            pending += assigned.get(id(outermost(op.inputs[0])), [])
        else:
            pending += list(op.inputs)
    return False
