"""The tape probe: keeps what `tf.GradientTape.gradient` differentiates and gives, for the row of its step."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.internals import internal
from mlflow_tfmon.probes import graph, ledger, objective, origin, replicas
from mlflow_tfmon.probes.edges import edges
from mlflow_tfmon.probes.lineage import Lineage
from mlflow_tfmon.stream.ring import lasting_variable

# Over several replicas: one slot a set of variables and replica, in which the losses of all are added up. A variable,
# not a tensor, since replicas are traced into functions of their own.
_slots: dict[frozenset[str], dict[tuple[int, tuple[str, ...]], Slot]] = {}  # the last used come last
_UNSCALED, _PARTS = "_mlflow_tfmon_unscaled", "_mlflow_tfmon_parts"
_seen: dict[str, str] = {}  # names of the variables for which tapes gave gradients of a loss, by their keys
_applied: set[str] = set()  # keys of those whose gradients an optimizer was given
_passed: set[str] = set()  # of those whose gradients go from eager code into a function that applies them
_sites: dict[Any, int] = {}
_numbers = itertools.count(1)
_FRAMES = 6  # of the stack that tell one place of a program from another


@dataclass(frozen=True)
class Slot:
    """Where the losses of one set of variables wait for the row of their step.

    Attributes:
        values: the sum of losses since the last step, their number (0 in replicas but the first), and the sums of what
            they are made of.
        parts: names of what they are made of.
    """

    values: tf.Variable
    parts: tuple[str, ...]


class _Eager(threading.local):
    """What tapes gave in the eager code of a thread.

    Attributes:
        given: the tensors that are still alive, by their ids: what gave them, and the key of the variable.
        waiting: the last calls, of which it is not known yet whose step they are; no two of the same variables.
        written: keys of variables of which something was written down since a step was known without.
    """

    def __init__(self) -> None:
        self.given: dict[int, tuple[weakref.ref[Any], origin.Call, str]] = {}
        self.waiting: list[origin.Call] = []
        self.written: set[str] = set()


_eager = _Eager()
_lineage = Lineage()


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
            _note(self, target if output_gradients is None else None, sources, result, nested)
        return result

    return gradient


def watch_other_optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer.apply_gradients` of TensorFlow 1: what it trains is not watched, as is said in the end."""

    def apply_gradients(self: Any, grads_and_vars: Any, *args: Any, **how: Any) -> Any:
        pairs = list(grads_and_vars)
        with contained("noting an optimizer of TensorFlow 1", "nothing is said of its training"):
            _seen.update((graph.key(v), graph.name(v)) for _, v in pairs)
        return original(self, pairs, *args, **how)

    return apply_gradients


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


def _note(tape: Any, target: Any, sources: Any, result: Any, nested: bool) -> None:
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
    pairs_given = [(v, g) for v, g in pairs if g is not None]
    # What is minimized is the sum of all that was given as target.
    targets = [t for t in tf.nest.flatten(target) if t is not None]
    losses = [getattr(t, _UNSCALED, t) for t in targets]
    parts: dict[str, list[Any]] = getattr(losses[0], _PARTS, {}) if len(losses) == 1 else {}
    reading = None
    if losses and not nested:
        with contained("examining the loss", "some problems may not be found"):
            own = objective.note(losses, pairs)
            parts = parts or own  # Keras knows the names of its own
    if losses:
        first = 1.0 if replicas.index() == 0 else 0.0  # the slots of replicas are added up
        reading = tf.stack([_sum(losses), first, *(_sum(some) for some in parts.values())])
        _seen.update((graph.key(v), graph.name(v)) for v, _ in pairs)
        if replicas.count() > 1 and not nested:
            slot = _slot([v for v, _ in pairs], tuple(parts))
            graph.keep_alive(slot.values)
            slot.values.assign_add(reading)
    call = origin.Call(
        targets,
        any(hasattr(t, _UNSCALED) for t in targets),
        reading,
        tuple(parts),
        [v for v, _ in pairs_given],
        {graph.key(v): g for v, g in pairs_given},
        told=reading is None or nested or not pairs_given or replicas.count() > 1,
    )
    function = graph.tracing()
    if function is not None:
        call.site = next(_numbers)
        _of(function).append(call)
    else:
        call.site = _site(tape)
        _remember(call)


