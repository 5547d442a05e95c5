"""Random numbers of the process, which are the training's: what is done beside it takes none of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def python_and_numpy() -> tuple[Any, Any]:
    """The state of Python's and of NumPy's shared generator."""
    return random.getstate(), np.random.get_state(legacy=True)


def restore(python: Any, numpy: Any) -> None:
    """Puts the shared generators back to where they were."""
    random.setstate(python)
    np.random.set_state(numpy)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Gives back what is taken of Python's and NumPy's random numbers meanwhile.

    Libraries draw from them unasked: MLflow for the name of a run that has none, and for how long it waits before it
    asks a server again (3.1 to 3.17). Where none were taken nothing is put back: what another thread draws is its own.

    Example:
        >>> with same_random_numbers():
        ...     sample = np.random.normal(size=100)
    """
    python, numpy = python_and_numpy()
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
        if not _same(np.random.get_state(legacy=True), numpy):
            np.random.set_state(numpy)


def _same(now: Any, before: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(now, before, strict=True))
