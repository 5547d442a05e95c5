"""The optimizer probe: writes the row of a step, from the gradients that Keras applies."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import graph, inputs, quantities, replicas, tape
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.stream.ring import APPLIED, INPUT, TIME, Ring, RingLayout, lasting_variable

_PART, _LOSS = "the optimizer probe", "this training's steps are not recorded"
_probes: weakref.WeakKeyDictionary[Any, list[StepProbe]] = weakref.WeakKeyDictionary()
_underway = threading.local()
OnRing = Callable[[Ring, Any], None]


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
        # Where an update is made in a branch of a cond, it leaves here that it was made, and the clipped gradients'
        # half squares: no tensor of the branch exists outside of it.
        clipped = len(variables) * ("grad_norm_clipped" in layout.norms)
        self.made = lasting_variable(1 + clipped) if APPLIED in layout.scalars else None
        # Eager code pays for each op: there, one call of a traced function does the lot.
        self._before_traced = tf.function(self._before, autograph=False)
        self._record_traced = tf.function(self._record, autograph=False, reduce_retracing=True)

    def before(self, gradients: Sequence[Any], updates: Any = None) -> _Before:
        """Before the update: which step it is, at a deep one copies of the weights; when the gradients are ready.

        Args:
            gradients: that will be applied.
            updates: whether this step is one that updates the weights; None if each step is.
        """
        graph.keep_alive((self.ring, self.made))
        before = self._before_traced(updates) if tf.executing_eagerly() else self._before(updates)
        if self.ring.layout.workers > 1 and not graph.in_xla():
            with graph.after(tf.nest.flatten(gradients, expand_composites=True)):
                before = before._replace(ready=tf.timestamp())
        return before

    def after(
        self, before: _Before, gradients: Sequence[Sequence[Any]], learning_rate: Any, scalars: Sequence[Any]
    ) -> None:
        """After the update: the row; gradients are those whose norms are not left by the update itself."""
        record = self._record_traced if tf.executing_eagerly() else self._record
        record(before, [list(kind) for kind in gradients], learning_rate, list(scalars))

    def note_update(self, clipped: Sequence[Any]) -> None:
        """In the branch where the update is made: that it is, and its clipped gradients."""
        if self.made is not None:
            values = (
                [quantities.dense_values(g) for g in clipped]
                if "grad_norm_clipped" in self.ring.layout.norms
                else []
            )
            self.made.assign([1.0, *quantities.half_squares(values)])

    def _before(self, updates: Any) -> _Before:
        step, deep = self.ring.next_step(updates)
        if self.made is not None:
            self.made.assign(tf.zeros_like(self.made))
        unknown = tf.constant(float("nan"), tf.float64)
        return _Before(step, deep, quantities.snapshot(deep, self._variables), unknown)

    def _record(self, before: _Before, gradients: Any, learning_rate: Any, scalars: list[Any]) -> None:
        ring, (step, deep, weights, ready) = self.ring, before
        dense = [[quantities.dense_values(g) for g in kind] for kind in gradients]
        squares = [square for kind in dense for square in quantities.half_squares(kind)]
        unknown, measured = tf.constant(float("nan"), tf.float64), 0
        time, reading, loss = unknown, tf.stack([unknown] * 3), tf.stack([unknown, 0.0])
        if not graph.in_xla():  # which has no clock
            measured |= TIME
            with graph.after(squares):  # with no input, it would tell when the function began
                time = tf.timestamp()
        clock = inputs.clock_in_reach()
        if clock is not None:
            measured |= INPUT
            with graph.after([time, squares[0]]):  # which come of the batch
                reading = clock.read()
        more, applied = [], None
        if self.made is not None:
            made = self.made.read_value()
            applied = made[0]
            more += [made[1:], made[:1]]
        if scalars:
            more.append(tf.stack([tf.cast(value, tf.float64) for value in scalars]))
        slots = tape.losses_of(ring.layout.keys)
        if slots:
            loss = slots[0] if len(slots) == 1 else tf.add_n(slots)
            if loss.shape[0] > 2:
                more += [loss[2:]] if ring.layout.parts else []
                loss = loss[:2]
        rest = [
            tf.cast(step, tf.float64),
            measured,
            time,
            ready,
            tf.cast(learning_rate, tf.float64),
            *squares,
        ]
        row = tf.concat([reading, loss, tf.stack(rest), *more], axis=0)

        def write_deep() -> tf.Tensor:
            ring.write_deep(step, quantities.deep_row(step, self._variables, weights, dense[0], applied))
            return tf.constant(0)

        written = graph.rarely(deep, write_deep, lambda: tf.constant(0))
        ring.write(step, row, after=written)


@dataclass
class _Step:
    """The step that an optimizer is making.

    Attributes:
        optimizer: whose step it is: the outer one where one wraps another.
        probe: what measures it, once its gradients are known.
        before: what was known before the update.
        gradients: unscaled, before clipping.
        scalars: values of the layout's scalars that are known in the step, by name.
        clipped: the gradients that were applied.
        learning_rate: that they were applied with.
    """

    optimizer: Any
    probe: StepProbe | None = None
    before: _Before | None = None
    gradients: Sequence[Any] = ()
    scalars: dict[str, Any] = field(default_factory=dict)
    clipped: Sequence[Any] | None = None
    learning_rate: Any = None

    def begin(
        self, gradients: Sequence[Any], variables: Sequence[Any], on_ring: OnRing, **scalars: Any
    ) -> None:
        """Before the update.

        Args:
            gradients: unscaled, before clipping.
            variables: that they are of.
            on_ring: told of a new ring and its optimizer.
            **scalars: further figures of the step; with any, the update may be left out.
        """
        updater = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        accumulates = getattr(updater, "gradient_accumulation_steps", None)
        if accumulates and replicas.count() > 1:
            say_once(
                "accumulation by replica",
                "mlflow_tfmon: each replica accumulates gradients of its own, so that a step has no global "
                "one: a training with gradient_accumulation_steps on several replicas is not watched step by step.",
            )
            return
        names = (*((APPLIED,) if accumulates or scalars else ()), *scalars)
        self.probe = _probe(self.optimizer, variables, on_ring, _norms(updater), names)
        if self.probe is None:
            return
        self.gradients, self.scalars = gradients, scalars
        updates = None
        if accumulates:
            # Keras's own counter; the public `iterations` counts updates (Keras 3.7 to 3.15).
            updates = tf.equal((graph.raw(updater._iterations) + 1) % accumulates, 0)
        if self.probe.made is not None:  # afterwards, a schedule would tell the next step's
            self.learning_rate = tf.convert_to_tensor(graph.raw(updater.learning_rate))
        self.before = self.probe.before(gradients, updates)

    def finish(self) -> None:
        """After the update."""
        if self.probe is None or self.before is None:
            return
        applied = self.gradients if self.clipped is None else self.clipped
        kinds = {
            "grad_norm": applied if replicas.count() > 1 else self.gradients,
            "grad_norm_clipped": applied,
        }
        norms = [
            norm for norm in self.probe.ring.layout.norms if norm == "grad_norm" or self.probe.made is None
        ]
        self.probe.after(
            self.before,
            [kinds[norm] for norm in norms],
            graph.raw(self.learning_rate),
            list(self.scalars.values()),
        )


@contextlib.contextmanager
def _making(optimizer: Any) -> Iterator[_Step]:
    """The step of an optimizer, from its call to its end."""
    step = _underway.step = _Step(optimizer)
    try:
        yield step
        with contained(_PART, _LOSS):
            step.finish()
    finally:
        _underway.step = None


def _step() -> _Step | None:
    return getattr(_underway, "step", None)


def watch_apply(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer.apply`, which ends when the weights are what they will be, constraints included."""

    def apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _step() is not None:  # of an optimizer around this one
            return original(self, *args, **kwargs)
        with _making(self):
            return original(self, *args, **kwargs)

    return apply


