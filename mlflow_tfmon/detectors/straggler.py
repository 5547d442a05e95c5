"""Detector of a worker for which the others wait."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem

_TIME, _WAIT = "/step_time_ms", "/input_wait_ms"


def detect(
    history: History,
    *,
    min_share: float = 0.3,
    min_wait_s: float = 0.005,
    min_lost_s: float = 5.0,
    min_steps: int = 30,
) -> Iterator[Problem]:
    """Finds one worker of several that keeps the others waiting for 30% of a step, at least 5 ms of it and 5 s in all.

    Compared are the medians of the workers' own times, from the end of a step to their gradients of the next, with the
    next slowest: workers that are slow in turn, or several that are equally slow, are not reported.

    Args:
        history: the training up to some step.
        min_share: least share of a step's time that the others wait.
        min_wait_s: least wait in a step, seconds.
        min_lost_s: least wait in all, seconds.
        min_steps: steps before which nothing is reported.
    """
    names = [name for name in history.steps.names if name.endswith(_TIME)]
    times = history.steps.column("seconds")
    if len(names) < 2 or len(times) < 10 or history.step < min_steps:
        return
    own, step = history.steps.only(names).medians() / 1e3, float(np.median(times.mean))
    if np.isnan(own).any():
        return
    *_, next_at, at = np.argsort(own)
    wait, worker = float(own[at] - own[next_at]), names[at].removesuffix(_TIME)
    if step <= 0 or wait < max(min_wait_s, min_share * step) or wait * history.step < min_lost_s:
        return
    waits = history.steps.column(worker + _WAIT)
    batch = float(np.median(waits.mean)) / 1e3 if len(waits) else 0.0
    name, other = (names[one].removesuffix(_TIME).replace("_", " ") for one in (at, next_at))
    yield Problem(
        "straggler", "warning", int(times.first[0]), (),
        f"Every step waits for {name}: its gradients take {own[at] * 1e3:.3g} of {step * 1e3:.3g} ms, "
        f"{batch * 1e3:.3g} ms of that waiting for a batch; the next slowest, {other}, needs "
        f"{own[next_at] * 1e3:.3g} ms. That is {wait / step:.0%} of the time (threshold: {min_share:.0%}), "
        f"{wait * history.step:.0f} s so far; the sum over all workers, the update and callbacks take "
        f"another {max(0.0, 1 - own[at] / step):.0%}.",
        "Speed up its input: see where it reads its files, and prefetch()." if batch > 0.5 * wait else
        "Look at that machine: other processes on it, a slower processor or GPU, a lower clock (heat), longer examples "
        "in its share of the data.",
        history.step, 0.9,
    )  # fmt: skip
