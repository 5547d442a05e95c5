"""Preservation of the training's random state, and of the counters in names, around work done beside it."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_OURS = "mlflow_tfmon"  # prefix of the names of this package's threads


def python_and_numpy() -> tuple[Any, Any]:
    """Returns the state of Python's and of NumPy's shared generator."""
    return random.getstate(), np.random.get_state(legacy=True)


def restore(python: Any, numpy: Any) -> None:
    """Restores the shared generators."""
    random.setstate(python)
    np.random.set_state(numpy)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restores Python's and NumPy's random state afterwards, and the counters in Keras's names.

    Libraries draw random numbers unasked: MLflow for the name of a run without one, and for its delay before it retries
    a request (3.1 to 3.17). If none were drawn, nothing is restored, since another thread may draw its own. A model
    created beside the training would make the user's next one `sequential_2`.

    On a thread of this package, such as the one that writes checkpoints, random numbers are not restored: the training
    draws meanwhile, and would get the same ones again. Work on such threads draws none.

    Example:
        >>> with same_random_numbers():
        ...     sample = np.random.normal(size=100)
    """
    python, numpy = python_and_numpy()
    names = dict(_keras_names())
    try:
        yield
    finally:
        if not threading.current_thread().name.startswith(_OURS):
            if random.getstate() != python:
                random.setstate(python)
            if not _same(np.random.get_state(legacy=True), numpy):
                np.random.set_state(numpy)
        if (now := _keras_names()) != names:
            now.clear()
            now.update(names)


def _same(now: Any, before: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(now, before, strict=True))


def _keras_names() -> dict[str, int]:
    """Returns how many objects of each class Keras 3 has named on this thread (3.7 to 3.15)."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    attribute = getattr(state, "get_global_attribute", None)
    return (attribute("object_name_uids") if attribute is not None else None) or {}
