"""The probe of an optimizer's steps: reads what is known before and after an update, and writes the row."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import batches, compiled, graph, histograms, inputs, quantities, replicas, tape
from mlflow_tfmon.probes.apart import apart
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.stream.ring import APPLIED, Ring, RingLayout, lasting_variable

_probes: weakref.WeakKeyDictionary[Any, list[StepProbe]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # other threads look at it while this one trains
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]  # Python 3.9 to 3.13
_MAX_SHARED_WEIGHTS = 10**6  # weights of an optimizer that may be one of many
OnRing = Callable[[Ring, Any], None]
_UNKNOWN = float("nan")


class Before(NamedTuple):
    """What is known before an update.

    Attributes:
        done: how many steps have been made.
        deep: whether this one is deep: known while tracing, or a tensor.
        counted: whether it has histograms, or None: as `Ring.next_step` tells.
        weights: what `quantities.snapshot` gave.
        ready: when the gradients were ready, where those of several workers are summed.
    """

    done: tf.Tensor
    deep: bool | tf.Tensor
    counted: tf.Tensor | None
    weights: Any
    ready: tf.Tensor


class StepProbe:
    """Measures the steps of one optimizer over one set of variables."""

    def __init__(self, layout: RingLayout, variables: Sequence[tf.Variable]) -> None:
        self.ring = Ring(layout, replicas.user_thread())
        self._variables = self.ring.weights = list(variables)
        # A branch is one op where all that it touches is on one device.
        self._whole = {v.device for v in variables} == {layout.device}
        # Where an update is made in a branch of a cond, it leaves here that it was made, and the clipped gradients'
        # half squares: no tensor of the branch exists outside of it.
        clipped = len(variables) * ("grad_norm_clipped" in layout.norms)
        self.made = lasting_variable(1 + clipped, device=layout.device) if APPLIED in layout.scalars else None
        # Eager code pays for each op: there, one call of a traced function does the lot.
        state = [*self.ring.state, *([] if self.made is None else [self.made]), *variables]
        kind = None
        if replicas.count() == 1 and sum(quantities.sizes(variables)) <= _MAX_SHARED_WEIGHTS:
            shapes = tuple((v.dtype, tuple(v.shape), v.device) for v in variables)
            how = (layout.norms, layout.scalars, layout.parts, graph.has_clock())
            kind = (shapes, self.ring.capacity, *how)
        self._before_traced = graph.Traced(self._before, state, kind and ("before", *kind))
        self._record_traced = graph.Traced(self._record, state, kind and ("record", *kind))

    def before(
        self, gradients: Sequence[Any], updates: Any = None, window: int = 1, traced_again: bool = False
    ) -> Before:
        """Before the update: which step it is, at a deep one the weights; when the gradients are ready.

        Args:
            gradients: that will be applied.
            updates: whether this step is one that updates the weights; None if each step is.
            window: every how many steps one is.
            traced_again: whether this trace is replaced before it runs: it measures nothing deep, which takes longest.
        """
        graph.keep_alive((self.ring, self.made))
        compiled.writes_to(self.ring)
        self.ring.traces += not tf.executing_eagerly()
        if not tf.executing_eagerly():
            self.ring.graph = graph.whole()
        before = self._before_traced if tf.executing_eagerly() else self._before
        found = before(updates, window, traced_again)
        if self.ring.layout.workers > 1 and graph.has_clock():
            with graph.after(tf.nest.flatten(gradients, expand_composites=True)):
                found = found._replace(ready=tf.timestamp())
        return found

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
        with contained("holding a batch", "that of a bad step is not kept"):
            batches.hold_step(self.ring, before.done)

    def note_update(self, clipped: Sequence[Any]) -> None:
        """In the branch where the update is made: that it is, and its clipped gradients."""
        if self.made is not None:
            seen = clipped if "grad_norm_clipped" in self.ring.layout.norms else []
            made = [tf.ones([1], tf.float64)]
            if seen:
                made.append(quantities.half_squares([quantities.dense_values(apart(g)) for g in seen]))
            graph.put(self.made, tf.concat(made, axis=0))

    def _before(self, updates: Any, window: int, traced_again: bool) -> Before:
        done, due, counted = self.ring.next_step(updates, window)
        deep = due if updates is not None or compiled.deep() is None else compiled.deep()
        deep = deep if not traced_again else False
        if self.made is not None:
            graph.put(self.made, tf.zeros(self.made.shape, self.made.dtype))
        weights = quantities.snapshot(deep, self._variables, self._whole)
        return Before(done, deep, counted, weights, tf.constant(_UNKNOWN, tf.float64))

    def _record(
        self, before: Before, loss: Any, slots: Any, gradients: Any, learning_rate: Any, scalars: Any
    ) -> None:
        ring, done = self.ring, before.done
        shapes = [v.shape for v in self._variables]
        dense = [
            [quantities.dense_values(g, s) for g, s in zip(kind, shapes, strict=True)] for kind in gradients
        ]
        every = [gradient for kind in dense for gradient in kind]
        quick = quantities.quick_half_squares(every)
        host = self._host(quick, before.ready)
        if loss is None:
            loss = tape.read(slots) if slots else tf.constant([_UNKNOWN, 0.0], tf.float64)
        tape.empty(slots)
        made = self.made.read_value() if self.made is not None else None
        squares = self._look(before, every, quick, dense[0], None if made is None else made[0])
        device = [loss[:2] if ring.layout.parts else loss, tf.cast(learning_rate, tf.float64)[None]]
        device += [] if made is None else [made[:1]]
        device += [tf.cast(value, tf.float64)[None] for value in scalars]
        device += [loss[2:]] if ring.layout.parts else []
        clipped = [] if made is None or made.shape == [1] else [made[1:]]
        written = ring.write(done, host, [*device, squares, *clipped])
        if written is not None and not ring.layout.split:  # nobody waits for another device
            graph.wrote(written)

    def _host(self, last: tf.Tensor, ready: tf.Tensor) -> list[tf.Tensor]:
        """The columns that the host tells: of the batch, and of the time when what is computed last was there.

        Where the weights are on another device nobody waits for that: then it is the time at which the step was begun.
        """
        layout, has_clock = self.ring.layout, graph.has_clock()
        self.ring.batch = batches.in_reach() or self.ring.batch
        with tf.device(layout.host) if layout.split else contextlib.nullcontext():
            time, reading = tf.constant(_UNKNOWN, tf.float64), tf.constant([_UNKNOWN] * 3, tf.float64)
            if has_clock:
                with graph.after(
                    [] if layout.split else last
                ):  # with no input, it tells when the function began
                    time = graph.timestamp()
            clock = inputs.clock_in_reach(layout.device)
            if clock is not None:
                # What was computed from the batch comes after the clock was set; but nobody waits for a device.
                with graph.after([time] if layout.split else [time, last]):
                    reading = clock.read(waits=layout.split)
            return [reading, tf.stack([time, ready])]

    def _look(
        self,
        before: Before,
        every: list[tf.Tensor],
        quick: tf.Tensor,
        gradients: list[tf.Tensor],
        applied: tf.Tensor | None,
    ) -> tf.Tensor:
        """At a deep step writes its rows; gives the half squares of all gradients, as well as they can be had."""
        ring, (done, deep, counted, weights, _) = self.ring, before

        def nothing() -> tf.Tensor:
            return tf.constant(0)

        def deep_row() -> tuple[tf.Tensor, list[tf.Tensor]]:
            return quantities.deep_row(done, self._variables, weights, gradients, applied, ring.kept)

        def count() -> tf.Tensor:
            ring.histograms.write(histograms.row(done, self._variables, gradients))
            return nothing()

        def measure() -> tf.Tensor:
            row, kept = deep_row()
            ring.write_deep(done, row, kept)
            if counted is None:
                graph.rarely(ring.histogram_due(done), count, nothing, self._whole)
            return nothing()

        if graph.in_xla():
            if deep is not False:
                self._look_in_xla(before, gradients, applied)
            return quick
        if deep is False:
            return quick
        if counted is not None:  # the host tells: a look at the sums would have it wait for them
            graph.rarely(deep, measure, nothing, self._whole)
            graph.rarely(counted, count, nothing, self._whole)
            return quick

        def look_closely() -> tf.Tensor:
            with graph.after(graph.rarely(deep, measure, nothing, self._whole)):
                return quantities.half_squares(every)

        # One If for both: each costs a step some 25 us, taken or not (TF 2.21, two cores).
        return graph.rarely(deep | quantities.doubtful(quick), look_closely, lambda: quick, self._whole)

    def _look_in_xla(self, before: Before, gradients: list[tf.Tensor], applied: tf.Tensor | None) -> None:
        """The same in XLA, where a branch gives rows and writes none: it would have what it writes to copied."""
        ring, (done, deep, _, weights, _) = self.ring, before
        due = deep & ring.histogram_due(done)

        def measure() -> tuple[tf.Tensor, list[tf.Tensor]]:
            return quantities.deep_row(done, self._variables, weights, gradients, applied, ring.kept)

        def count() -> tf.Tensor:
            return histograms.row(done, self._variables, gradients)

        def none(width: int) -> Callable[[], tf.Tensor]:
            return lambda: tf.zeros([width], tf.float64)

        def both() -> tuple[Any, tf.Tensor]:
            return measure(), graph.rarely(due, count, none(ring.histograms.width))

        def neither() -> tuple[Any, tf.Tensor]:
            kept = [one.read_value() for one in ring.kept.values()]
            return (none(ring.deep.width)(), kept), none(ring.histograms.width)()

        (row, kept), counts = graph.rarely(deep, both, neither)
        ring.write_deep(done, row, kept, if_=None if isinstance(deep, bool) else deep)
        ring.histograms.write(counts, due)


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
    local = [replicas.local(graph.raw(v)) for v in variables]
    device, xla = local[0].device, graph.in_xla()
    with _lock:
        probes = _probes.setdefault(optimizer, [])
    for probe in probes:
        layout = probe.ring.layout
        # Steps that are not clipped may go with those that are: what they show is true, and the steps stay in order.
        same = (layout.keys, layout.scalars, layout.xla) == (keys, scalars + parts, xla)
        if same and set(norms) <= set(layout.norms):
            return probe
    described = tuple(
        # A bias may have two axes, as that of a gated layer or of attention heads.
        Variable(name, tuple(int(n) for n in v.shape), len(v.shape) >= 2 and not name.endswith("bias"))
        for name, v in zip(names(variables), variables, strict=True)
    )
    with tf.init_scope():
        host = graph.host_of(device)
        layout = RingLayout(described, keys, norms, workers, scalars + parts, parts, device, host, xla)
        probe = StepProbe(layout, local)
        probes.append(probe)
        built = getattr(optimizer, "_trainable_variables", None) or ()  # Keras 3.7 to 3.15
        probe.ring.reach = keys | {graph.key(v) for v in built}
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
