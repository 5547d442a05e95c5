"""Detector of trainings that wait for their data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem

_SHARE = 0.5
_WAIT = 0.005
_LOST = 5.0
_STEPS = 30


def detect(history: History) -> Iterator[Problem]:
    """Finds steps that spend more than half of their time waiting for a batch: at least 5 ms a step and 5 s in all.

    The median step is used, so that a slow first batch is not reported. Counterpart of SageMaker Debugger's "CPU
    bottleneck", "IO bottleneck" and "low GPU utilization".
    """
    waits, times = history.steps.column("input_wait"), history.steps.column("seconds")
    if len(waits) < 10 or len(times) < 10 or history.step < _STEPS:
        return
    wait, step = float(np.median(waits.mean)), float(np.median(times.mean))
    lost = wait * history.step
    if step > 0 and wait >= _WAIT and wait >= _SHARE * step and lost >= _LOST:
        yield Problem(
            "input_bound", "warning", int(waits.first[0]), (),
            f"A step takes {step * 1e3:.3g} ms and spends {wait * 1e3:.3g} ms of it waiting for its batch "
            f"({wait / step:.0%}; threshold: {_SHARE:.0%}): {lost:.0f} s lost so far.",
            "Prepare batches while the model trains: dataset.map(..., num_parallel_calls=tf.data.AUTOTUNE)"
            ".prefetch(tf.data.AUTOTUNE), and cache() what does not change; for a PyDataset, pass workers=4.",
            history.step, 0.9,
        )  # fmt: skip