def watch_gradients(original: Callable[..., Any], on_ring: OnRing) -> Callable[..., Any]:
    """Wraps `Optimizer._backend_apply_gradients`, which is given the final gradients, unscaled and before clipping.

    Args:
        original: the method.
        on_ring: told of each new ring and its optimizer, on the thread that trains.
    """

    def _backend_apply_gradients(self: Any, grads: Any, trainable_variables: Any) -> Any:
        step = _step()
        if step is None:  # of Keras 2, or of an optimizer with an `apply` of its own
            with _making(self):
                return _backend_apply_gradients(self, grads, trainable_variables)
        if step.optimizer is not self:
            return original(self, grads, trainable_variables)
        with contained(_PART, _LOSS):
            step.begin(grads, trainable_variables, on_ring)
        result = original(self, grads, trainable_variables)
        with contained(_PART, _LOSS):
            if step.learning_rate is None:  # the update was made by another method than Keras's
                step.learning_rate, step.clipped = self.learning_rate, grads
        return result

    return _backend_apply_gradients


def watch_scaled(original: Callable[..., Any], on_ring: OnRing) -> Callable[..., Any]:
    """Wraps `LossScaleOptimizer._common_apply`, which leaves a step out if its gradients are not finite.

    The row is written outside of that branch: a step that is left out has one too.
    """

    def _common_apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if replicas.count() > 1:  # the gradients are not summed yet: the wrapped optimizer's step is watched
            return original(self, grads, trainable_variables)
        with _making(self) as step:
            with contained(_PART, _LOSS):
                pairs = [
                    (g, v)
                    for g, v in zip(grads, trainable_variables or self._trainable_variables, strict=True)
                    if g is not None and not self._overwrite_variable_with_gradient(v)
                ]
                scale = tf.identity(graph.raw(self.dynamic_scale))
                unscaled = [keras.ops.divide(g, scale) for g, _ in pairs]
                step.begin(unscaled, [v for _, v in pairs], on_ring, loss_scale=scale)
            return original(self, grads, trainable_variables)

    return _common_apply


