"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlflow_tfmon.delivery.sync import find_waiting


def until(condition: Callable[[], object], seconds: float = 150) -> None:
    """Returns once a condition holds; fails if it does not within so many seconds, which is no measurement."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"it never happened; {find_waiting()}"
        time.sleep(0.05)