def _site(tape: Any) -> int:
    """A mark of the place in the user's program where a tape was asked, and for the how many-th time."""
    tape._mlflow_tfmon_asked = asked = getattr(tape, "_mlflow_tfmon_asked", 0) + 1
    frame: Any = sys._getframe(3)
    place: list[Any] = []
    while frame is not None and len(place) < _FRAMES:
        place.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return _sites.setdefault((asked, *place), len(_sites) + ledger.EAGER)


def _remember(call: origin.Call) -> None:
    """Keeps what a tape gave in eager code until it is known whose step it is."""
    for key, gradient in call.gradients.items():
        tensor = origin.values(gradient)
        number = id(tensor)
        forget = functools.partial(_forget, _eager.given, number)
        _eager.given[number] = weakref.ref(tensor, forget), call, key
    for earlier in [one for one in _eager.waiting if one.gradients.keys() & call.gradients.keys()]:
        _write([earlier])
    _eager.waiting.append(call)
    if not call.told:
        _lineage.gave(call)
    if _passed & call.gradients.keys():
        _write([call])


def _forget(given: dict[int, Any], number: int, gone: Any) -> None:
    if number in given and given[number][0] is gone:
        del given[number]


def _write(calls: list[origin.Call]) -> None:
    """Writes down what the values of gradients are: nothing else will tell whose step they are."""
    for call in calls:
        if not call.told and call.reading is not None:
            call.told = True
            _eager.written |= call.gradients.keys()
            ledger.of(call.variables, call.gradients).write(call.site, call.reading[0], call.gradients)
    _drop(calls)


def _drop(calls: list[origin.Call]) -> None:
    """Lets go of the gradients of eager calls; they are known by their ids as long as they live."""
    for call in [one for one in _eager.waiting if any(one is call for call in calls)]:
        call.gradients = {}
        _eager.waiting.remove(call)


