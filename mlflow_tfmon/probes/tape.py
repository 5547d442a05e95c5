"""The tape probe: keeps the loss that `tf.GradientTape.gradient` differentiates, for the row of its step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph
from mlflow_tfmon.stream.ring import lasting_variable

# One slot a set of variables. A variable, not a tensor, since tape and optimizer may be traced into different
# functions (or one of them run eagerly), where a tensor of the one does not exist in the other.
_slots: dict[frozenset[str], Slot] = {}
_UNSCALED, _PARTS = "_mlflow_tfmon_unscaled", "_mlflow_tfmon_parts"


@dataclass(frozen=True)
class Slot:
    """Where a loss waits for the row of its step.

    Attributes:
        values: the loss, 1 if it is of the step that is being made, and what the loss is made of.
        parts: names of what the loss is made of.
    """

    values: tf.Variable
    parts: tuple[str, ...]

    def take(self) -> tf.Tensor:
        """The values; a step without a tape has no loss: that of an earlier one is not its."""
        graph.keep_alive(self.values)
        taken = self.values.read_value()
        self.values.assign(tf.zeros_like(self.values))
        return taken


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


def name_parts(loss: Any, parts: dict[str, list[Any]]) -> None:
    """Remembers what a loss is made of: by name, tensors that add up to the part."""
    setattr(loss, _PARTS, parts)


def _note(target: Any, sources: Any) -> None:
    if not graph.can_record() or tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return
    # Gradients with respect to anything but variables (a gradient penalty, a saliency map) are no training.
    variables = [v for v in tf.nest.flatten(sources) if isinstance(graph.raw(v), tf.Variable)]
    if not variables:
        return
    # What is minimized is the sum of all that was given as target.
    targets = [getattr(t, _UNSCALED, t) for t in tf.nest.flatten(target) if t is not None]
    parts: dict[str, list[Any]] = getattr(targets[0], _PARTS, {}) if len(targets) == 1 else {}
    slot = _slot(variables, tuple(parts))
    graph.keep_alive(slot.values)
    slot.values.assign([_sum(targets), 1.0, *(_sum(some) for some in parts.values())])


def _sum(tensors: list[Any]) -> tf.Tensor:
    sums = [tf.reduce_sum(tf.cast(t, tf.float64)) for t in tensors]
    return sums[0] if len(sums) == 1 else tf.add_n(sums)


def _slot(variables: list[Any], parts: tuple[str, ...]) -> Slot:
    keys = frozenset(graph.key(v) for v in variables)
    if keys not in _slots:
        weakref.finalize(graph.raw(variables[0]), _slots.pop, keys, None)
    if keys not in _slots or _slots[keys].parts != parts:  # the model was compiled anew
        _slots[keys] = Slot(lasting_variable(2 + len(parts)), parts)
    return _slots[keys]


def loss_of(keys: frozenset[str]) -> Slot | None:
    """The slot of the loss whose gradients go to these variables (most of them shared), or None."""
    best = max(_slots, key=lambda slot: (len(slot & keys), -len(slot)), default=frozenset[str]())
    return _slots[best] if best & keys else None
