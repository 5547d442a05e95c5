"""The optimizer probe: follows Keras's optimizers from the gradients they are given to the update they make."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import graph, replicas, tape
from mlflow_tfmon.probes.step import Before, OnRing, StepProbe, probe_of
from mlflow_tfmon.stream.ring import APPLIED

_PART, _NOT_RECORDED = "the optimizer probe", "this training's steps are not recorded"
_underway = threading.local()


@dataclass
class _Step:
    """The step that an optimizer is making.

    Attributes:
        optimizer: whose step it is: the outer one where one wraps another.
        probe: what measures it, once its gradients are known.
        before: what was known before the update.
        made_of: what tapes tell of it.
        gradients: unscaled, before clipping.
        scalars: values of the layout's scalars that are known in the step, by name.
        clipped: the gradients that were applied.
        learning_rate: that they were applied with.
        makes_variables: whether the optimizer's own variables are made in it.
    """

    optimizer: Any
    probe: StepProbe | None = None
    before: Before | None = None
    made_of: tape.Step | None = None
    gradients: Sequence[Any] = ()
    scalars: dict[str, Any] = field(default_factory=dict)
    clipped: Sequence[Any] | None = None
    learning_rate: Any = None
    makes_variables: bool = False

    def begin(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        on_ring: OnRing,
        given: Sequence[Any] = (),
        **scalars: Any,
    ) -> None:
        """Before the update.

        Args:
            gradients: unscaled, before clipping.
            variables: that they are of.
            on_ring: told of a new ring and its optimizer.
            given: the gradients as the optimizer was given them, if those are scaled.
            **scalars: further figures of the step; with any, the update may be left out.
        """
        if not graph.can_record() or not replicas.supported() or not replicas.writes():
            return
        updater = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        accumulates = getattr(updater, "gradient_accumulation_steps", None)
        if accumulates and replicas.count() > 1:
            say_once(
                "accumulation by replica",
                "mlflow_tfmon: each replica accumulates gradients of its own, so that a step has no global "
                "one: a training with gradient_accumulation_steps on several replicas is not watched step by step.",
            )
            return
        gradients = [graph.tensor(gradient) for gradient in gradients]
        given = [graph.tensor(gradient) for gradient in given] or gradients
        self.made_of = tape.step_of(given, variables)
        norms = _norms(updater, by_hand=self.made_of.before is not None)
        names = (*((APPLIED,) if accumulates or scalars else ()), *scalars)
        self.probe = probe_of(self.optimizer, variables, norms, names, self.made_of.parts, on_ring)
        self.gradients, self.scalars = gradients, scalars
        updates, window = None, 1
        if accumulates:
            window = int(accumulates)
            # Keras's own counter; the public `iterations` counts updates (Keras 3.7 to 3.15).
            updates = tf.equal((graph.raw(updater._iterations) + 1) % accumulates, 0)
        if self.probe.made is not None:  # afterwards, a schedule would tell the next step's
            self.learning_rate = tf.convert_to_tensor(graph.raw(updater.learning_rate))
        traced_again = self.makes_variables and graph.is_traced_again(
            getattr(self.optimizer, "variables", ())
        )
        self.before = self.probe.before(gradients, updates, window, traced_again)

    def finish(self) -> None:
        """After the update."""
        if self.probe is None or self.before is None or self.made_of is None:
            return
        applied = self.gradients if self.clipped is None else self.clipped
        gradients = self.gradients if self.made_of.before is None else self.made_of.before
        kinds = {
            "grad_norm": applied if replicas.count() > 1 else gradients,
            "grad_norm_clipped": applied,
        }
        rate = graph.raw(self.learning_rate)
        self.probe.after(self.before, self.made_of, kinds, rate, list(self.scalars.values()))


@contextlib.contextmanager
def _making(optimizer: Any) -> Iterator[_Step]:
    """The step of an optimizer, from its call to its end."""
    step = _underway.step = _Step(optimizer, makes_variables=not getattr(optimizer, "built", True))
    try:
        yield step
        with contained(_PART, _NOT_RECORDED):
            step.finish()
    finally:
        _underway.step = None
        with contained(_PART, "what eager code makes of gradients is not followed"):
            tape.resume()


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
        with contained(_PART, _NOT_RECORDED):
            step.begin(grads, trainable_variables, on_ring)
        result = original(self, grads, trainable_variables)
        with contained(_PART, _NOT_RECORDED):
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
            with contained(_PART, _NOT_RECORDED):
                pairs = [
                    (g, v)
                    for g, v in zip(grads, trainable_variables or self._trainable_variables, strict=True)
                    if g is not None and not getattr(v, "overwrite_with_gradient", False)
                ]
                scale = tf.identity(graph.raw(self.dynamic_scale))
                unscaled = [keras.ops.divide(g, scale) for g, _ in pairs]
                step.begin(unscaled, [v for _, v in pairs], on_ring, [g for g, _ in pairs], loss_scale=scale)
            return original(self, grads, trainable_variables)

    return _common_apply


def watch_left_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `LossScaleOptimizer._tf_apply`: on several replicas, a step that is left out has no row."""

    def _tf_apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        result = original(self, grads, trainable_variables)
        if replicas.count() > 1:
            with contained(_PART, "the loss of a step may be that of one before, which was left out"):
                tape.leave_out(trainable_variables or self._trainable_variables)
        return result

    return _tf_apply


def watch_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer._backend_update_step`, which is given the clipped gradients and the learning rate in force."""

    def _backend_update_step(self: Any, grads: Any, trainable_variables: Any, learning_rate: Any) -> Any:
        step = _step()
        if step is not None and step.probe is not None:
            with contained(_PART, _NOT_RECORDED):
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
        with contained(_PART, _NOT_RECORDED):
            if step is not None and step.clipped is not None:
                step.clipped = [gradient for gradient, _ in result]
        return result

    return _all_reduce_sum_gradients


def _norms(optimizer: Any, by_hand: bool) -> tuple[str, ...]:
    """The gradient norms that can be had of gradients that the optimizer clips, or that were clipped by hand."""
    clips = any(getattr(optimizer, name, None) for name in ("clipnorm", "global_clipnorm", "clipvalue"))
    if not clips and not by_hand:
        return ("grad_norm",)
    if replicas.count() == 1:
        return "grad_norm", "grad_norm_clipped"
    say_once(
        "clipping by replica",
        "mlflow_tfmon: Keras 3 clips the gradients of each replica before it sums them: under several replicas the "
        "norm of the global gradient before clipping is not recorded, that of the clipped one is.",
    )
    return ("grad_norm_clipped",)
