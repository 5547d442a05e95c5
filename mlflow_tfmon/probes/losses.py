"""The loss probe: what the loss of a compiled model is made of, for the row of its step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph, tape

_PART, _NOT_RECORDED = "the loss probe", "what the loss is made of is not recorded"
_PLAIN = "_mlflow_tfmon_plain"
_underway = threading.local()


@dataclass
class _Parts:
    """What has been seen of a loss that is being computed.

    Attributes:
        outputs: the losses of the outputs, unweighted, as Keras names their metrics.
        additional: losses of layers (`add_loss`, regularizers), each added once.
        adding: whether Keras is adding them up now; a user's method may look at them as well.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    additional: list[Any] = field(default_factory=list)
    adding: bool = False


def _parts() -> _Parts | None:
    return getattr(_underway, "parts", None)


@contextlib.contextmanager
def _collecting(parts: _Parts | None) -> Iterator[None]:
    before, _underway.parts = _parts(), parts
    try:
        yield
    finally:
        _underway.parts = before


def watch_total(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Trainer._compute_loss`, by which Keras's train step has the loss computed, also by a user's method."""

    def _compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        parts = _Parts()
        with _collecting(parts):
            total = original(self, *args, **kwargs)
        with contained(_PART, _NOT_RECORDED):
            _name(total, parts)
        return total

    return _compute_loss


def watch_sum(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Trainer.compute_loss`, which adds up the losses of outputs and layers."""

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        parts = _parts() or _Parts()
        with _collecting(parts):
            # Else what the layers add is the whole loss.
            parts.adding = getattr(self, "_compile_loss", None) is not None
            total = original(self, *args, **kwargs)
            parts.adding = False
        with contained(_PART, _NOT_RECORDED):
            _name(total, parts)
        return total

    return compute_loss


def watch_compiled(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `CompileLoss.call`, which computes the loss of each output."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _note_each(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            with contained(_PART, _NOT_RECORDED):
                if self._flat_losses:
                    self._flat_losses = [
                        one._replace(loss=getattr(one.loss, _PLAIN, one.loss)) for one in self._flat_losses
                    ]

    return call


def watch_build(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `CompileLoss.build`, by which the first call finds out what there is to compute."""

    def build(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _note_each(self)
        return result

    return build


def _note_each(compiled: Any) -> None:
    """Has each of several losses noted for the time of a call."""
    with contained(_PART, _NOT_RECORDED):
        parts, losses = _parts(), compiled._flat_losses
        if parts is not None and losses is not None and len(losses) > 1:
            compiled._flat_losses = [
                one._replace(loss=_noting(one.loss, f"{one.name}_loss", parts)) for one in losses
            ]


def _noting(loss: Callable[..., Any], name: str, parts: _Parts) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        value = loss(*args, **kwargs)
        names = [name, *(f"{name}_{n}" for n in range(2, 2 + len(parts.outputs)))]
        parts.outputs[next(n for n in names if n not in parts.outputs)] = value
        return value

    setattr(noting, _PLAIN, loss)
    return noting


def watch_additional(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Wraps the methods by which a layer tells of its own losses."""

    def losses(self: Any) -> list[Any]:
        found = original(self)
        parts = _parts()
        if parts is not None and parts.adding:
            parts.additional += found
        return found

    return losses


def _name(total: Any, parts: _Parts) -> None:
    found = {name: [value] for name, value in parts.outputs.items()}
    if parts.additional:
        found["regularization_loss"] = parts.additional
    here = graph.tracing()
    if not tf.is_tensor(total) or not found:
        return
    if here is not None:  # what was computed within another function does not exist here
        found = {name: some for name, some in found.items() if all(one.graph is here for one in some)}
    tape.name_parts(total, found)