def watch_end(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the end of the tracing of a function: what is not known to be a step's is written down."""

    def __exit__(self: Any, kind: Any, *how: Any) -> Any:
        function = graph.tracing()
        if kind is None and function is not None and "calls" in graph.notes(function):
            with contained("the tape probe", "the loss of each step may not be recorded"):
                if graph.can_record():
                    _write(_merged(_of(function)))
        return original(self, kind, *how)

    return __exit__


def _merged(calls: list[origin.Call]) -> list[origin.Call]:
    """Calls that gave parts of one gradient (of a persistent tape) as one."""
    whole: dict[Any, origin.Call] = {}
    for call in [one for one in calls if not one.told]:
        same = tuple(id(target) for target in call.targets)
        known = whole.setdefault(same, call)
        if known is not call and not known.gradients.keys() & call.gradients.keys():
            call.told = True
            whole[same] = dataclasses.replace(
                known,
                variables=known.variables + call.variables,
                gradients=known.gradients | call.gradients,
                told=False,
            )
            known.told = True
    return list(whole.values())


def _sum(tensors: list[Any]) -> tf.Tensor:
    wide = [tf.cast(t, tf.float64) for t in tensors]
    sums = [t if t.shape.rank == 0 else tf.reduce_sum(t) for t in wide]
    return sums[0] if len(sums) == 1 else tf.add_n(sums)


def _slot(variables: list[Any], parts: tuple[str, ...]) -> Slot:
    keys, place = frozenset(graph.key(v) for v in variables), (replicas.index(), parts)
    if keys not in _slots:
        _slots[keys] = {}
        weakref.finalize(graph.raw(variables[0]), _slots.pop, keys, None)
    slots = _slots[keys]
    # A model that is compiled anew may have other losses, and later these again.
    slot = slots.pop(place, None) or Slot(lasting_variable(2 + len(parts)), parts)
    slots[place] = slot
    return slot


def _of(function: Any) -> list[origin.Call]:
    """The calls that were traced into a function."""
    calls: list[origin.Call] = graph.notes(function).setdefault("calls", [])
    return calls


def _given() -> dict[int, tuple[origin.Call, str]]:
    """What tapes gave, as far as its tensors are in reach: by their ids, the call and the key of the variable."""
    function = graph.tracing()
    if function is None:
        return {
            number: (call, key) for number, (alive, call, key) in _eager.given.items() if alive() is not None
        }
    return {
        id(origin.values(g)): (call, key)
        for outer in graph.enclosing(function)
        for call in _of(outer)
        for key, g in call.gradients.items()
    }


def not_applied() -> list[str]:
    """Names of the variables for which tapes gave gradients of a loss that no watched optimizer was given."""
    return [name for key, name in _seen.items() if key not in _applied]


def applied(variables: Sequence[Any] | None = None) -> bool:
    """Whether a watched optimizer was given gradients of any of these variables, or of any at all."""
    return bool(_applied if variables is None else _applied & {graph.key(v) for v in variables})


class Step(NamedTuple):
    """What tapes tell of the step that an optimizer makes.

    Attributes:
        reading: tensor (loss, 1, what it is made of); or a mark (`ledger`) for which the host puts the loss; or None,
            if it must be read from the slots or is not known.
        slots: over several replicas, for each set of variables: those of each replica; to be emptied, for what comes
            next is the next step's.
        before: the gradients before the loop changed them (clipping by hand), or None if it did not.
        parts: names of what the loss is made of.
    """

    reading: tf.Tensor | None
    slots: list[list[tf.Variable]]
    before: list[Any] | None
    parts: tuple[str, ...] = ()


def step_of(gradients: Sequence[Any], variables: Sequence[Any]) -> Step:
    """What tapes tell of the step whose gradients an optimizer has been given."""
    keys = frozenset(graph.key(v) for v in variables)
    _applied.update(keys)
    if replicas.count() > 1:  # the losses of all replicas, since the last step
        groups = _slots_of(keys)
        parts = groups[0][0].parts if len(groups) == 1 else ()
        return Step(None, [[slot.values for slot in group] for group in groups], None, parts)
    found = origin.trace(gradients, variables, _given())
    if found is None and graph.tracing() is None:
        calls = _lineage.of(gradients, keys)
        if calls is not None and len(calls) == 1:
            found = origin.Origin([(1.0, calls[0])], None)
            _say_not_followed()
    if found is None:
        asked = _asked(gradients, variables) if keys & _seen.keys() else None
        _lineage.stepped(keys, _eager.waiting)
        return Step(asked, [], None)
    for _, call in found.calls:
        call.told = True
    if graph.tracing() is None:
        _drop([call for _, call in found.calls])
        if _eager.written & keys:  # what was written before is of no step to come
            _eager.written -= keys
            ledger.of(variables, {}).write(ledger.SETTLED, tf.constant(0.0, tf.float64), {})
        _lineage.stepped(keys, _eager.waiting)
    losses = [(factor, call.reading) for factor, call in found.calls if call.reading is not None]
    if not losses:
        return Step(None, [], found.before)
    names = {call.parts for _, call in found.calls if call.reading is not None}
    parts = names.pop() if len(names) == 1 else ()
    reading = losses[0][1]
    if losses[0][0] != 1.0 or len(losses) > 1:
        total = tf.add_n([factor * reading[: 2 + len(parts)] for factor, reading in losses])
        reading = tf.concat([total[:1], [1.0], total[2:]], axis=0)
    return Step(reading, [], found.before, parts)


def resume() -> None:
    """An optimizer has made its update."""
    _lineage.resume()


def _say_not_followed() -> None:
    say_once(
        "gradients not followed",
        "mlflow_tfmon: a loop's gradients can't be followed from tape to optimizer (these are in different functions, "
        "or something that is not known lies between): its batch/grad_norm is that of the gradients which the "
        "optimizer gets, after any clipping by hand.",
        logging.INFO,
    )


def _asked(gradients: Sequence[Any], variables: Sequence[Any]) -> tf.Tensor:
    """What stands for the loss of a step in its row where only the values can tell it: a row of the ledger."""
    _say_not_followed()
    keys, function = frozenset(graph.key(v) for v in variables), graph.tracing()
    given = {graph.key(v): g for v, g in zip(variables, gradients, strict=True)}
    book = ledger.of(variables, given)
    if function is not None:
        made_of = edges(gradients, variables, _given())
        with tf.init_scope():  # at the first call, what was given to the function is waiting
            if tf.executing_eagerly():
                _passed.update(keys)
                _write([call for call in _eager.waiting if call.gradients.keys() & keys])
        for outer in list(graph.enclosing(function))[::-1]:
            with outer.as_default():  # whether or not the branch is taken that the optimizer is in
                _write(_merged([call for call in _of(outer) if call.gradients.keys() & keys]))
        for one in made_of:
            book.write(ledger.EDGE, tf.constant(0.0, tf.float64), one)
    else:
        _write([call for call in _eager.waiting if call.gradients.keys() & keys])
    number = book.write(ledger.APPLIED, tf.constant(0.0, tf.float64), given)
    return tf.stack([number, tf.constant(ledger.ASKED, tf.float64)])


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


def _slots_of(keys: frozenset[str]) -> list[list[Slot]]:
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
