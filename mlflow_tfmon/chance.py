"""Random numbers that a training shares with what is done beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Gives back what is taken of Python's and NumPy's random numbers meanwhile.

    Example:
        >>> with same_random_numbers():
        ...     sample = np.random.normal(size=100)
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
