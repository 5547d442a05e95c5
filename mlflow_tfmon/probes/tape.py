"""The tape probe: keeps what `tf.GradientTape.gradient` differentiates and gives, for the row of its step."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.internals import internal
from mlflow_tfmon.probes import graph, origin, replicas
from mlflow_tfmon.stream.ring import lasting_variable

# One slot a set of variables and replica. A variable, not a tensor, since tape and optimizer may be traced into
# different functions (or one of them run eagerly), where a tensor of the one does not exist in the other.
_slots: dict[frozenset[str], dict[tuple[int, tuple[str, ...]], origin.Slot]] = {}  # the last used come last
_UNSCALED, _PARTS = "_mlflow_tfmon_unscaled", "_mlflow_tfmon_parts"
_eager = threading.local()  # `calls`: those of this thread's eager code since the last step


def watch_gradient(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `tf.GradientTape.gradient`."""

    def gradient(
        self: Any, target: Any, sources: Any, output_gradients: Any = None, *args: Any, **how: Any
    ) -> Any:
        result = original(self, target, sources, output_gradients, *args, **how)
        with contained("the tape probe", "the loss of each step is not recorded"):
            # A gradient taken while another tape looks on is a part of what that will differentiate (MAML).
            looks_on = internal(
                "tensorflow.python.eager.record.could_possibly_record",
                bool,
                "a loss within another loss (MAML) is taken for the step's",
            )
            nested = not self._recording and looks_on()
            # With output_gradients the target may be anything, such as the activations between two parts of a model.
            _note(target if output_gradients is None else None, sources, result, nested)
        return result

    return gradient


