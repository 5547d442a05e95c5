"""Audit of the functions that a training runs, by the kernels that TensorFlow has for a GPU.

TensorFlow's Linux wheel is a CUDA build: its registry knows, without a GPU, which op has a kernel for one, and which of
that kernel's arguments are in the host's memory. A second logical CPU device stands in for the GPU: what is placed
there, or nowhere, would be on the GPU, if it can; what is placed on `CPU:0` is the host's. Checked on TF 2.16 to 2.21.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import atomic_function
from tensorflow.python.framework import kernels, op_def_registry

import mlflow_tfmon

HOST, DEVICE = "host", "device"
PACKAGE = Path(mlflow_tfmon.__file__).parent
TENSORFLOW = Path(tf.__file__).parent
XLA = "_XlaMustCompile"


# What a finding may be:
TO_HOST = "from the device to the host"  # the host waits until the device has come to it
WHOLE = "a whole variable's elements cross"
CONTROL = "the host waits for an op of the device"
NO_KERNEL = "no kernel for a GPU in a branch that runs on it"
TWO_DEVICES = "a branch that runs on one device takes resources of two"
COMPILED = "compiled when it first runs on a GPU, which needs libdevice"
KINDS = (TO_HOST, WHOLE, CONTROL, NO_KERNEL, TWO_DEVICES, COMPILED)


@dataclass(frozen=True)
class Finding:
    """One thing that a GPU would be slowed down or broken by.

    Attributes:
        kind: one of `KINDS`.
        ops: the types of the ops: source and destination of what crosses.
        elements: how many cross; None if that is not known.
        name: of the op.
        origin: file and line that made the op.
        ours: whether that is a line of this package.
    """

    kind: str
    ops: tuple[str, ...]
    elements: int | None
    name: str
    origin: str
    ours: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same in the same training unwatched."""
        return self.kind, self.ops, self.elements

    def __str__(self) -> str:
        size = (
            "" if self.kind in (CONTROL, NO_KERNEL, TWO_DEVICES, COMPILED) else f", {self.elements} elements"
        )
        return f"{self.kind}: {' -> '.join(self.ops)}{size} ({self.name}) at {self.origin}"


def added(watched: Sequence[Finding], unwatched: Sequence[Finding]) -> list[str]:
    """What was found in a watched training beyond the same one unwatched, in words; our own lines first."""
    more = Counter(one.key for one in watched) - Counter(one.key for one in unwatched)
    texts = []
    for one in sorted(watched, key=lambda one: not one.ours):
        if more[one.key] > 0:
            more[one.key] -= 1
            texts.append(str(one))
    return texts


@contextmanager
def executed() -> Iterator[list[Any]]:
    """Notes which traced functions eager code calls, in order, by whatever way it calls them."""
    calls: list[Any] = []
    original = atomic_function.AtomicFunction.call_flat

    def call_flat(self: Any, *args: Any) -> Any:
        if tf.executing_eagerly():
            calls.append(self)
        return original(self, *args)

    atomic_function.AtomicFunction.call_flat = call_flat
    try:
        yield calls
    finally:
        atomic_function.AtomicFunction.call_flat = original


def training(calls: Sequence[Any]) -> list[Any]:
    """Those of the functions called that differentiate and update, each once, in the order of their last calls."""
    found: dict[str, Any] = {}
    for function in calls:
        types = {op.type for graph in graphs(function.graph) for op in graph.get_operations()}
        if {"AssignSubVariableOp", "ReluGrad"} <= types:
            found.pop(function.name, None)
            found[function.name] = function
    return list(found.values())


def functions_of(op: tf.Operation) -> Iterator[tuple[str, Any]]:
    """The traced functions that an op calls, by the attribute that names them."""
    for name, value in op.node_def.attr.items():
        for function in [value.func] if value.HasField("func") else value.list.func:
            known = op.graph._get_function(function.name)
            if known is not None and getattr(known, "graph", None) is not None:
                yield name, known


def graphs(graph: Any) -> Iterator[Any]:
    """A function's graph, and those of all that it calls."""
    yield graph
    for op in graph.get_operations():
        for _, function in functions_of(op):
            yield from graphs(function.graph)


def compiled_by_xla(op: tf.Operation) -> bool:
    return any(flag(function.cached_definition.attr, XLA) for _, function in functions_of(op))


def flag(attributes: Any, name: str) -> bool:
    """A flag among attributes; asked for by `[]`, one that is not there would be put there."""
    return name in attributes and bool(attributes[name].b)


