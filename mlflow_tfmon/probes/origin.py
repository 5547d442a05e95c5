"""The origin of the gradients that an optimizer gets: the losses they are of, and their values before clipping.

A loop may differentiate many things in a step: a penalty, the first half of SAM, micro-batches, several losses.
Only what the optimizer's gradients were made of is the step's. Within one graph that is told by the graph itself: from
the optimizer's gradients back to what a tape gave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.probes import graph

_SAME = frozenset(
    {"Identity", "IdentityN", "Cast", "StopGradient", "Snapshot", "PreventGradient", "CheckNumerics"}
)
_SUMS = frozenset({"Add", "AddV2", "AddN"})
_ZEROS = frozenset({"ZerosLike"})
_NO_TAPE = object()


@dataclass(eq=False)
class Call:
    """One call of `tf.GradientTape.gradient`.

    Attributes:
        targets: what was differentiated; nothing if that is no loss.
        scaled: whether the optimizer has scaled the loss, and will scale the gradients back.
        reading: tensor (loss, 1, what it is made of), or None if there is no loss.
        parts: names of what it is made of.
        variables: that have a gradient.
        gradients: what it gave, by the variables' keys; none of eager code any more once they are told by their ids.
        site: a mark of the place in the program where the tape was asked.
        told: whether it is known, or written down, whose step it is.
    """

    targets: list[Any]
    scaled: bool
    reading: tf.Tensor | None
    parts: tuple[str, ...]
    variables: list[Any] = field(repr=False)
    gradients: dict[str, Any] = field(repr=False)
    site: int = 0
    told: bool = False


class Origin(NamedTuple):
    """What gradients were made of.

    Attributes:
        calls: the calls whose losses make up the step's, each with the factor of its loss.
        before: the gradients as they were before they were changed (clipped), or None if they were not.
    """

    calls: list[tuple[float, Call]]
    before: list[Any] | None


def trace(
    gradients: Sequence[Any], variables: Sequence[Any], given: Mapping[int, tuple[Call, str]]
) -> Origin | None:
    """Follows an optimizer's gradients back to the calls that gave them.

    Args:
        gradients: as the optimizer is given them.
        variables: that they are of.
        given: of the tensors in reach that a call gave, by their ids: the call, and the key of the variable.

    Returns:
        Their origin; None where they can't be followed (a variable or another function lies between), or where they
        are made of something else as well (momentum by hand), but the weights themselves (their decay).
    """
    walk = _Walk(given, variables)
    terms: dict[Any, tuple[float, Call]] = {}
    before, changed = [], False
    for gradient, variable in zip(gradients, variables, strict=True):
        source = walk.source(values(gradient), graph.key(variable))
        if source is None:
            return None
        if source is _NO_TAPE:
            before.append(gradient)
            continue
        for made_of, factor in (walk.factors(source) or {}).items():
            call, _ = given[made_of]
            same = tuple(
                id(target) for target in call.targets
            )  # a persistent tape gives parts of one gradient
            known, _ = terms.setdefault(same or call, (factor, call))
            if not math.isclose(known, factor, rel_tol=1e-6):
                return None  # layers that learn at paces of their own: no one loss has these gradients
        changed = changed or source is not values(gradient)
        before.append(gradient if source is values(gradient) else _like(gradient, source, given))
    scaled = any(call.scaled for _, call in terms.values())
    found = [(1.0 if scaled else factor, call) for factor, call in terms.values()]
    return Origin(found, before if changed and not scaled else None)


def values(gradient: Any) -> Any:
    """The tensor of a gradient: of a sparse one, that of its rows."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _like(gradient: Any, source: Any, given: Mapping[int, tuple[Call, str]]) -> Any:
    if id(source) in given:
        call, key = given[id(source)]
        return call.gradients[key]
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(source, gradient.indices, gradient.dense_shape)
    return source