def watch_scaling(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer.scale_loss`: remembers the loss of which the scaled one was made."""

    def scale_loss(self: Any, loss: Any) -> Any:
        scaled = original(self, loss)
        with contained("the tape probe", "the loss of each step is the scaled one"):
            if scaled is not loss:
                setattr(scaled, _UNSCALED, getattr(loss, _UNSCALED, loss))
        return scaled

    return scale_loss


def name_parts(loss: Any, parts: dict[str, list[Any]]) -> None:
    """Remembers what a loss is made of: by name, tensors that add up to the part."""
    setattr(loss, _PARTS, parts)


def _note(target: Any, sources: Any, result: Any, nested: bool) -> None:
    if not graph.can_record() or graph.in_pfor():
        return
    # Gradients with respect to anything but variables (a gradient penalty, a saliency map) are no training.
    pairs = [
        (v, g)
        for v, g in zip(tf.nest.flatten(sources), tf.nest.flatten(result), strict=True)
        if isinstance(graph.raw(v), tf.Variable)
    ]
    if not pairs:
        return
    given = {graph.key(v): g for v, g in pairs if g is not None}
    # What is minimized is the sum of all that was given as target.
    targets = [t for t in tf.nest.flatten(target) if t is not None]
    losses = [getattr(t, _UNSCALED, t) for t in targets]
    parts: dict[str, list[Any]] = getattr(losses[0], _PARTS, {}) if len(losses) == 1 else {}
    reading, slot = None, None
    if losses:
        first = 1.0 if replicas.index() == 0 else 0.0  # the slots of replicas are added up
        reading = tf.stack([_sum(losses), first, *(_sum(some) for some in parts.values())])
        if not nested:
            slot = _slot([v for v, _ in pairs], tuple(parts))
            graph.keep_alive(slot.values)
            slot.values.assign_add(reading)
    scaled = any(hasattr(t, _UNSCALED) for t in targets)
    call = origin.Call(targets, scaled, reading, tuple(parts), slot, given)
    function = graph.tracing()
    if function is not None:
        _of(function).append(call)
        return
    earlier = [c for c in _calls() if c.gradients.keys() & given.keys()]
    call.alone = not earlier
    _eager.calls = [c for c in _calls() if c not in earlier] + [call]


def _sum(tensors: list[Any]) -> tf.Tensor:
    sums = [tf.reduce_sum(tf.cast(t, tf.float64)) for t in tensors]
    return sums[0] if len(sums) == 1 else tf.add_n(sums)


def _slot(variables: list[Any], parts: tuple[str, ...]) -> origin.Slot:
    keys, place = frozenset(graph.key(v) for v in variables), (replicas.index(), parts)
    if keys not in _slots:
        _slots[keys] = {}
        weakref.finalize(graph.raw(variables[0]), _slots.pop, keys, None)
    slots = _slots[keys]
    # A model that is compiled anew may have other losses, and later these again.
    slot = slots.pop(place, None) or origin.Slot(lasting_variable(2 + len(parts)), parts)
    slots[place] = slot
    return slot


def _of(function: Any) -> list[origin.Call]:
    """The calls that were traced into a function."""
    calls: list[origin.Call] = graph.notes(function).setdefault("calls", [])
    return calls


def _calls() -> list[origin.Call]:
    """The calls whose tensors are in reach."""
    function = graph.tracing()
    if function is None:
        return getattr(_eager, "calls", [])
    return [call for outer in graph.enclosing(function) for call in _of(outer)]


class Step(NamedTuple):
    """What tapes tell of the step that an optimizer makes.

    Attributes:
        reading: tensor (loss, 1, what it is made of), or None if that must be read from the slots.
        slots: for each set of variables, those of the replicas; to be emptied, for what comes next is the next step's.
        before: the gradients before the loop changed them (clipping by hand), or None if it did not.
        parts: names of what the loss is made of.
    """

    reading: tf.Tensor | None
    slots: list[list[tf.Variable]]
    before: list[Any] | None
    parts: tuple[str, ...] = ()


def step_of(gradients: Sequence[Any], variables: Sequence[Any]) -> Step:
    """What tapes tell of the step whose gradients an optimizer has been given."""
    keys = [graph.key(v) for v in variables]
    found = origin.trace(gradients, keys, _calls()) if replicas.count() == 1 else None
    if graph.tracing() is None:
        _eager.calls = [call for call in _calls() if not call.gradients.keys() & set(keys)]
    if found is None:
        # Micro-batches whose gradients were added up in variables, say: the mean of all losses since the last step.
        groups = _slots_of(frozenset(keys))
        if groups and replicas.count() == 1:
            say_once(
                "gradients not followed",
                "mlflow_tfmon: a loop's gradients can't be followed from tape to optimizer (these are in different "
                "functions, or a variable is between them): its batch/grad_norm is that of the gradients which the "
                "optimizer gets, after any clipping by hand.",
                logging.INFO,
            )
        parts = groups[0][0].parts if len(groups) == 1 else ()
        return Step(None, [[slot.values for slot in group] for group in groups], None, parts)
    slots = {id(call.slot): [call.slot.values] for _, call in found.calls if call.slot is not None}
    losses = [(factor, call.reading) for factor, call in found.calls if call.reading is not None]
    if not losses:
        return Step(None, [], found.before)
    names = {call.parts for _, call in found.calls if call.reading is not None}
    parts = names.pop() if len(names) == 1 else ()
    reading = losses[0][1]
    if losses[0][0] != 1.0 or len(losses) > 1:
        total = tf.add_n([factor * reading[: 2 + len(parts)] for factor, reading in losses])
        reading = tf.concat([total[:1], [1.0], total[2:]], axis=0)
    return Step(reading, list(slots.values()), found.before, parts)


def read(slots: Sequence[Sequence[tf.Variable]]) -> tf.Tensor:
    """(sum of losses, number of losses, sums of what they are made of), from the slots of a step.

    Where each part of the variables has a loss of its own, that is the sum of their means, and of no parts.

    What is minimized over several replicas is the sum of what each of their tapes differentiates.
    """
    readings = []
    for group in slots:
        values = []
        for slot in group:
            with replicas.at(slot):
                values.append(slot.read_value())
        readings.append(values[0] if len(values) == 1 else tf.add_n(values))
    if len(readings) == 1:
        return readings[0]
    means = [tf.math.divide_no_nan(reading[0], reading[1]) for reading in readings]
    known = tf.reduce_max(tf.stack([reading[1] for reading in readings]))
    return tf.stack([tf.add_n(means), tf.minimum(known, 1.0)])


def empty(slots: Sequence[Sequence[tf.Variable]]) -> None:
    """A step without a tape has no loss: that of an earlier one is not its."""
    for group in slots:
        for slot in group:
            with replicas.at(slot):
                slot.assign(tf.zeros_like(slot))


def leave_out(variables: Sequence[Any]) -> None:
    """On one of several replicas: a step that was not made has no row, and its loss is not the next one's."""
    keys = frozenset(graph.key(v) for v in variables)
    for slots in [slots for known, slots in _slots.items() if known & keys]:
        empty([[slot.values for place, slot in slots.items() if place[0] == replicas.index()]])


def _slots_of(keys: frozenset[str]) -> list[list[origin.Slot]]:
    """The fewest slots of losses whose gradients go to these variables."""
    chosen, missing, left = [], keys, dict(_slots)
    while missing and left:
        best = max(left, key=lambda slot: (len(slot & missing), -len(slot)))
        if not best & missing:
            break
        slots = list(left.pop(best).values())
        chosen.append([slot for slot in slots if slot.parts == slots[-1].parts])
        missing -= best
    return chosen