# -- the registry --------------------------------------------------------------------------------------------------
@functools.cache
def _registered(op: str) -> list[Any]:
    return list(kernels.get_registered_kernels_for_op(op).kernel)


def gpu_kernel(node: Any) -> Any | None:
    """The kernel that a GPU has for a node, with the names of its arguments in the host's memory, or None."""
    types = {}
    for name, value in node.attr.items():
        if value.WhichOneof("value") == "type":
            types[name] = {value.type}
        elif value.list.type:
            types[name] = set(value.list.type)
    for device in ("GPU", "DEFAULT"):
        for kernel in _registered(node.op):
            if kernel.device_type == device and all(
                types.get(one.name, set()) <= set(one.allowed_values.list.type)
                for one in kernel.constraint
                if one.allowed_values.list.type
            ):
                return kernel
    return None


def _names(node: Any, which: str) -> list[str]:
    """The name of each input or output tensor."""
    found: list[str] = []
    for one in getattr(op_def_registry.get(node.op), which):
        count = 1
        if one.number_attr:
            count = node.attr[one.number_attr].i
        elif one.type_list_attr:
            count = len(node.attr[one.type_list_attr].list.type)
        found += [one.name] * count
    return found


# -- the walk ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Place:
    """Where a tensor is, or, of a resource, where that is; by which op it was made; its elements."""

    where: str
    op: Any
    elements: int | None


def audit(function: Any, whole: int) -> list[Finding]:
    """Looks at all ops of a traced function that is called by eager code, and of those that it calls.

    Args:
        function: as `executed` notes it.
        whole: as many elements as this are a whole variable.
    """
    graph = function.graph
    captured = {id(inner): outer for outer, inner in graph.captures}
    places = []
    for tensor in graph.inputs:
        outer = captured.get(id(tensor))
        if tensor.dtype in (tf.resource, tf.variant):
            # An argument of this kind is an iterator, which is the host's.
            where = HOST if outer is None or outer.device.endswith("CPU:0") else DEVICE
        else:
            where = HOST if tensor.dtype in (tf.int32, tf.string) else DEVICE
        places.append(_Place(where, tensor.op, tensor.shape.num_elements()))
    walk = _Walk(whole)
    walk.function(graph, places, None)
    return walk.found


