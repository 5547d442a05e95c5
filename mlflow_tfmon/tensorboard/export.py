"""Export of a recording as TensorBoard event files: `train` and `validation`, as Keras names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_tfmon import signals, temporary
from mlflow_tfmon.reading.recorded import RecordedRun, load_run
from mlflow_tfmon.report.layers import largest
from mlflow_tfmon.report.thin import thin
from mlflow_tfmon.tensorboard.events import EventFile
from mlflow_tfmon.tracking.names import GRAPH, MODEL

_VARIABLES = 50
_LEFT_OUT = ("time", "input_time", "input_wait", "examples")


def export(run_id: str, folder: Path, tracking_uri: str | None = None) -> list[Path]:
    """Writes a run's event files.

    Every step's figures (`batch_loss`, …), the epochs' metrics (`epoch_loss`, …; those of the validation in a folder of
    their own), the norms by variable (thinned to 1,000 points, of the 50 largest kernels), all histograms, and where
    it was kept the graph: the model's layers, and TensorFlow's ops.

    Args:
        run_id: the MLflow run.
        folder: where to write; `train` and `validation` are made in it.
        tracking_uri: the run's store; default: MLflow's current tracking URI.

    Returns:
        The folders that were written.

    Raises:
        ValueError: the run was not monitored, or nothing of it has arrived yet.
        NoTensorBoardError: TensorBoard is not installed.

    Example:
        >>> export(run_id, Path("logs"))
        [PosixPath('logs/train'), PosixPath('logs/validation')]
    """
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    run = load_run(run_id, tracking_uri)
    times = _Times(run, client.get_run(run_id).info.start_time / 1e3)
    written = [folder / "train"]
    with EventFile(written[0]) as file:
        _steps(file, run, times)
        _epochs(file, run, validation=False)
        _layers(file, run, times)
        for row in run.histograms.itertuples():
            edges = np.clip(row.edges, row.min, row.max)
            file.histogram(f"{row.kind}/{row.variable}", row.step, times(row.step), edges, row.counts)
        if model := _text(client, run_id, MODEL):
            file.model(model, times(0))
        if graph := _text(client, run_id, GRAPH):
            file.graph(graph, times(0))
    if any(_is_validation(name) for name in run.epochs):
        written.append(folder / "validation")
        with EventFile(written[1]) as file:
            _epochs(file, run, validation=True)
    return written


class _Times:
    """Tells the Unix time of a step."""

    def __init__(self, run: RecordedRun, start: float) -> None:
        column = next(
            (run.steps[c] for c in run.steps if c.rpartition(".")[2] == "time"), pd.Series(dtype=float)
        )
        known = column.dropna()
        self._steps, self._values = known.index.to_numpy(), known.to_numpy(float)
        self._start = start

    def __call__(self, step: int) -> float:
        return float(np.interp(step, self._steps, self._values)) if len(self._steps) else self._start


def _steps(file: EventFile, run: RecordedRun, times: _Times) -> None:
    for column in run.steps:
        if column.rpartition(".")[2] not in _LEFT_OUT:
            values = run.steps[column].dropna()
            prefix, _, name = column.rpartition(".")
            tag = f"{prefix}.batch_{name}" if prefix else f"batch_{name}"
            file.scalars(tag, ((step, times(step), value) for step, value in values.items()))


def _is_validation(metric: str) -> bool:
    return metric.rpartition(".")[2].startswith("val_")


def _epochs(file: EventFile, run: RecordedRun, validation: bool) -> None:
    when = run.epoch_ends.drop_duplicates("epoch").set_index("epoch").time
    for metric in run.epochs:
        if _is_validation(metric) == validation and not metric.startswith("validation_"):
            prefix, dot, name = metric.rpartition(".")
            points = run.epochs[metric].dropna().items()
            tag = f"{prefix}{dot}epoch_{name.removeprefix('val_')}"
            file.scalars(tag, ((epoch, float(when.get(epoch, 0.0)), value) for epoch, value in points))


def _layers(file: EventFile, run: RecordedRun, times: _Times) -> None:
    chosen = set(largest(run, _VARIABLES))
    found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for variables, steps, wide in run.layer_blocks():
        for quantity in filter(signals.is_drawn, wide):
            values = wide[quantity]
            for at, name in enumerate(variables):
                if name in chosen:
                    found.setdefault((quantity, name), []).append((steps, values[:, at]))
    for (quantity, name), parts in found.items():
        thinned, kept = thin(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
        file.scalars(
            f"{quantity}/{name}", ((step, times(step), v) for step, v in zip(thinned, kept, strict=True))
        )


def _text(client: Any, run_id: str, path: str) -> str:
    """A small artifact, or "" where there is none."""
    folder, _, _ = path.rpartition("/")
    if not any(item.path == path for item in client.list_artifacts(run_id, folder)):
        return ""
    with temporary.Folder() as holder:
        return Path(client.download_artifacts(run_id, path, holder)).read_text("utf-8")