class _Walk:
    """Walks back from tensors to those that a tape gave (`given`: their ids)."""

    def __init__(self, given: Mapping[int, tuple[Call, str]], variables: Sequence[Any]) -> None:
        self._given = given
        self._weights = [getattr(graph.raw(v), "handle", None) for v in variables]
        self._factors: dict[int, dict[int, float] | None] = {}
        self._scalars: dict[int, dict[str, dict[int, Any]]] = {}
        self._kept: list[Any] = []  # so that ids stay those of their tensors

    def source(self, tensor: Any, key: str) -> Any | None:
        """The tensor itself if a tape gave it for a variable (or a weighted sum), else the one that it is made of.

        `_NO_TAPE` if it is plain to see that no tape has given anything that it is made of; None if it can't be told.
        """
        known, alien, unclear = self._beneath(tensor)
        if alien:
            return None
        if not known and not unclear:
            return _NO_TAPE
        found = list(known.get(key, {}).values())
        # tf.clip_by_norm takes both x and x * clip_norm on their way: the former is what was clipped.
        first = [one for one in found if not any(o is not one and self._made_of(one, o) for o in found)]
        if len(first) != 1:
            return None
        return tensor if first[0] is outward(tensor) else first[0]

    def _beneath(self, tensor: Any) -> tuple[dict[str, dict[int, Any]], bool, bool]:
        """What a tensor is made of: given ones (or weighted sums) by variable and id.

        Also, whether of others of its shape, and whether of something that can't be looked into.
        """
        found: dict[str, dict[int, Any]] = {}
        alien, unclear, pending, seen = False, op_of(tensor) is None, [tensor], set()
        while pending:
            at = outward(pending.pop())
            if id(at) in seen:
                continue
            seen.add(id(at))
            self._kept.append(at)
            factors = self.factors(at)
            if factors and (len(factors) > 1 or set(factors.values()) == {1.0}):
                for key in {self._given[one][1] for one in factors}:
                    found.setdefault(key, {})[id(at)] = at
                continue
            inputs = _inputs(at)
            if inputs is None and self._is_weight(at):
                continue
            unclear |= _is_unclear(at)
            if inputs is None:  # its value comes from elsewhere
                alien |= at.shape.is_compatible_with(tensor.shape) and at.dtype.is_floating
            elif at.shape.num_elements() == 1 != tensor.shape.num_elements():
                # The norm of all gradients, by which each of them is scaled: walked once.
                if id(at) not in self._scalars:
                    self._scalars[id(at)] = self._beneath(at)[0]
                for key, some in self._scalars[id(at)].items():
                    found.setdefault(key, {}).update(some)
            else:
                pending += inputs
        return found, alien, unclear

    def _is_weight(self, tensor: Any) -> bool:
        """Whether it is the value of a variable that is trained (weight decay by hand)."""
        op = op_of(tensor)
        if op is None or op.type != "ReadVariableOp":
            return False
        handle = outermost(op.inputs[0])
        return any(handle is weight for weight in self._weights)

    def factors(self, tensor: Any) -> dict[int, float] | None:
        """The weights of a weighted sum of given tensors (none for zeros); None if it is something else."""
        tensor = outward(tensor)
        if id(tensor) in self._given:
            return {id(tensor): 1.0}
        if id(tensor) not in self._factors:
            self._kept.append(tensor)
            self._factors[id(tensor)] = None
            self._factors[id(tensor)] = self._sum(tensor)
        return self._factors[id(tensor)]

    def _sum(self, tensor: Any) -> dict[int, float] | None:
        op = op_of(tensor)
        if op is None or not tensor.dtype.is_floating:
            return None
        inputs = list(op.inputs)
        if op.type in _ZEROS or constant(tensor) == 0.0:
            return {}
        if op.type in _SAME:
            return self.factors(inputs[tensor.value_index])
        if op.type in _SUMS:
            return _added([(1.0, self.factors(one)) for one in inputs])
        if op.type == "Sub":
            return _added([(1.0, self.factors(inputs[0])), (-1.0, self.factors(inputs[1]))])
        if op.type == "Neg":
            return _added([(-1.0, self.factors(inputs[0]))])
        if op.type == "Mul":
            for one, other in (inputs, inputs[::-1]):
                weight = constant(other)
                if weight is not None:
                    return _added([(weight, self.factors(one))])
        if op.type == "RealDiv" and constant(inputs[1]):
            return _added([(1 / constant(inputs[1]), self.factors(inputs[0]))])  # type: ignore[operator]
        return None

    def _made_of(self, tensor: Any, other: Any) -> bool:
        pending = list(_inputs(tensor) or [])
        while pending:
            at = outward(pending.pop())
            if at is other:
                return True
            if id(at) not in self._given:
                pending += _inputs(at) or []
        return False


def _is_unclear(tensor: Any) -> bool:
    """Whether a tensor may be made of gradients without being seen to be: state, or what another graph gives."""
    op = op_of(tensor)
    if op is None or tensor.dtype == tf.variant or op.type == "ReadVariableOp":
        return True
    return calls_function(op)


def calls_function(op: tf.Operation) -> bool:
    """Whether an op is a call of a function, a branch or a loop."""
    return any(attribute.type in ("func", "list(func)") for attribute in op.op_def.attr)


def _added(parts: list[tuple[float, dict[int, float] | None]]) -> dict[int, float] | None:
    total: dict[int, float] = {}
    for factor, part in parts:
        if part is None:
            return None
        for one, weight in part.items():
            total[one] = total.get(one, 0.0) + factor * weight
    return total


def op_of(tensor: Any) -> Any | None:
    """The op that a tensor of a graph comes from; an eager one has none."""
    return None if isinstance(tensor, tf.__internal__.EagerTensor) else tensor.op


def outward(tensor: Any) -> Any:
    """For what a function has captured, the tensor outside of it."""
    while True:
        op = op_of(tensor)
        if op is None or op.type != "Placeholder":
            return tensor
        outside = next((o for o, inner in getattr(op.graph, "captures", ()) if inner is tensor), None)
        if outside is None or outside.dtype == tf.resource:
            return tensor
        tensor = outside


def outermost(handle: Any) -> Any:
    """For the handle of a variable that functions have captured, the one outside of them."""
    while (op := op_of(handle)) is not None and op.type == "Placeholder":
        outside = next((o for o, inner in getattr(op.graph, "captures", ()) if inner is handle), None)
        if outside is None:
            break
        handle = outside
    return handle


def _inputs(tensor: Any) -> list[Any] | None:
    """What a tensor is computed from; None where that is state or an argument."""
    op = op_of(tensor)
    if op is None or op.type == "Placeholder" or any(one.dtype == tf.resource for one in op.inputs):
        return None
    return list(op.inputs)


def constant(tensor: Any) -> float | None:
    """The value of a constant of one element (or of zeros)."""
    tensor = outward(tensor)
    known = tf.get_static_value(tensor) if graph.tracing() is not None else None
    if known is None or not known.size:
        return None
    first = float(known.flat[0])
    return first if known.size == 1 or (first == 0.0 and not known.any()) else None
