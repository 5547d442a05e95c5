"""Detector of trainings whose processes need more and more memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table

MEMORY, FREE = "process_memory_mb", "memory_free_mb"
_PARTS = 6


def detect(
    history: History,
    *,
    min_share: float = 0.1,
    min_share_in_first_epoch: float = 0.25,
    min_mb: float = 100.0,
    min_samples: int = 12,
) -> Iterator[Problem]:
    """Finds memory that grows in a straight line: before half of what was free is gone, and if it will not last.

    What grows and then stays (a cache, a shuffle buffer that fills) is not reported once an epoch has ended without
    more. Nor is what the planned steps will not use up.

    Args:
        history: the training up to some step.
        min_share: least share of what was free that is used since the first epoch.
        min_share_in_first_epoch: the same while no epoch has ended, in which caches fill.
        min_mb: least growth, MB.
        min_samples: samples (one each ten seconds) before which nothing is reported.
    """
    ends = history.epochs.column("step")
    first_end = float(ends.mean[0, 0]) if len(ends) else history.step
    later = history.system.since(first_end)
    rows, least = (
        (later, min_share)
        if len(later) >= min_samples
        else (history.system.since(history.at(0.1)), min_share_in_first_epoch)
    )
    used, free = rows.column(MEMORY), rows.column(FREE)
    if len(used) < min_samples or not len(free):
        return
    growth, left = _growth(used), float(free.mean[-1, 0])
    steps = used.last[-1] - used.first[0]
    if growth < min_mb or growth < least * (growth + left) or steps <= 0:
        return
    lasts = left / growth * steps
    unless = (
        "" if len(later) >= min_samples else ", unless it ends with the first epoch, as that of cache() does"
    )
    if history.total_steps and lasts > history.total_steps - history.step:
        return
    yield Problem(
        "memory_growth", "warning", int(used.first[0]), (),
        f"The memory of this training's processes has grown by {growth:,.0f} MB in {steps:,.0f} steps, evenly "
        f"({growth / (growth + left):.0%} of what was free; threshold: {least:.0%}): the {left:,.0f} MB that are free "
        f"will last for {lasts:,.0f} steps more{unless}.",
        "Find what is kept of each step: a list of losses that are tensors (keep float(loss)), a function that is "
        "traced again and again, cache() after a random augmentation; tracemalloc tells which lines allocate.",
        history.step, 0.8,
    )  # fmt: skip


def _growth(used: Table) -> float:
    """By how much memory has grown, if it did so evenly: in each part of the time, not less at the end; else 0."""
    parts = [float(np.median(part)) for part in np.array_split(used.mean[:, 0], _PARTS)]
    rises = np.diff(parts)
    if (rises <= 0).any() or rises[-2:].mean() < 0.5 * rises.mean():
        return 0.0
    return float(rises.mean() * _PARTS)
