"""Import of TensorBoard log directories: the train and validation folders of a training become one MLflow run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_tfmon.errors import NotThereError
from mlflow_tfmon.tags import SOURCE_TAG
from mlflow_tfmon.tensorboard.events import need_tensorboard
from mlflow_tfmon.tracking.names import clean

_TRAIN, _VALIDATION = ("train", "training"), ("validation", "val", "eval", "test")
_MAX_METRICS = 1000  # metrics that MLflow takes at once


@dataclass(frozen=True)
class Imported:
    """A training that was read.

    Attributes:
        name: its folder within the log directory, "." if it is that itself.
        run_id: the MLflow run that was made of it.
        points: how many points its series have.
    """

    name: str
    run_id: str
    points: int


def import_logs(folder: Path, experiment_id: str = "0", tracking_uri: str | None = None) -> list[Imported]:
    """Makes MLflow runs of a log directory.

    A series gets the name that MLflow's and Keras's own have: `epoch_loss` of the train folder becomes `loss`, of the
    validation folder `val_loss`; a name of another kind stays, with `val_` before it if it is of the validation.

    Args:
        folder: the log directory.
        experiment_id: of the experiment that gets the runs.
        tracking_uri: where; default MLflow's current tracking URI.

    Raises:
        ValueError: there is no event file in it.
        NoTensorBoardError: TensorBoard is not installed.

    Example:
        >>> import_logs(Path("logs"))
        [Imported(name='fit-1', run_id='…', points=1200)]
    """
    need_tensorboard()
    import mlflow

    folders = sorted({path.parent for path in folder.rglob("*tfevents*")})
    if not folders:
        raise NotThereError(f"there is no event file (*tfevents*) in {folder.absolute()}")
    trainings: dict[Path, list[Path]] = {}
    for one in folders:
        part = one.name.lower() in (*_TRAIN, *_VALIDATION) and one != folder
        trainings.setdefault(one.parent if part else one, []).append(one)
    client = mlflow.MlflowClient(tracking_uri)
    return [
        _imported(client, experiment_id, str(training.relative_to(folder)), parts)
        for training, parts in trainings.items()
    ]


def _imported(client: Any, experiment_id: str, name: str, parts: list[Path]) -> Imported:
    from mlflow.entities import Metric

    metrics = []
    for part in parts:
        validation = part.name.lower() in _VALIDATION
        for tag, step, when, value in _scalars(part):
            if math.isfinite(value):
                metrics.append(Metric(_key(tag, validation), value, int(when * 1e3), step))
    times = [metric.timestamp for metric in metrics]
    start = min(times, default=None)
    run = client.create_run(
        experiment_id,
        start_time=start,
        run_name=parts[0].absolute().name if name == "." else name,
        tags={SOURCE_TAG: str(parts[0].absolute().parent if len(parts) > 1 else parts[0].absolute())},
    )
    for at in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run.info.run_id, metrics=metrics[at : at + _MAX_METRICS], synchronous=True)
    client.set_terminated(run.info.run_id, "FINISHED", max(times, default=None))
    return Imported(name, run.info.run_id, len(metrics))


def _key(tag: str, validation: bool) -> str:
    name = tag.removeprefix("epoch_")
    return clean(f"val_{name}" if validation else name)


def _scalars(folder: Path) -> Iterator[tuple[str, int, float, float]]:
    """(tag, step, Unix time, value) of all scalars, of both versions of TensorFlow's summaries."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    accumulator = EventAccumulator(str(folder), size_guidance={TENSORS: 0, "scalars": 0})  # 0: all of them
    accumulator.Reload()
    tags = accumulator.Tags()
    for tag in tags["scalars"]:
        for event in accumulator.Scalars(tag):
            yield tag, event.step, event.wall_time, float(event.value)
    for tag in tags["tensors"]:
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            for event in accumulator.Tensors(tag):
                yield tag, event.step, event.wall_time, float(make_ndarray(event.tensor_proto))
