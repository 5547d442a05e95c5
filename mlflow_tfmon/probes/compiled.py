"""Keras's compiled train functions: one that was built unwatched is built anew."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from mlflow_tfmon.errors import contained

_watched: weakref.WeakSet[Any] = weakref.WeakSet()  # train functions that were built with the probes in


def watch_making(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `make_train_function`, by which `fit` and `train_on_batch` ask for the function of a model."""

    def make_train_function(self: Any, force: bool = False) -> Any:
        known = self.train_function
        made = original(self, force or (known is not None and known not in _watched))
        with contained("noting a train function", "it is built anew for each fit"):
            _watched.add(self.train_function)
        return made

    return make_train_function


def watch(model: Any) -> None:
    """Builds a model's train function anew, if it was asked for before the probes were put in."""
    if model.train_function is not None:
        model.make_train_function()


def unwatch(model: Any) -> None:
    """Lets go of a train function that was traced with the probes in."""
    if model.train_function is not None and model.train_function in _watched:
        model.train_function = None
