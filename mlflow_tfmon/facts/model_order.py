"""Position of a training among its script's models and their fits: stable when the script is restarted."""

from __future__ import annotations

import uuid
import weakref
from typing import Any

PROCESS = uuid.uuid4().hex  # a mark of this process
_fits: dict[int, int] = {}  # that each model has had, by its `id`
_places: dict[int, int] = {}  # of the models whose training came to an end, by their `id`
_models = 0  # how many those were, those that are gone as well


def fits(model: Any) -> int:
    """How many fits a model has had in this process, to their ends."""
    return _fits.get(id(model), 0)


def place(model: Any) -> int:
    """How many other models this process had trained, to the end, before this one."""
    return _places.get(id(model), _models)


def ended(model: Any) -> None:
    """Counts a model whose training has come to its end."""
    global _models
    if id(model) not in _places:
        _places[id(model)] = _models
        _models += 1
        weakref.finalize(model, _forget, id(model))


def fit_ended(model: Any) -> None:
    """Counts a fit that has come to its end."""
    ended(model)
    _fits[id(model)] = fits(model) + 1


def _forget(key: int) -> None:
    _places.pop(key, None)
    _fits.pop(key, None)
