"""The records that flow from a training to MLflow: plain data, shared by the trainer and the delivery process.

A *recording* is all that was measured within one MLflow run. It is an ordered list of records. Each record has a
kind (a class below, or in `measured`), a JSON body (the dataclass's fields) and, for blocks of numbers, raw float64
bytes (`coding`). Nothing in here knows TensorFlow or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Union

from mlflow_tfmon.stream.measured import (
    BEGINNING as BEGINNING,  # whoever knows the records finds all of them here
)
from mlflow_tfmon.stream.measured import (
    Activations,
    DeepSteps,
    EpochEnded,
    Histograms,
    LeftOut,
    Logged,
    Lost,
    Overwritten,
    Paused,
    Steps,
    StreamOpened,
)
from mlflow_tfmon.stream.measured import LayerActivations as LayerActivations
from mlflow_tfmon.stream.measured import Variable as Variable


@dataclass(frozen=True)
class RunStarted:
    """Whose run takes the recording; always the first record.

    Attributes:
        tracking_uri: MLflow tracking URI.
        registry_uri: MLflow model registry URI.
        experiment_id: experiment of the run.
        run_id: the run, or None if no run could be made yet (the store was away): then delivery makes it.
        run_name: name for a run that delivery makes, or None.
        tags: tags to set on the run.
        start_time: Unix time of the start, seconds.
        owned: whether this recording made the run, and so must end it if the trainer dies.
        active: whether it is the active run of the trainer: one that nobody else will end if the trainer dies.
        max_points: bound on the points of one series in MLflow.
        max_variables: how many variables get series of their own in MLflow.
        report: whether a report is made at the end.
        tensorboard: whether event files are made at the end.
        experiment_name: the experiment's name where its id was not known, or None.
        past: how far earlier recordings of the run had come, as `past.Past.as_dict` gives it.
        sinks: where else it goes, as the setting of that name says; paths are absolute.
    """

    tracking_uri: str
    registry_uri: str
    experiment_id: str
    run_id: str | None
    run_name: str | None
    tags: dict[str, str]
    start_time: float
    owned: bool
    active: bool = False
    max_points: int = 320
    max_variables: int = 50
    report: bool = False
    tensorboard: bool = False
    experiment_name: str | None = None
    past: dict[str, Any] = field(default_factory=dict)
    sinks: str = ""


@dataclass(frozen=True)
class Premises:
    """What is known of a training before its first step, as `detectors.premises.Premises` tells it.

    Attributes:
        about: its fields, as `dataclasses.asdict` gives them.
        prefix: as in `StreamOpened`.
        step: steps of the model that were in the run by then.
    """

    about: dict[str, Any]
    prefix: str = ""
    step: int = 0


@dataclass(frozen=True)
class Problems:
    """The problems of the training as they stand at a step; each such record takes the place of the one before.

    Attributes:
        step: optimizer steps done by then.
        time: Unix time, seconds.
        found: each as `dataclasses.asdict` gives a `detectors.problem.Problem`.
    """

    step: int
    time: float
    found: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Facts:
    """Params, tags and single metrics of the run.

    Attributes:
        params: logged where the run has no other value for them yet; a clash is kept as first logged.
        tags: set.
        metrics: (key, value, step).
        time: Unix time, seconds.
        register: the run's tag that says which model -> the registered model of which that is to be a version.
    """

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[tuple[str, float, int], ...] = ()
    time: float = 0.0
    register: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A small text artifact."""

    path: str
    text: str


@dataclass(frozen=True)
class DatasetUsed:
    """A dataset input: `dataset` is `mlflow.data.Dataset.to_dict()`; context is "train" or "eval"."""

    dataset: dict[str, str]
    context: str
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSaved:
    """A model in MLflow format in the folder `path` (within the recording's folder), to become a logged model.

    Attributes:
        path: folder, relative to the recording's.
        name: name of the logged model.
        step: the step (epoch) it is of.
        metrics: metrics to link to it.
        registered_model_name: where to register what `pointers` name when the training is over, or None.
        tags: tags of the logged model.
        pointers: tags of the run that are its id as soon as it is whole, such as "tfmon.best_model".
        drops: paths of earlier ones that it takes the place of.
        datasets: the data that it was trained and validated on: "train" or "eval" -> (name, digest).
    """

    path: str
    name: str
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    registered_model_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    pointers: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Flushed:
    """All that was measured until now has been recorded: bring MLflow up to date, files included."""

    time: float


@dataclass(frozen=True)
class RunEnded:
    """The recording is over.

    Attributes:
        status: "FINISHED", "FAILED" or "KILLED"; set on the run by delivery if `set_status`.
        set_status: whether the run is still to be ended (False if its owner does that, or has done it).
        reason: why it failed, "" if it did not.
    """

    time: float
    status: str
    set_status: bool
    reason: str = ""


Record = Union[
    RunStarted, StreamOpened, Steps, DeepSteps, Histograms, Logged, EpochEnded, Activations, Premises, Problems,
    Paused, Lost, Overwritten, LeftOut, Facts, Text, DatasetUsed, ModelSaved, Flushed, RunEnded,
]  # fmt: skip
