"""The tape probe: keeps the loss that `tf.GradientTape.gradient` differentiates, for the row of its step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph, replicas
from mlflow_tfmon.stream.ring import lasting_variable

# One slot a set of variables and replica. A variable, not a tensor, since tape and optimizer may be traced into
# different functions (or one of them run eagerly), where a tensor of the one does not exist in the other.
# Each holds (loss, 1 if it is of the step that is being made; 0 in replicas but the first).
_slots: dict[frozenset[str], dict[int, tf.Variable]] = {}
_UNSCALED = "_mlflow_tfmon_unscaled"


def watch_gradient(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `tf.GradientTape.gradient`."""

    def gradient(self: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, target, sources, *args, **kwargs)
        with contained("the tape probe", "the loss of each step is not recorded"):
            _note(target, sources)
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


def _note(target: Any, sources: Any) -> None:
    if not graph.can_record():
        return
    # Gradients with respect to anything but variables (a gradient penalty, a saliency map) are no training.
    variables = [v for v in tf.nest.flatten(sources) if isinstance(graph.raw(v), tf.Variable)]
    if not variables:
        return
    slot = _slot(variables)
    graph.keep_alive(slot)
    # What is minimized is the sum of all that was given as target.
    targets = [getattr(t, _UNSCALED, t) for t in tf.nest.flatten(target) if t is not None]
    losses = [tf.reduce_sum(tf.cast(t, tf.float64)) for t in targets]
    fresh = 1.0 if replicas.index() == 0 else 0.0  # slots are added up
    slot.assign([losses[0] if len(losses) == 1 else tf.add_n(losses), fresh])


def _slot(variables: list[Any]) -> tf.Variable:
    keys, replica = frozenset(graph.key(v) for v in variables), replicas.index()
    if keys not in _slots:
        _slots[keys] = {}
        weakref.finalize(graph.raw(variables[0]), _slots.pop, keys, None)
    if replica not in _slots[keys]:
        _slots[keys][replica] = lasting_variable(2)
    return _slots[keys][replica]


def losses_of(keys: frozenset[str]) -> list[tf.Tensor]:
    """Takes what the slots of the loss hold whose gradients go to these variables (most of them shared).

    What is minimized over several replicas is the sum of what each of their tapes differentiates.
    """
    best = max(_slots, key=lambda slot: (len(slot & keys), -len(slot)), default=frozenset[str]())
    readings = []
    for slot in _slots[best].values() if best & keys else ():
        graph.keep_alive(slot)
        with replicas.at(slot):
            readings.append(slot.read_value())
            slot.assign([0.0, 0.0])  # a step without a tape has no loss: that of an earlier one is not its
    return readings
