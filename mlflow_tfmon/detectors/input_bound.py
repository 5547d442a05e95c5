"""Detector of trainings that wait for their data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem

_BETWEEN = "/between_steps_ms"


def detect(
    history: History,
    *,
    min_share: float = 0.5,
    min_wait_s: float = 0.005,
    min_lost_s: float = 5.0,
    min_steps: int = 30,
) -> Iterator[Problem]:
    """Finds steps that spend more than half of their time waiting for a batch: at least 5 ms a step and 5 s in all.

    The median step is used, so that a slow first batch is not reported. Of several workers it is the one that waits
    longest, for which the others wait. Counterpart of SageMaker Debugger's "CPU bottleneck", "IO bottleneck" and "low
    GPU utilization".

    Args:
        history: the training up to some step.
        min_share: least share of a step's time that is spent waiting.
        min_wait_s: least wait of a step, seconds.
        min_lost_s: least wait in all, seconds.
        min_steps: steps before which nothing is reported.
    """
    steps, times = history.steps, history.steps.column("seconds")
    tables = [steps.column(name) for name in steps.names if name.endswith("/input_wait_ms")]
    known = [one for one in tables or [steps.column("input_wait")] if len(one) >= 10]
    if not known or len(times) < 10 or history.step < min_steps:
        return
    waits = max(known, key=lambda one: float(np.median(one.mean)))
    wait, step, who = float(np.median(waits.mean)), float(np.median(times.mean)), "it"
    if tables:
        alike = min(float(np.median(one.mean)) for one in known) >= 0.5 * wait
        worker = waits.names[0].split("/")[0]
        who = "each worker" if alike else worker.replace("_", " ")
        # Where a distributed dataset has an end, all wait for whoever asks for its batch last: what that one does
        # before is no input.
        between = [name for name in steps.names if name.endswith(_BETWEEN)]
        longest = max((steps.median(name) for name in between), default=0.0)
        wait = (wait - max(0.0, longest - steps.median(worker + _BETWEEN))) / 1e3
    lost = wait * history.step
    if step > 0 and wait >= min_wait_s and wait >= min_share * step and lost >= min_lost_s:
        yield Problem(
            "input_bound", "warning", int(waits.first[0]), (),
            f"A step takes {step * 1e3:.3g} ms and {who} spends {wait * 1e3:.3g} ms of it waiting for its batch "
            f"({wait / step:.0%}; threshold: {min_share:.0%}): {lost:.0f} s lost so far.",
            "Prepare batches while the model trains: dataset.map(..., num_parallel_calls=tf.data.AUTOTUNE)"
            ".prefetch(tf.data.AUTOTUNE), and cache() what does not change; for a PyDataset, pass workers=4.",
            history.step, 0.9,
        )  # fmt: skip