class _Walk:
    def __init__(self, whole: int) -> None:
        self.found: list[Finding] = []
        self._on_device = 0  # ops that were followed
        self._whole = whole

    def _add(self, kind: str, ops: Sequence[tf.Operation], elements: int | None = None) -> None:
        origins = [origin(op) for op in reversed(ops)]
        ours, at = next((one for one in origins if one[0]), origins[0])
        self.found.append(Finding(kind, tuple(op.type for op in ops), elements, ops[-1].name, at, ours))

    def function(self, graph: Any, given: Sequence[_Place], single: str | None) -> list[_Place]:
        """Follows each op; gives where the outputs are.

        Args:
            graph: of the function.
            given: where its inputs are.
            single: where all of it runs, if it is not placed op by op.
        """
        places = {id(tensor): place for tensor, place in zip(graph.inputs, given, strict=True)}
        where: dict[str, str] = {}
        for op in graph.get_operations():
            if op.type in ("Placeholder", "NoOp"):
                continue
            ins = [places.get(id(tensor), _Place(DEVICE, tensor.op, None)) for tensor in op.inputs]
            inner = dict(functions_of(op))
            followed = self._on_device
            if inner and compiled_by_xla(op):
                self._on_device += 1
                outs = [_Place(DEVICE, op, t.shape.num_elements()) for t in op.outputs]
            elif inner:
                outs = self._call(op, inner, ins, single)
            else:
                outs = self._op(op, ins, single)
            where[op.name] = DEVICE if self._on_device > followed else HOST
            if where[op.name] == HOST and op.type != "Const":
                for before in self._waits_for(op, where):
                    self._add(CONTROL, [before, op])
            for tensor, place in zip(op.outputs, outs, strict=True):
                places[id(tensor)] = place
        return [places.get(id(tensor), _Place(DEVICE, tensor.op, None)) for tensor in graph.outputs]

    def _call(
        self, op: tf.Operation, inner: dict[str, Any], ins: list[_Place], single: str | None
    ) -> list[_Place]:
        branches = [name for name in inner if name.endswith("_branch") or name == "branches"]
        given = ins[1:] if branches else ins
        if branches or "cond" in inner:
            lowered = flag(op.node_def.attr, "_lower_using_switch_merge")
            if not lowered and single is None:
                resources = [
                    one.where for one, t in zip(ins, op.inputs, strict=True) if t.dtype == tf.resource
                ]
                if len(set(resources)) > 1:
                    self._add(TWO_DEVICES, [op])
                single = HOST if op.device.endswith("CPU:0") or set(resources) == {HOST} else DEVICE
        if branches and ins[0].where == DEVICE and ins[0].op.type != "Const":
            self._cross(ins[0], op, HOST)  # what decides is read by the host
        found: list[_Place] = []
        for function in inner.values():
            passed = given
            if single is not None and branches:  # what a branch on one device takes is brought there first
                passed = [
                    self._brought(one, tensor, op, single)
                    for one, tensor in zip(given, op.inputs[1:], strict=True)
                ]
            outs = self.function(function.graph, passed, single)
            if len(outs) == len(op.outputs):
                found = outs
        if single is not None:
            found = [
                _Place(single if t.dtype != tf.int32 else HOST, op, t.shape.num_elements())
                for t in op.outputs
            ]
        return found or [_Place(DEVICE, op, t.shape.num_elements()) for t in op.outputs]

    def _brought(self, place: _Place, tensor: tf.Tensor, op: tf.Operation, single: str) -> _Place:
        if tensor.dtype in (tf.resource, tf.variant) or tensor.dtype == tf.int32:
            return place
        if place.where != single and place.op.type != "Const":
            self._cross(place, op, single, tensor)
        return _Place(single, place.op, place.elements)

    def _op(self, op: tf.Operation, ins: list[_Place], single: str | None) -> list[_Place]:
        node = op.node_def
        kernel = gpu_kernel(node)
        resources = [one.where for one, t in zip(ins, op.inputs, strict=True) if t.dtype == tf.resource]
        if single == DEVICE and kernel is None:
            self._add(NO_KERNEL, [op])
        at = single or (
            HOST if op.device.endswith("CPU:0") or kernel is None or HOST in resources else DEVICE
        )
        self._on_device += at == DEVICE
        if op.type == "FloorMod" and at == DEVICE and op.get_attr("T") == tf.int64:
            self._add(COMPILED, [op])
        host_args = set(kernel.host_memory_arg) if kernel is not None else set()
        for place, tensor, name in zip(ins, op.inputs, _names(node, "input_arg"), strict=True):
            wanted = HOST if at == HOST or name in host_args else DEVICE
            if (
                tensor.dtype not in (tf.resource, tf.variant)
                and place.op.type != "Const"
                and place.where != wanted
            ):
                self._cross(place, op, wanted, tensor)
        return [
            _Place(HOST if at == HOST or name in host_args else DEVICE, op, tensor.shape.num_elements())
            for tensor, name in zip(op.outputs, _names(node, "output_arg"), strict=True)
        ]

    def _cross(self, place: _Place, op: tf.Operation, wanted: str, tensor: tf.Tensor | None = None) -> None:
        elements = (
            place.elements if tensor is None or place.elements is not None else tensor.shape.num_elements()
        )
        if wanted == HOST:
            self._add(TO_HOST, [place.op, op], elements)
        if elements is None or elements >= self._whole:
            self._add(WHOLE, [place.op, op], elements)

    def _waits_for(self, op: tf.Operation, where: dict[str, str]) -> Iterator[tf.Operation]:
        for before in op.control_inputs:
            if before.type == "NoOp":
                yield from self._waits_for(before, where)
            elif where.get(before.name) == DEVICE and before.type != "Const":
                yield before


def origin(op: tf.Operation) -> tuple[bool, str]:
    """Whether an op was made by a line of this package, and which line outside of TensorFlow it was.

    Of this package's lines the last two are given: one may be a helper that many call.
    """
    lines: list[str] = []
    for frame in reversed(list(op.traceback or ())):
        path = Path(frame.filename)
        if PACKAGE in path.parents:
            lines.append(f"{path.relative_to(PACKAGE.parent)}:{frame.lineno}")
        elif TENSORFLOW not in path.parents:
            lines = lines or [f"{path}:{frame.lineno}"]
            return lines[0].startswith(PACKAGE.name), " in ".join(lines[:2])
    return bool(lines), " in ".join(lines[:2]) or "a line that is not known"
