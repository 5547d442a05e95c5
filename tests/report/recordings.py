"""Recorded runs with NumPy's numbers, delivered by the real deliverer, without TensorFlow."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow
import numpy as np

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.records import (
    Activations,
    DeepSteps,
    EpochEnded,
    Facts,
    Histograms,
    LayerActivations,
    Record,
    RunEnded,
    Steps,
    StreamOpened,
    Variable,
)
from tests.delivery import recordings

COLUMNS = ("step", "time", "loss", "learning_rate", "grad_norm")
KERNELS = ("net.first.kernel", "net.second.kernel", "net.<script>alert(1)</script>.kernel")


def histogram(values: np.ndarray) -> np.ndarray:
    """The row of one histogram, by NumPy."""
    counts = np.histogram(values, bins.EDGES)[0]
    return np.array([*counts, 0, (values == 0).sum(), values.min(), values.max()], float)


def training(steps: int, seed: int = 0, epochs: int = 5, nan_at: int | None = None) -> list[Record]:
    """The records of a training whose loss falls as 2 exp(-step / steps), with a spike of 50 in its middle."""
    random = np.random.default_rng(seed)
    variables = tuple(Variable(name, (6, 4), True) for name in KERNELS)
    number = np.arange(1, steps + 1)
    loss = 2 * np.exp(-number / steps) + 0.02 * random.normal(size=steps)
    loss[steps // 2] = 50.0
    if nan_at is not None:
        loss[nan_at - 1 :] = np.nan
    norms = np.abs(random.normal(1, 0.1, (steps, len(variables))))
    norm = np.sqrt((norms**2).sum(axis=1))
    rows = np.column_stack([number, recordings.BEGUN + 0.01 * number, loss, np.full(steps, 0.1), norm, norms])
    opened = StreamOpened(
        0, "", variables, COLUMNS, ("grad_norm",), ("weight_norm", "update_ratio"), steps, "net"
    )
    records: list[Record] = [opened]
    records += [Steps(0, recordings.BEGUN, rows[at : at + 5000]) for at in range(0, steps, 5000)]
    deep = number[:: max(1, steps // 40)]
    figures = np.abs(random.normal(1, 0.1, (len(deep), 2 * len(variables)))) * ([3.0] * 3 + [1e-3] * 3)
    records.append(DeepSteps(0, recordings.BEGUN, np.column_stack([deep, figures])))
    drawn = [[histogram(random.normal(0, 0.1 + step / steps, 24)) for _ in range(6)] for step in deep]
    records.append(
        Histograms(0, recordings.BEGUN, np.column_stack([deep, np.array(drawn).reshape(len(deep), -1)]))
    )
    for epoch in range(epochs):
        step, when = steps * (epoch + 1) // epochs, recordings.BEGUN + epoch
        metrics = {
            "loss": 2 / (epoch + 1),
            "val_loss": 1.5,
            "accuracy": 0.5 + epoch / 20,
            "val_accuracy": 0.5,
            "<script>alert(3)</script>": 0.1,
        }
        layers = tuple(
            LayerActivations(
                name.removesuffix(".kernel"), "relu", 4, False, 0.5, 1.0, 0.4, 0.25, float("nan")
            )
            for name in KERNELS
        )
        records += [EpochEnded(epoch, step, when, metrics), Activations(epoch, step, when, 32, layers)]
    return records


def delivered(
    store: str, home: Path, *records: Record, name: str = "a run", report: bool = False, parent: str = ""
) -> str:
    """Has a recording delivered into a new run; returns its id."""
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    tags = {"mlflow.parentRunId": parent} if parent else None
    run_id = client.create_run("0", run_name=name, tags=tags).info.run_id
    started = recordings.started(store, run_id, owned=False, report=report)
    params = Facts(params={"opt_name": "adam"}, tags={"team": "<b>ours</b>"}, time=time.time())
    ended = RunEnded(recordings.BEGUN + 1000, "FINISHED", True)
    folder = recordings.write(home, started, params, *records, ended)
    deliverer = Deliverer(folder)
    while not deliverer.done:
        deliverer.advance(trainer_gone=True)
        assert deliverer.status.error is None, deliverer.status.error
    assert not deliverer.status.rejected, deliverer.status.rejected
    return run_id
