"""Keras's compiled train functions: one that was built unwatched is built anew; in XLA there are two of each.

A conditional costs XLA much more than what is in it (TF 2.16 to 2.21): what its branches read is kept, what they write
is copied, and on a GPU the host waits for its predicate. `fit` calls the train function from Python for each batch. So
Python chooses: one variant measures what is measured at each step, the other, every `deep_every` steps, everything.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import keras

from mlflow_tfmon.errors import contained
from mlflow_tfmon.stream.ring import Ring

_watched: weakref.WeakSet[Any] = weakref.WeakSet()  # train functions that were built with the probes in
_running = threading.local()


def deep() -> bool | None:
    """Whether what is being traced is the deep variant of a train function; None where there are no variants."""
    variants = getattr(_running, "variants", None)
    return None if variants is None else variants.deep


def writes_to(ring: Ring) -> None:
    """Tells the train function that is being traced, if it has variants, into which ring it writes."""
    variants = getattr(_running, "variants", None)
    if variants is not None:
        variants.ring = weakref.ref(ring)


class Variants:
    """A train function of a model that XLA compiles: plain, and deep once it is needed.

    Attributes:
        deep: whether the deep one runs.
        ring: gives the ring that it writes into, once that is known.

    Args:
        plain: the function, which was not traced yet.
        make: makes another one.
    """

    def __init__(self, plain: Callable[..., Any], make: Callable[[], Callable[..., Any]]) -> None:
        self._plain, self._make = plain, make
        self._deep: Callable[..., Any] | None = None
        self.deep = True  # the first step is
        self.ring: Callable[[], Ring | None] = lambda: None
        self._begun, self._done = 0, 0

    def __call__(self, iterator: Any) -> Any:
        self.deep = self._due()
        function = self._plain
        if self.deep:
            function = self._deep = self._deep or self._make()
        before, _running.variants = getattr(_running, "variants", None), self
        try:
            return function(iterator)
        finally:
            _running.variants = before
            self._done += 1

    def _due(self) -> bool:
        ring = self.ring()
        if ring is None:
            self._done = 0
            return True
        if ring.begun != self._begun:  # a training begins; the first one, with the step that made the ring
            self._done = ring.done + (self._done if self._begun == 0 else 0)
            first = self._done == ring.done
            self._begun = ring.begun
            if first and not ring.done:
                return True
        return (self._done + 1) % ring.deep_every == 0


def watch_making(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `make_train_function`, by which `fit` and `train_on_batch` ask for the function of a model."""

    def make_train_function(self: Any, force: bool = False) -> Any:
        known = self.train_function
        made = original(self, force or (known is not None and known not in _watched))
        with contained("noting a train function", "it is built anew for each fit"):
            if self.train_function is not known and _has_variants(self):
                self.train_function = Variants(self.train_function, _maker(original, self))
            _watched.add(self.train_function)
        return made

    return make_train_function


def watch_beginning(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `_maybe_load_initial_counters_from_ckpt` of Keras 2, so that a model may say where a fit begins.

    Keras 3 asks it itself: for `_initial_epoch`.
    """

    def _maybe_load_initial_counters_from_ckpt(self: Any, steps: Any, epoch: int) -> Any:
        begins = getattr(self, "_initial_epoch", None)
        return original(self, steps, epoch) if begins is None else (begins, 0)

    return _maybe_load_initial_counters_from_ckpt


def _has_variants(model: Any) -> bool:
    """Whether each call of the train function is one step, compiled by XLA."""
    return (
        isinstance(model, keras.Model)
        and bool(model.jit_compile)
        and not model.run_eagerly
        and model.steps_per_execution == 1
    )


def _maker(original: Callable[..., Any], model: Any) -> Callable[[], Callable[..., Any]]:
    known = weakref.ref(model)  # which holds what calls this

    def make() -> Callable[..., Any]:
        model: Any = known()
        variants = model.train_function
        try:
            original(model, True)
            made: Callable[..., Any] = model.train_function
        finally:
            model.train_function = variants
        return made

    return make


def watch(model: Any) -> None:
    """Builds a model's train function anew, if it was asked for before the probes were put in."""
    if model.train_function is not None:
        model.make_train_function()


def unwatch(model: Any) -> None:
    """Lets go of a train function that was traced with the probes in."""
    if model.train_function is not None and model.train_function in _watched:
        model.train_function = None
