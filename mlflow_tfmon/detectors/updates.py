"""How far steps move the weights: the measure of a learning rate that no optimizer's own units are in."""

from __future__ import annotations

import numpy as np

from mlflow_tfmon.detectors.history import History

# Learning rates that people use, by optimizer: outside of these bands is no error, but a hint (Bengio, 2012; the
# defaults of Keras are within).
BANDS = {"sgd": (1e-5, 1.0), "adagrad": (1e-4, 1.0), "adadelta": (1e-4, 10.0), "ftrl": (1e-5, 1.0)}
ADAPTIVE = (1e-6, 0.03)


def band(optimizer: str) -> tuple[float, float]:
    """The usual learning rates of an optimizer."""
    return BANDS.get(optimizer.lower(), ADAPTIVE)


def update_ratio(history: History) -> tuple[float, float]:
    """What a step changes of a kernel, as a share of its norm: in the median of all kernels and rows, and at most.

    About 1e-3 is usual. NaN where it was not measured.
    """
    table = history.deep.get("update_ratio")
    if table is None or not len(table):
        return float("nan"), float("nan")
    kernels = history.over_kernels(table)
    values, peaks = kernels.mean, kernels.most
    if not np.isfinite(values).any():
        return float("nan"), float("nan")
    rows = [np.nanmedian(row) for row in values if np.isfinite(row).any()]
    tops = [np.nanmedian(row) for row in peaks if np.isfinite(row).any()]
    return float(np.median(rows)), float(max(tops))


def rate(history: History) -> float:
    """The learning rate in the median; NaN if unknown."""
    column = history.steps.column("learning_rate")
    return float(np.median(column.mean)) if len(column) else float("nan")
