"""Assignment of a ring's steps to trainings."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlflow_tfmon.probes import models
from mlflow_tfmon.stream import workers
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.watching import pipeline

if TYPE_CHECKING:
    from mlflow_tfmon.watching.monitor import Monitor

active: list[Monitor] = []  # those that are on, in the order in which they were started
unclaimed: list[
    Callable[[Ring], None]
] = []  # told of rings that no monitor claims: autolog's, for custom loops


def claim(ring: Ring, optimizer: Any) -> None:
    """Gives a new ring to the training it belongs to; a custom loop that nobody watches yet may get a monitor."""
    workers.number(ring)
    ring.optimizer = weakref.ref(optimizer)
    if workers.reports(ring):
        pipeline.report(ring)
        return
    # Of several that would take it, the one that was started last.
    monitor = next((monitor for monitor in reversed(active) if monitor.claims(ring)), None)
    if monitor is not None:
        monitor.attach(ring)
    else:
        for adopt in unclaimed:
            adopt(ring)


def trained(ring: Ring) -> str:
    """What an optimizer trains: the first part of its variables' names if they share it, else their model's name."""
    heads = {variable.name.split(".")[0] for variable in ring.layout.variables}
    if len(heads) == 1:
        return heads.pop()
    return models.name_of(ring.layout.keys) or (f"{sorted(heads)[0]}_etc" if heads else "model")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=active.clear)  # they are the parent's
