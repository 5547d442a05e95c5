"""What measures the steps of an optimizer: takes what is known before an update and after it, and writes the row."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.errors import say_once
from mlflow_tfmon.probes import batches, graph, histograms, inputs, quantities, replicas, tape
from mlflow_tfmon.probes.apart import apart
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.stream.ring import APPLIED, INPUT, TIME, Ring, RingLayout, lasting_variable

_probes: weakref.WeakKeyDictionary[Any, list[StepProbe]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # other threads look at it while this one trains
_FEW = 10**6  # weights of an optimizer that may be one of many
OnRing = Callable[[Ring, Any], None]


class Before(NamedTuple):
    """What is known before an update: the number of its step, whether that is deep, a copy of the weights if so.

    And when the gradients were ready, where those of several workers are summed.
    """

    step: tf.Tensor
    deep: tf.Tensor
    weights: tf.Tensor
    ready: tf.Tensor


class StepProbe:
    """Measures the steps of one optimizer over one set of variables."""

    def __init__(self, layout: RingLayout, variables: Sequence[tf.Variable]) -> None:
        self.ring = Ring(layout, replicas.user_thread())
        self._variables = self.ring.weights = list(variables)
        # Where an update is made in a branch of a cond, it leaves here that it was made, and the clipped gradients'
        # half squares: no tensor of the branch exists outside of it.
        clipped = len(variables) * ("grad_norm_clipped" in layout.norms)
        self.made = lasting_variable(1 + clipped) if APPLIED in layout.scalars else None
        # Eager code pays for each op: there, one call of a traced function does the lot.
        state = [*self.ring.state, *([] if self.made is None else [self.made]), *variables]
        kind = None
        if replicas.count() == 1 and sum(quantities.sizes(variables)) <= _FEW:
            shapes = tuple((v.dtype, tuple(v.shape), v.device) for v in variables)
            kind = (shapes, layout.norms, layout.scalars, layout.parts, graph.has_clock())
        self._before_traced = graph.Traced(self._before, state, kind and ("before", *kind))
        self._record_traced = graph.Traced(self._record, state, kind and ("record", *kind))

    def before(self, gradients: Sequence[Any], updates: Any = None) -> Before:
        """Before the update: which step it is, at a deep one a copy of the weights; when the gradients are ready.

        Args:
            gradients: that will be applied.
            updates: whether this step is one that updates the weights; None if each step is.
        """
        graph.keep_alive((self.ring, self.made))
        self.ring.traces += not tf.executing_eagerly()
        if not tf.executing_eagerly():
            self.ring.graph = graph.whole()
        before = self._before_traced(updates) if tf.executing_eagerly() else self._before(updates)
        if self.ring.layout.workers > 1 and graph.has_clock():
            with graph.after(tf.nest.flatten(gradients, expand_composites=True)):
                before = before._replace(ready=tf.timestamp())
        return before

    def after(
        self,
        before: Before,
        made_of: tape.Step,
        kinds: dict[str, Any],
        learning_rate: Any,
        scalars: list[Any],
    ) -> None:
        """After the update: the row.

        Args:
            before: what `before` gave.
            made_of: what tapes tell of the step.
            kinds: gradients by the name of their norm; those that the update left in `made` are not looked at.
            learning_rate: of the update.
            scalars: values of the layout's further figures.
        """
        if made_of.reading is None and not made_of.slots:
            say_once(
                "no loss",
                "mlflow_tfmon: a training's loss is not recorded step by step: its gradients do not come from "
                "tf.GradientTape.gradient (called without output_gradients).",
            )
        graph.keep_alive(made_of.slots)
        norms = [norm for norm in self.ring.layout.norms if norm == "grad_norm" or self.made is None]
        gradients = [[apart(gradient) for gradient in kinds[norm]] for norm in norms]
        rate = tf.convert_to_tensor(learning_rate) if tf.executing_eagerly() else apart(learning_rate)
        record = self._record_traced if tf.executing_eagerly() else self._record
        record(before, made_of.reading, made_of.slots, gradients, rate, scalars)

    def note_update(self, clipped: Sequence[Any]) -> None:
        """In the branch where the update is made: that it is, and its clipped gradients."""
        if self.made is not None:
            seen = clipped if "grad_norm_clipped" in self.ring.layout.norms else []
            made = [tf.ones([1], tf.float64)]
            if seen:
                made.append(quantities.half_squares([quantities.dense_values(apart(g)) for g in seen]))
            self.made.assign(tf.concat(made, axis=0))

    def _before(self, updates: Any) -> Before:
        step, deep = self.ring.next_step(updates)
        if self.made is not None:
            self.made.assign(tf.zeros_like(self.made))
        unknown = tf.constant(float("nan"), tf.float64)
        return Before(step, deep, quantities.snapshot(deep, self._variables), unknown)

    def _record(
        self, before: Before, loss: Any, slots: Any, gradients: Any, learning_rate: Any, scalars: Any
    ) -> None:
        ring, (step, deep, weights, ready) = self.ring, before
        dense = [[quantities.dense_values(g) for g in kind] for kind in gradients]
        every = [gradient for kind in dense for gradient in kind]
        quick, doubtful = quantities.quick_half_squares(every)
        unknown, measured = tf.constant(float("nan"), tf.float64), 0
        time, reading = unknown, tf.stack([unknown] * 3)
        if graph.has_clock():
            measured |= TIME
            with graph.after(quick):  # with no input, it would tell when the function began
                time = tf.timestamp()
        clock = inputs.clock_in_reach()
        ring.batch = batches.in_reach() or ring.batch
        if clock is not None:
            measured |= INPUT
            with graph.after([time, quick]):  # which come of the batch
                reading = clock.read()
        if loss is None:
            loss = tape.read(slots) if slots else tf.stack([unknown, 0.0])
        tape.empty(slots)
        made = self.made.read_value() if self.made is not None else tf.zeros([0], tf.float64)
        applied = made[0] if self.made is not None else None

        def look_closely() -> tf.Tensor:
            def measure() -> tf.Tensor:
                ring.write_deep(step, quantities.deep_row(step, self._variables, weights, dense[0], applied))
                histograms.write(ring, step, self._variables, dense[0])
                return tf.constant(0)

            with graph.after(tf.cond(deep, measure, lambda: tf.constant(0))):
                return quantities.half_squares(every)

        # One If for both: each costs a step some 25 us, taken or not (TF 2.21, two cores).
        squares = graph.rarely(deep | doubtful, look_closely, lambda: quick)
        row = [
            *(reading, loss[:2]),
            tf.stack([tf.cast(step, tf.float64), measured, time, ready, tf.cast(learning_rate, tf.float64)]),
            *(squares, made[1:], made[:1]),
            *([tf.cast(value, tf.float64)[None] for value in scalars]),
            loss[2:],
        ]
        ring.write(step, tf.concat([part for part in row if part.shape != [0]], axis=0))


def probe_of(
    optimizer: Any,
    variables: Sequence[Any],
    norms: tuple[str, ...],
    scalars: tuple[str, ...],
    parts: tuple[str, ...],
    on_ring: OnRing,
) -> StepProbe:
    """The probe for the steps of an optimizer over some variables, made if there is none.

    Args:
        optimizer: whose steps.
        variables: that it updates.
        norms: the gradient norms to measure.
        scalars: further figures of a step, by name.
        parts: names of what the loss is made of.
        on_ring: told of a new ring and its optimizer.
    """
    keys, workers = frozenset(graph.key(v) for v in variables), replicas.workers()
    parts = parts if workers == 1 else ()  # workers tell each other of the loss, not of what it is made of
    with _lock:
        probes = _probes.setdefault(optimizer, [])
    for probe in probes:
        layout = probe.ring.layout
        # Steps that are not clipped may go with those that are: what they show is true, and the steps stay in order.
        if (layout.keys, layout.scalars) == (keys, scalars + parts) and set(norms) <= set(layout.norms):
            return probe
    described = tuple(
        # A bias may have two axes, as that of a gated layer or of attention heads.
        Variable(name, tuple(int(n) for n in v.shape), len(v.shape) >= 2 and not name.endswith("bias"))
        for name, v in zip(names(variables), variables, strict=True)
    )
    with tf.init_scope():
        layout = RingLayout(described, keys, norms, workers, scalars + parts, parts)
        probe = StepProbe(layout, [replicas.local(graph.raw(v)) for v in variables])
        probes.append(probe)
        on_ring(probe.ring, optimizer)
    return probe


def names(variables: Sequence[Any]) -> list[str]:
    """Names of variables; two that have one name are told apart by a number."""
    seen: dict[str, int] = {}
    found = []
    for variable in variables:
        name = graph.name(variable)
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def rings_of(keys: frozenset[str]) -> list[Ring]:
    """The rings of all optimizers that train any of these variables."""
    return [ring for ring in all_rings() if ring.layout.keys & keys]


def all_rings() -> list[Ring]:
    with _lock:
        found = list(_probes.values())
    return [p.ring for probes in found for p in list(probes)]
