"""Lineage: of which calls of tapes the tensors of eager code were made, op by op, until an optimizer is given them.

TensorFlow tells a thread of the ops that its eager code runs. It is asked to only from what a tape gives to the update:
code that passes gradients on as they are runs none in between. What a function does within is not looked into: all
that it gives is made of all that it got.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.internals import internal
from mlflow_tfmon.probes.origin import Call, values

Calls = frozenset[int]
_NONE: Calls = frozenset()
_NOT_RECORDED = "a gradient that eager code changes has a loss only if its values tell"
_MOST_CALLS = (
    64  # that a tensor is known to be made of: a sum that goes on for ever (momentum) is of the last ones
)
_MOST_OPS = 20_000  # that are followed after a tape was asked last; by then no update is to be expected


class _Kept:
    """A call, without keeping what was differentiated: that may be large."""

    def __init__(self, call: Call) -> None:
        self._call = weakref.ref(call)
        self._without = dataclasses.replace(call, targets=[], variables=[], gradients={})
        self._targets = [weakref.ref(target) for target in call.targets]

    @property
    def call(self) -> Call:
        """The call itself as long as somebody else keeps it."""
        return self._call() or self._without

    def is_of(self, targets: Sequence[Any]) -> bool:
        """Whether the call is of these."""
        same = zip(self._targets, targets, strict=False)
        return len(targets) == len(self._targets) and all(one() is other for one, other in same)


class Lineage(threading.local):
    """What the eager code of a thread has made of what tapes gave."""

    def __init__(self) -> None:
        self._calls: dict[int, _Kept] = {}  # the last ones, by their numbers
        self._last = 0
        self._made: dict[
            int, tuple[weakref.ref[Any], Calls]
        ] = {}  # by the ids of tensors and variables' handles
        self._stepped: dict[
            str, int
        ] = {}  # the last call before a variable's last step, by the variable's key
        self._since = 0  # the last call before the last step of any variables
        self._ops = 0
        self._on = self._waits = False

    def gave(self, call: Call) -> None:
        """A tape gave gradients; from here on ops are followed."""
        last = self._calls.get(self._last)
        if last is None or not last.is_of(call.targets):
            self._last += 1  # else it is another part of what a persistent tape gives
            self._calls[self._last] = _Kept(call)
            self._calls.pop(self._last - _MOST_CALLS, None)
        for gradient in call.gradients.values():
            for tensor in _tensors(gradient):
                self._mark(tensor, frozenset({self._last}))
        self._ops = 0
        self._follow(True)

    def of(self, gradients: Iterable[Any], keys: Iterable[str]) -> list[Call] | None:
        """The calls since the last step of some variables that gradients were made of, or else those before.

        None if they are made of no call that is known.
        """
        found = _NONE.union(*(self._sources(tensor) for one in gradients for tensor in _tensors(one)))
        since = max((self._stepped.get(key, 0) for key in keys), default=0)
        recent = {number for number in found if number > since} or found
        return [self._calls[number].call for number in sorted(recent) if number in self._calls] or None

    def stepped(self, keys: Iterable[str], waiting: Sequence[Call]) -> None:
        """An optimizer has been given gradients of some variables; what it does is not followed.

        Args:
            keys: of the variables.
            waiting: calls of which it is open whose step they are.
        """
        if len(self._stepped) > 10_000:
            self._stepped.clear()
        self._stepped |= dict.fromkeys(keys, self._last)
        # Two tapes before two updates; but one that was only looked at is not waited for any longer.
        since, self._since = self._since, self._last
        late = [one.call for number, one in self._calls.items() if number > since]
        self._waits = any(call is one for call in late for one in waiting)
        self._follow(False)

    def resume(self) -> None:
        """The update has been made."""
        self._follow(self._on or self._waits)
        self._waits = False

    def _follow(self, on: bool) -> None:
        if on == self._on:
            return
        if on:
            internal("tensorflow.python.framework.op_callbacks.add_op_callback", _nothing, _NOT_RECORDED)(
                self._ran
            )
        else:
            internal("tensorflow.python.framework.op_callbacks.remove_op_callback", _nothing, _NOT_RECORDED)(
                self._ran
            )
        self._on = on

    def _ran(
        self, op: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None, **_: Any
    ) -> None:
        """An op has run, or was made while a function is traced."""
        with contained("following what is made of gradients", _NOT_RECORDED):
            if graph is not None or not tf.executing_eagerly() or not isinstance(outputs, (list, tuple)):
                return
            self._ops += 1
            if self._ops > _MOST_OPS:
                self._follow(False)
                return
            found = _NONE
            for tensor in inputs:
                if id(tensor) in self._made:
                    found |= self._sources(tensor)
            kind = op.decode() if isinstance(op, bytes) else op
            if kind == "AssignVariableOp":
                found = self._sources(inputs[1]) if len(inputs) > 1 else _NONE
                self._mark(inputs[0], found)
            elif found:
                found = frozenset(sorted(found)[-_MOST_CALLS:])
                for tensor in outputs:
                    self._mark(tensor, found)
                if kind.startswith(_WRITES):
                    self._mark(inputs[0], self._sources(inputs[0]) | found)

    def _sources(self, tensor: Any) -> Calls:
        alive, calls = self._made.get(id(tensor), (None, _NONE))
        return calls if alive is not None and alive() is tensor else _NONE

    def _mark(self, tensor: Any, calls: Calls) -> None:
        number, made = id(tensor), self._made
        if not calls:
            made.pop(number, None)
            return

        def forget(gone: Any) -> None:
            if number in made and made[number][0] is gone:
                del made[number]

        made[number] = weakref.ref(tensor, forget), calls


def _nothing(_: Any) -> None:
    """In place of what a version of TensorFlow lacks."""


_WRITES = ("AssignAdd", "AssignSub", "ResourceScatter")  # ops that add to what a variable holds


def _tensors(gradient: Any) -> list[Any]:
    if isinstance(gradient, tf.IndexedSlices):
        return [gradient.values]
    return [] if gradient is None else [values(gradient)]
