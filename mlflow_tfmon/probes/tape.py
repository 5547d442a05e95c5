"""The tape probe: keeps the loss that `tf.GradientTape.gradient` differentiates, for the row of its step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph, replicas
from mlflow_tfmon.stream.ring import lasting_variable

# One slot a set of variables and replica. A variable, not a tensor, since tape and optimizer may be traced into
# different functions (or one of them run eagerly), where a tensor of the one does not exist in the other.
_slots: dict[frozenset[str], dict[tuple[int, tuple[str, ...]], _Slot]] = {}  # the last used come last
_UNSCALED, _PARTS = "_mlflow_tfmon_unscaled", "_mlflow_tfmon_parts"


@dataclass(frozen=True)
class _Slot:
    """Where a loss waits for the row of its step.

    Attributes:
        values: the loss, 1 if it is of the step that is being made (0 in replicas but the first), and what the loss is
            made of.
        parts: names of what the loss is made of.
    """

    values: tf.Variable
    parts: tuple[str, ...]

    def take(self) -> tf.Tensor:
        """The values; a step without a tape has no loss: that of an earlier one is not its."""
        graph.keep_alive(self.values)
        with replicas.at(self.values):
            taken = self.values.read_value()
            self.values.assign([0.0] * (2 + len(self.parts)))
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
    if not graph.can_record():
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
    fresh = 1.0 if replicas.index() == 0 else 0.0  # slots are added up
    slot.values.assign([_sum(targets), fresh, *(_sum(some) for some in parts.values())])


def _sum(tensors: list[Any]) -> tf.Tensor:
    sums = [tf.reduce_sum(tf.cast(t, tf.float64)) for t in tensors]
    return sums[0] if len(sums) == 1 else tf.add_n(sums)


def _slot(variables: list[Any], parts: tuple[str, ...]) -> _Slot:
    keys, place = frozenset(graph.key(v) for v in variables), (replicas.index(), parts)
    if keys not in _slots:
        _slots[keys] = {}
        weakref.finalize(graph.raw(variables[0]), _slots.pop, keys, None)
    slots = _slots[keys]
    # A model that is compiled anew may have other losses, and later these again.
    slot = slots.pop(place, None) or _Slot(lasting_variable(2 + len(parts)), parts)
    slots[place] = slot
    return slot


def _of(keys: frozenset[str]) -> list[_Slot]:
    """The slots of the loss whose gradients go to these variables (most of them shared), one a replica."""
    best = max(_slots, key=lambda slot: (len(slot & keys), -len(slot)), default=frozenset[str]())
    found = list(_slots[best].values()) if best & keys else []
    return [slot for slot in found if slot.parts == found[-1].parts]


def parts_of(keys: frozenset[str]) -> tuple[str, ...]:
    """Names of what the loss is made of whose gradients go to these variables."""
    slots = _of(keys)
    return slots[-1].parts if slots else ()


def losses_of(keys: frozenset[str]) -> list[tf.Tensor]:
    """Takes what the slots of the loss hold whose gradients go to these variables.

    What is minimized over several replicas is the sum of what each of their tapes differentiates.
    """
    return [slot.take() for slot in _of(keys)]