def watch_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer._backend_update_step`, which is given the clipped gradients and the learning rate in force."""

    def _backend_update_step(self: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> Any:
        step = _step()
        if step is not None and step.probe is not None:
            with contained(_PART, _LOSS):
                if step.probe.made is not None:
                    step.probe.note_update(grads)
                else:
                    step.clipped, step.learning_rate = grads, learning_rate
        return original(self, grads, trainable_variables, learning_rate)

    return _backend_update_step


def watch_reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `TFOptimizer._all_reduce_sum_gradients`, which gives the gradients that are applied: the replicas' sum."""

    def _all_reduce_sum_gradients(self: Any, grads_and_vars: Any) -> Any:
        result = original(self, grads_and_vars)
        step = _step()
        if step is not None and step.clipped is not None:
            step.clipped = [gradient for gradient, _ in result]
        return result

    return _all_reduce_sum_gradients


def _probe(
    optimizer: Any, variables: Any, on_ring: OnRing, norms: tuple[str, ...], scalars: tuple[str, ...]
) -> StepProbe | None:
    if not graph.can_record() or not replicas.supported() or not replicas.writes():
        return None
    keys = frozenset(graph.key(v) for v in variables)
    workers = replicas.workers()
    # Workers tell each other of the loss, not of what it is made of.
    parts = tape.parts_of(keys) if workers == 1 else ()
    probes = _probes.setdefault(optimizer, [])
    for probe in probes:
        layout = probe.ring.layout
        if (layout.keys, layout.norms, layout.scalars) == (keys, norms, scalars + parts):
            return probe
    described = tuple(
        Variable(name, tuple(int(n) for n in v.shape), len(v.shape) >= 2)
        for name, v in zip(_names(variables), variables, strict=True)
    )
    with tf.init_scope():
        probe = StepProbe(
            RingLayout(described, keys, norms, workers, scalars + parts, parts),
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
    if not clips:
        return ("grad_norm",)
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
