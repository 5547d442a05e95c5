"""The records that flow from a training to MLflow: plain data, shared by the trainer and the delivery process.

A *recording* is all that was measured within one MLflow run. It is an ordered list of records. Each record has a
kind (a class below), a JSON body (the dataclass's fields) and, for blocks of numbers, raw float64
bytes (`coding`). Nothing in here knows TensorFlow or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np

from mlflow_tfmon.stream import bins

# A GAN's second optimizer, which gives names to the series of both, comes after up to so many steps of the first.
BEGINNING = 5


@dataclass(frozen=True)
class Variable:
    """A trainable variable: its name (path with '.' for '/'), its shape, and whether it is a kernel."""

    name: str
    shape: tuple[int, ...]
    is_kernel: bool

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class StreamOpened:
    """The layout of one stream (one optimizer's steps); repeated under the same id if the layout changes.

    Attributes:
        stream: number of the stream within the recording.
        prefix: what precedes the names of its series: "" or, where there are several, "generator." and the like.
        variables: the variables it trains, in the order of the blocks' per-variable columns.
        columns: scalar columns of a `Steps` block, of "step", "time", "input_time", "input_wait", "examples",
            "loss", "learning_rate", "grad_norm", "grad_norm_clipped", "applied" (0 where a step did not update the
            weights: its "grad_norm_clipped" is NaN), "loss_scale", "skipped" (1 where gradients that are not finite
            made loss scaling leave the update out), and what the loss is made of ("<output>_loss",
            "regularization_loss"), "traces" (how often the step had been traced when the block was drained),
            "worker_<i>/step_time_ms". A thing that is not measured has no column.
        variable_columns: quantities of a `Steps` block per variable: after the scalars come, for each of these
            ("grad_norm", "grad_norm_clipped"), one column a variable.
        deep_columns: quantities of a `DeepSteps` block per variable: after the scalar "step" come, for each of
            these ("weight_norm", "update_ratio", "grad_zero_fraction"), one column a variable.
        total_steps: how many steps are expected in all, or None if unknown.
        model: name of the model.
        named: False while it is not known whether there are several. Within its first `BEGINNING` steps a stream may
            be opened anew under another prefix, which then is that of all its records.
    """

    stream: int
    prefix: str
    variables: tuple[Variable, ...]
    columns: tuple[str, ...]
    variable_columns: tuple[str, ...]
    deep_columns: tuple[str, ...]
    total_steps: int | None = None
    model: str = ""
    named: bool = True


@dataclass(frozen=True)
class Steps:
    """A block of consecutive optimizer steps: values has shape (steps, columns), float64, as `StreamOpened` says.

    Column "time" is Unix time in seconds at which the step's update had been done; where it could not be measured
    in the graph, the layout lacks it, and `seen` (when the block was drained) stands in for the points' timestamps.
    """

    stream: int
    seen: float
    values: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class DeepSteps:
    """A block of deep rows (every N steps): values has shape (rows, 1 + deep quantities * variables), float64.

    A NaN in "update_ratio" means that the ratio is not defined (the weights were all zero before the step).
    """

    stream: int
    seen: float
    values: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Histograms:
    """Histograms: after column 0, the step, for each of the kinds a row of `bins.WIDTH` a variable.

    The weights are those after the step, the gradient is that before clipping. At an epoch's end there are only those
    of the weights.
    """

    stream: int
    seen: float
    values: np.ndarray = field(repr=False)
    kinds: tuple[str, ...] = bins.KINDS


@dataclass(frozen=True)
class Logged:
    """Figures of the user's own at a step, from `Monitor.log(name=value)`."""

    stream: int
    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class EpochEnded:
    """Metrics at an epoch's end.

    Attributes:
        epoch: number of the epoch within the run, from 0.
        step: optimizer steps done by then.
        time: Unix time, seconds.
        metrics: as Keras names them; a non-finite value is kept here and never sent to its series.
        prefix: as in `StreamOpened`.
    """

    epoch: int
    step: int
    time: float
    metrics: dict[str, float]
    prefix: str = ""


@dataclass(frozen=True)
class LayerActivations:
    """What one layer gives for a batch, after its activation; a unit of a convolution is a filter, at all places.

    Attributes:
        layer: name, as its variables' names begin, or of a layer that has none, its own.
        activation: "relu", "sigmoid", …; "linear" or "" where there is none.
        units: how many.
        output: whether the model's output is this layer's.
        mean, std: over all elements.
        zero_fraction: share of the elements that are zero.
        dead_fraction: share of the units that are zero for the whole batch.
        saturated_fraction: share of the elements where less than 5% of the activation's largest slope is left; NaN
            for an activation that does not saturate (other than sigmoid, tanh, softsign, hard_sigmoid, hard_tanh).
    """

    layer: str
    activation: str
    units: int
    output: bool
    mean: float
    std: float
    zero_fraction: float
    dead_fraction: float
    saturated_fraction: float


@dataclass(frozen=True)
class Activations:
    """What the layers of a model give at an epoch's end for a batch of the training (`training=False`).

    Attributes:
        epoch: number of the epoch within the run, from 0.
        step: optimizer steps done by then.
        time: Unix time, seconds.
        examples: rows of the batch, 256 at most.
        layers: in the order in which the model calls them.
        prefix: as in `StreamOpened`.
    """

    epoch: int
    step: int
    time: float
    examples: int
    layers: tuple[LayerActivations, ...]
    prefix: str = ""


@dataclass(frozen=True)
class System:
    """What the training took of the machine: values by name, such as "system/process_memory_mb", at a step."""

    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class Paused:
    """From `start` to `end` (Unix time, seconds) nothing was trained (validation, say): no step time spans it."""

    start: float
    end: float


@dataclass(frozen=True)
class Overwritten:
    """So many rows of deep steps and of histograms were overwritten before they could be read."""

    stream: int
    deep_steps: int
    histograms: int


@dataclass(frozen=True)
class Lost:
    """Steps first to last of a stream were overwritten before they could be read."""

    stream: int
    first: int
    last: int


@dataclass(frozen=True)
class LeftOut:
    """What was measured and not kept, since the last such record.

    Attributes:
        rows: kind of record -> how many rows (of `Steps`, `DeepSteps`, `Histograms`), else how many records.
        why: in a clause, such as "the journal had reached its bound of 4 GB".
    """

    rows: dict[str, int]
    why: str


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
        variables: patterns of the names of those that do, separated by commas; "" for the kernels.
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
    variables: str = ""


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
class Evidence:
    """The batch of a step at which the loss or a gradient was not finite, or the loss was far above those before.

    Attributes:
        step: the step.
        time: Unix time, seconds.
        about: what is known of it, JSON-compatible: see docs/evidence.md.
        batch: a `.npz` file with its arrays; empty if it could not be had.
        prefix: as in `StreamOpened`.
    """

    step: int
    time: float
    about: dict[str, Any]
    batch: bytes = field(repr=False, default=b"")
    prefix: str = ""


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
    RunStarted, StreamOpened, Steps, DeepSteps, Histograms, Logged, EpochEnded, Activations, System, Premises, Problems,
    Paused, Lost, Overwritten, LeftOut, Evidence, Facts, Text, DatasetUsed, ModelSaved, Flushed, RunEnded,
]  # fmt: skip
