"""The optimizer probe: writes the row of a step where Keras hands the final gradients to the backend."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import graph, inputs, quantities, replicas, tape
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.stream.ring import INPUT, TIME, Ring, RingLayout

_PART, _LOSS = "the optimizer probe", "this training's steps are not recorded"
_probes: weakref.WeakKeyDictionary[Any, list[StepProbe]] = weakref.WeakKeyDictionary()
_underway = threading.local()


class _Before(NamedTuple):
    """What is known before an update: the number of its step, whether that is deep, copies of the weights if so.

    And when the gradients were ready, where those of several workers are summed.
    """

    step: tf.Tensor
    deep: tf.Tensor
    weights: list[tf.Tensor]
    ready: tf.Tensor


class StepProbe:
    """Measures the steps of one optimizer over one set of variables."""

    def __init__(self, layout: RingLayout, variables: Sequence[tf.Variable]) -> None:
        self.ring = Ring(layout, replicas.user_thread())
        self._variables = list(variables)
        # Eager code pays for each op: there, one call of a traced function does the lot.
        self._before_traced = tf.function(self._before, autograph=False)
        self._record_traced = tf.function(self._record, autograph=False, reduce_retracing=True)

    def before(self, gradients: Sequence[Any]) -> _Before:
        """Before the update: which step it is, at a deep one copies of the weights; when the gradients are ready."""
        graph.keep_alive(self.ring)
        before = self._before_traced() if tf.executing_eagerly() else self._before()
        if self.ring.layout.workers > 1 and not graph.in_xla():
            with graph.after(tf.nest.flatten(gradients, expand_composites=True)):
                before = before._replace(ready=tf.timestamp())
        return before

    def after(
        self, before: _Before, made_of: tape.Step, gradients: Sequence[Sequence[Any]], learning_rate: Any
    ) -> None:
        """After the update: the row; gradients are those of which the layout holds the norms."""
        if made_of.reading is None and not made_of.slots:
            say_once(
                "no loss",
                "mlflow_tfmon: a training's loss is not recorded step by step: its gradients do not come from "
                "tf.GradientTape.gradient (called without output_gradients).",
            )
        graph.keep_alive(made_of.slots)
        record = self._record_traced if tf.executing_eagerly() else self._record
        record(before, made_of.reading, made_of.slots, [list(kind) for kind in gradients], learning_rate)

    def _before(self) -> _Before:
        step, deep = self.ring.next_step()
        unknown = tf.constant(float("nan"), tf.float64)
        return _Before(step, deep, quantities.snapshot(deep, self._variables), unknown)

    def _record(self, before: _Before, loss: Any, slots: Any, gradients: Any, learning_rate: Any) -> None:
        ring, (step, deep, weights, ready) = self.ring, before
        dense = [[quantities.dense_values(g) for g in kind] for kind in gradients]
        squares = [square for kind in dense for square in quantities.half_squares(kind)]
        unknown, measured = tf.constant(float("nan"), tf.float64), 0
        time, reading = unknown, tf.stack([unknown] * 3)
        if not graph.in_xla():  # which has no clock
            measured |= TIME
            with graph.after(squares):  # with no input, it would tell when the function began
                time = tf.timestamp()
        clock = inputs.clock_in_reach()
        if clock is not None:
            measured |= INPUT
            with graph.after([time, squares[0]]):  # which come of the batch
                reading = clock.read()
        if loss is None:
            loss = tape.read(slots) if slots else tf.stack([unknown, 0.0])
        tape.empty(slots)
        rest = [
            tf.cast(step, tf.float64),
            measured,
            time,
            ready,
            tf.cast(learning_rate, tf.float64),
            *squares,
        ]
        row = tf.concat([reading, loss, tf.stack(rest)], axis=0)

        def write_deep() -> tf.Tensor:
            ring.write_deep(step, quantities.deep_row(step, self._variables, weights, dense[0]))
            return tf.constant(0)

        written = graph.rarely(deep, write_deep, lambda: tf.constant(0))
        ring.write(step, row, after=written)


def watch_apply(original: Callable[..., Any], on_ring: Callable[[Ring, Any], None]) -> Callable[..., Any]:
    """Wraps `Optimizer._backend_apply_gradients`, which is given the final gradients, unscaled and before clipping.

    Args:
        original: the method.
        on_ring: told of each new ring and its optimizer, on the thread that trains.
    """

    def _backend_apply_gradients(self: Any, grads: Any, trainable_variables: Any) -> Any:
        made_of, probe, before = None, None, None
        with contained(_PART, _LOSS):
            if _watched():
                made_of = tape.step_of(grads, trainable_variables)
                probe = _probe(self, trainable_variables, made_of.before is not None, on_ring)
                before = probe.before(grads)
        _underway.update = None
        result = original(self, grads, trainable_variables)
        with contained(_PART, _LOSS):
            if made_of is not None and probe is not None and before is not None:
                _finish(self, probe, before, made_of, grads)
        return result

    return _backend_apply_gradients


def watch_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer._backend_update_step`, which is given the clipped gradients and the learning rate in force."""

    def _backend_update_step(self: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> Any:
        _underway.update = (graph.tracing(), grads, learning_rate)
        return original(self, grads, trainable_variables, learning_rate)

    return _backend_update_step


def watch_reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `TFOptimizer._all_reduce_sum_gradients`, which gives the gradients that are applied: the replicas' sum."""

    def _all_reduce_sum_gradients(self: Any, grads_and_vars: Any) -> Any:
        result = original(self, grads_and_vars)
        with contained(_PART, _LOSS):
            function, _, learning_rate = _underway.update
            _underway.update = (function, [gradient for gradient, _ in result], learning_rate)
        return result

    return _all_reduce_sum_gradients


def _finish(optimizer: Any, probe: StepProbe, before: _Before, made_of: tape.Step, gradients: Any) -> None:
    function, applied, learning_rate = _underway.update or (None, gradients, None)
    if learning_rate is None or function is not graph.tracing():
        # The update was made in a branch of a cond (gradient accumulation), whose tensors do not exist out here.
        learning_rate, applied = optimizer.learning_rate, gradients
    if replicas.count() > 1:
        gradients = applied
    kinds = {
        "grad_norm": gradients if made_of.before is None else made_of.before,
        "grad_norm_clipped": applied,
    }
    probe.after(before, made_of, [kinds[norm] for norm in probe.ring.layout.norms], graph.raw(learning_rate))


def _watched() -> bool:
    return graph.can_record() and replicas.supported() and replicas.writes()


def _probe(optimizer: Any, variables: Any, changed: bool, on_ring: Callable[[Ring, Any], None]) -> StepProbe:
    keys = frozenset(graph.key(v) for v in variables)
    norms = ("grad_norm", "grad_norm_clipped") if changed else _norms(optimizer)
    probes = _probes.setdefault(optimizer, [])
    for probe in probes:
        # Steps that are not clipped may go with those that are: what they show is true, and the steps stay in order.
        if probe.ring.layout.keys == keys and set(norms) <= set(probe.ring.layout.norms):
            return probe
    described = tuple(
        Variable(name, tuple(int(n) for n in v.shape), len(v.shape) >= 2)
        for name, v in zip(_names(variables), variables, strict=True)
    )
    with tf.init_scope():
        probe = StepProbe(
            RingLayout(described, keys, norms, replicas.workers()),
            [replicas.local(graph.raw(v)) for v in variables],
        )
        probes.append(probe)
        on_ring(probe.ring, optimizer)
    return probe


def _names(variables: Sequence[Any]) -> list[str]:
    """Names of variables; two that have one name are told apart by a number."""
    seen: dict[str, int] = {}
    names = []
    for variable in variables:
        name = graph.name(variable)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def _norms(optimizer: Any) -> tuple[str, ...]:
    """The gradient norms that can be had."""
    clips = any(getattr(optimizer, name, None) for name in ("clipnorm", "global_clipnorm", "clipvalue"))
    if not clips or getattr(optimizer, "gradient_accumulation_steps", None):
        return ("grad_norm",)  # where it accumulates, it clips within a branch of a cond, out of reach
    if replicas.count() == 1:
        return "grad_norm", "grad_norm_clipped"
    say_once(
        "clipping by replica",
        "mlflow_tfmon: Keras 3 clips the gradients of each replica before it sums them: under several replicas the "
        "norm of the global gradient before clipping is not recorded, that of the clipped one is.",
    )
    return ("grad_norm_clipped",)


def rings_of(keys: frozenset[str]) -> list[Ring]:
    """The rings of all optimizers that train any of these variables."""
    return [p.ring for probes in list(_probes.values()) for p in probes if p.ring.layout.keys & keys]


def all_rings() -> list[Ring]:
    return [p.ring for probes in list(_probes.values()) for p in probes]
