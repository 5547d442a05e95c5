"""The tape probe: keeps what `tf.GradientTape.gradient` differentiates and gives, for the row of its step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.eager import record

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph, origin, replicas
from mlflow_tfmon.stream.ring import lasting_variable

# One slot a set of variables and replica. A variable, not a tensor, since tape and optimizer may be traced into
# different functions (or one of them run eagerly), where a tensor of the one does not exist in the other.
# Each holds (sum of losses, number of losses) since the last step; the number is 0 in replicas but the first.
_slots: dict[frozenset[str], dict[int, tf.Variable]] = {}
_UNSCALED = "_mlflow_tfmon_unscaled"
_eager = threading.local()  # `calls`: those of this thread's eager code since the last step


def watch_gradient(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `tf.GradientTape.gradient`."""

    def gradient(
        self: Any, target: Any, sources: Any, output_gradients: Any = None, *args: Any, **how: Any
    ) -> Any:
        result = original(self, target, sources, output_gradients, *args, **how)
        with contained("the tape probe", "the loss of each step is not recorded"):
            # A gradient taken while another tape looks on is a part of what that will differentiate (MAML).
            nested = not self._recording and record.could_possibly_record()
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
    reading, slot = None, None
    if targets:
        losses = [tf.reduce_sum(tf.cast(getattr(t, _UNSCALED, t), tf.float64)) for t in targets]
        first = 1.0 if replicas.index() == 0 else 0.0  # the slots of replicas are added up
        reading = tf.stack([losses[0] if len(losses) == 1 else tf.add_n(losses), first])
        if not nested:
            slot = _slot([v for v, _ in pairs])
            graph.keep_alive(slot)
            slot.assign_add(reading)
    scaled = any(hasattr(t, _UNSCALED) for t in targets)
    call = origin.Call(targets, scaled, reading, slot, given)
    function = graph.tracing()
    if function is not None:
        _of(function).append(call)
        return
    earlier = [c for c in _calls() if c.gradients.keys() & given.keys()]
    call.alone = not earlier
    _eager.calls = [c for c in _calls() if c not in earlier] + [call]


def _slot(variables: list[Any]) -> tf.Variable:
    keys, replica = frozenset(graph.key(v) for v in variables), replicas.index()
    if keys not in _slots:
        _slots[keys] = {}
        weakref.finalize(graph.raw(variables[0]), _slots.pop, keys, None)
    if replica not in _slots[keys]:
        _slots[keys][replica] = lasting_variable(2)
    return _slots[keys][replica]


def _of(function: Any) -> list[origin.Call]:
    """The calls that were traced into a function."""
    if not hasattr(function, "_mlflow_tfmon_calls"):
        function._mlflow_tfmon_calls = []
    calls: list[origin.Call] = function._mlflow_tfmon_calls
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
        reading: tensor (loss, 1), or None if that must be read from the slots.
        slots: for each set of variables, those of the replicas; to be emptied, for what comes next is the next step's.
        before: the gradients before the loop changed them (clipping by hand), or None if it did not.
    """

    reading: tf.Tensor | None
    slots: list[list[tf.Variable]]
    before: list[Any] | None


def step_of(gradients: Sequence[Any], variables: Sequence[Any]) -> Step:
    """What tapes tell of the step whose gradients an optimizer has been given."""
    keys = [graph.key(v) for v in variables]
    found = origin.trace(gradients, keys, _calls()) if replicas.count() == 1 else None
    if graph.tracing() is None:
        _eager.calls = [call for call in _calls() if not call.gradients.keys() & set(keys)]
    if found is None:
        # Micro-batches whose gradients were added up in variables, say: the mean of all losses since the last step.
        return Step(None, _slots_of(frozenset(keys)), None)
    slots = [[slot] for slot in {id(c.slot): c.slot for _, c in found.calls if c.slot is not None}.values()]
    losses = [(factor, call.reading) for factor, call in found.calls if call.reading is not None]
    if not losses:
        return Step(None, [], found.before)
    if losses[0][0] == 1.0 and len(losses) == 1:
        return Step(losses[0][1], slots, found.before)
    total = tf.add_n([factor * reading[0] for factor, reading in losses])
    return Step(tf.stack([total, 1.0]), slots, found.before)


def read(slots: Sequence[Sequence[tf.Variable]]) -> tf.Tensor:
    """(sum of losses, number of losses): where each part of the variables has a loss of its own, of their sum.

    What is minimized over several replicas is the sum of what each of their tapes differentiates.
    """
    readings = []
    for group in slots:
        parts = []
        for slot in group:
            with replicas.at(slot):
                parts.append(slot.read_value())
        readings.append(parts[0] if len(parts) == 1 else tf.add_n(parts))
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
                slot.assign([0.0, 0.0])


def _slots_of(keys: frozenset[str]) -> list[list[tf.Variable]]:
    """The fewest slots of losses whose gradients go to these variables."""
    chosen, missing, left = [], keys, dict(_slots)
    while missing and left:
        best = max(left, key=lambda slot: (len(slot & missing), -len(slot)))
        if not best & missing:
            break
        chosen.append(list(left.pop(best).values()))
        missing -= best
    return chosen
