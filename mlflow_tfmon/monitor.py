"""Monitor: one watched training, from its first step to its last."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import mlflow
import tensorflow as tf

from mlflow_tfmon import claims, probes, resuming
from mlflow_tfmon import pipeline as pipelines
from mlflow_tfmon.activations import ActivationWatch
from mlflow_tfmon.checkpoints import moments
from mlflow_tfmon.checkpoints.keeper import Moment
from mlflow_tfmon.checkpoints.restoring import Checkpoint
from mlflow_tfmon.checkpoints.state import Callbacks
from mlflow_tfmon.complaints import plain_epoch, plain_numbers, say_what_is_missing
from mlflow_tfmon.epoch_metrics import measured
from mlflow_tfmon.errors import SettingError, contained, quiet, say_once
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.facts.premises import Telling
from mlflow_tfmon.pauses import Pauses
from mlflow_tfmon.pipeline import Pipeline
from mlflow_tfmon.probes import cluster, graph, histograms
from mlflow_tfmon.problems.watch import Watch
from mlflow_tfmon.settings import Settings, autolog_settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.tracking.names import GRAPH

_NOT_CHIEF = "this is worker {}; the run that takes the training is the chief's."


class Monitor:
    """Watches one training: its steps, its epochs, and what it was made of.

    Every optimizer step that is made while the monitor is on is recorded, also within a `tf.function`, provided that
    the function is traced (called for the first time) after the monitor was started or autologging enabled.

    Args:
        model: the Keras model that is trained. Without it, whatever this thread trains is taken.
        optimizer: a Keras optimizer of a custom loop, or several, if the model is not compiled with it: its state is
            part of the checkpoints, and comes back with `resume`.
        run_id: MLflow run that takes the training. Default: the active run, else one is made.
        total_steps: how many optimizer steps the training will make, so that the progress bar tells the time left.
        **settings: any of `mlflow_tfmon.settings.Settings`, such as `monitor="val_accuracy"`.

    Raises:
        SettingError: for an unknown setting, or a value that it can't have.

    Example:
        ```python
        with mlflow_tfmon.Monitor(model, monitor="val_loss") as monitor:
            for epoch in range(epochs):
                for x, y in train_ds:
                    train_step(x, y)
                monitor.log_epoch(epoch, {"val_loss": validate(model)})
        ```
    """

    def __init__(
        self,
        model: Any = None,
        *,
        optimizer: Any = None,
        run_id: str | None = None,
        total_steps: int | None = None,
        **settings: Any,
    ) -> None:
        if model is not None and not hasattr(model, "trainable_variables"):
            raise SettingError(
                f"model={model!r}: model must be a Keras model, or None for whatever is trained."
            )
        self.model = model
        self.settings = Settings.make(**settings)
        if settings.get("resume") and (model is None or run_id):
            raise SettingError(
                "resume: it needs the model, and takes the place of run_id: Monitor(model, resume=...)."
            )
        if model is not None and not run_id:
            resuming.prepare(self.settings.resume)
        self._optimizers = [] if optimizer is None else list(tf.nest.flatten(optimizer))
        self._checkpoint: Checkpoint | None = None
        self.callbacks: Callbacks | None = None  # of the fit that is watched
        self.total_steps = total_steps
        self.arguments: FitArguments | None = None  # of the fit that is watched
        self._run_id = run_id
        self._thread = threading.get_ident()
        self._pipeline: Pipeline | None = None
        self._made_pipeline = False
        self._rings: list[Ring] = []
        self._activations = ActivationWatch(model)
        self.premises = Telling(model)
        self._epoch_offset: int | None = None
        self._first_step = 0
        self._pauses = Pauses()
        self.last_epoch = 0
        self.last_metrics: dict[str, float] = {}

    @classmethod
    def with_settings(cls, model: Any, settings: Settings, run_id: str | None = None) -> Monitor:
        """A monitor with settings that have been checked."""
        monitor = cls(model, run_id=run_id, resume=None)  # whoever checked them has prepared what they resume
        monitor.settings = settings
        return monitor

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, or None before the start or while the tracking server is away."""
        return None if self._pipeline is None else self._pipeline.run.run_id

    @property
    def first_epoch(self) -> int:
        """The epoch with which the training begins: 0, or with `resume` the one after the checkpoint's."""
        return 0 if self._checkpoint is None else self._checkpoint.first_epoch

    # -- from start to end -----------------------------------------------------------------------------------------
    def start(
        self, *, stay_active: bool = True, thread: int | None = None, bar: bool = True, in_fit: bool = False
    ) -> Monitor:
        """Starts watching.

        Args:
            stay_active: whether a run made for the training becomes the active MLflow run.
            thread: the thread that trains; default: this one.
            bar: whether there is a progress bar, where one can be seen.
            in_fit: whether a fit is beginning, which has a bar and will call `restore_fit` once the model is built.

        Raises:
            SettingError: the model is not the one that is to be resumed.
        """
        if self in claims.active:
            return self
        if self.settings.silent:
            quiet(True)
        self._thread = thread or threading.get_ident()
        self._checkpoint = None if self.model is None else resuming.take(self.settings.resume)
        if self._checkpoint is not None and not in_fit:
            self._checkpoint.restore(self.model, self._optimizers)
        place = cluster.place()
        if place is not None and place.index > 0:
            say_once("not the chief", f"mlflow_tfmon: {_NOT_CHIEF.format(place.index)}", logging.INFO)
            with contained("starting the monitor", "this worker's part of each step is not recorded"):
                probes.install(self, claims.claim)
            return self
        if self._checkpoint is not None:
            run: runs.Run | None = self._checkpoint.run(thread, stay_active)
        else:
            run = runs.of_id(self._run_id) if self._run_id else runs.active(thread)
        with contained("starting the monitor", "this training is not recorded"):
            if run is None:
                run = runs.start(self.settings.extra_tags, stay_active)
            probes.install(self, claims.claim)
            probes.also(
                mlflow.MlflowClient,
                "set_terminated",
                pipelines.watch_run_end,
                "a run's last steps may be missing",
            )
            self._pipeline, self._made_pipeline = Pipeline.of(run, self.settings)
            resuming.go_on(self.model, self._keys(), self._checkpoint, self._pipeline)
            if self._checkpoint is not None:
                self._epoch_offset = self._checkpoint.state.about["first_epoch"]
            self._first_step = self._pipeline.recording.steps_of(self._keys())
            claims.active.append(self)
            if bar and not in_fit and not self.settings.silent:
                self._pipeline.show()
            self.tell_premises()
            for ring in probes.rings_of(self._keys()):
                if not pipelines.DRAIN.has(ring):
                    ring.taken = ring.written()  # what it did before was another training, or none
                    self.attach(ring)
        if self._pipeline is None:
            probes.remove(self)
        return self

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """Stops watching, and waits a little until MLflow has everything; a run made for the training ends.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            reason: why it failed.
        """
        if self in claims.active:
            claims.active.remove(self)
        pipeline = self._pipeline
        probes.remove(self)
        if pipeline is None:
            with contained("ending the monitor", "this worker's last steps may be missing"):
                pipelines.DRAIN.flush()
            return
        if self.settings.tensorboard:
            with contained("reading the training's graph", "TensorBoard's files lack it"):
                told = [
                    graph.as_text(one) for one in [ring.graph() for ring in self._rings] if one is not None
                ]
                self.record(*[records.Text(GRAPH, text) for text in told[-1:]])
        with contained("ending the monitor", "what was recorded last may come late"):
            pipeline.release(self._rings)
            pipeline.hide()
            if status == "FINISHED":
                made = pipeline.recording.steps_of(self._keys()) - self._first_step
                say_what_is_missing(self.model, made, pipeline.keeper(self.prefix).best)
            if pipeline.run.owned and self._made_pipeline:
                pipeline.close(status, reason)
            elif not pipeline.closed:
                pipeline.flush()
        self._rings.clear()
        self._pipeline = None
        if self.settings.silent:
            quiet(autolog_settings().silent)

    def __enter__(self) -> Monitor:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.end()
        else:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.end(status, f"{type(error).__name__}: {error}")

    # -- what the user tells ---------------------------------------------------------------------------------------
    def log(self, **values: float) -> None:
        """Records figures of your own at the current step, as `batch/<name>`.

        Args:
            **values: numbers, or tensors of one number (reading one waits for the device).

        Raises:
            SettingError: a value is not a number.

        Example:
            ```python
            monitor.log(temperature=0.7)
            ```
        """
        numbers = plain_numbers(values, "log")
        if self._pipeline is not None:
            with contained("Monitor.log", "these figures are not recorded"):
                self._pipeline.drain()
                self._pipeline.recording.logged(numbers, self._keys())
                if isinstance(self.settings.checkpoint_save_freq, int):
                    self._consider(self._pipeline.recording.epochs_done(self.prefix), numbers, within=True)

    def step_ended(self, metrics: Mapping[str, float]) -> None:
        """Has a checkpoint made within an epoch, where one is due, by the metrics so far."""
        if self._pipeline is not None:
            with contained("a checkpoint within an epoch", "the model at this step is not kept"):
                self._pipeline.drain()
                self._consider(self._pipeline.recording.epochs_done(self.prefix), metrics, within=True)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float] | None = None) -> dict[str, float]:
        """Records the metrics of an epoch, those given and `epoch_metrics`, and the best of `monitor` so far.

        Args:
            epoch: number of the epoch in this training, from 0.
            metrics: numbers by name, such as `{"val_loss": 0.3}`.

        Returns:
            The metrics as they are recorded.

        Raises:
            SettingError: `epoch` is not a whole number from 0, or a metric is not a number.
        """
        epoch, numbers = plain_epoch(epoch), plain_numbers(metrics or {}, "log_epoch")
        numbers |= self.measured()
        self.epoch_ended(epoch, numbers)
        return numbers

    def measured(self) -> dict[str, float]:
        """What `epoch_metrics` says of the model now, on every worker: the training pauses meanwhile."""
        self.paused(time.time())
        return measured(self.model, self.settings)

    def epoch_ended(self, epoch: int, numbers: dict[str, float]) -> None:
        """Takes the metrics of an epoch, all of them."""
        if self._pipeline is None:
            return
        with contained("Monitor.log_epoch", "this epoch's metrics are not recorded"):
            self._pipeline.drain()
            number = self.epoch_offset + epoch
            recording = self._pipeline.recording
            recording.epoch_ended(number, numbers, self._keys(), self.prefix)
            self.last_epoch, self.last_metrics = number, numbers
            self._consider(number, numbers)
            steps = recording.steps_of(self._keys())
            histograms.epoch_ended(recording, self._rings, number)
            recording.append(*self._activations.look(number, steps, self.prefix, self._rings))
            recording.append(self._pauses.end())

    @property
    def epoch_offset(self) -> int:
        """The run's number of the fit's (or loop's) epoch 0: epochs of one model within one run go on."""
        if self._epoch_offset is None and self._pipeline is not None:
            self._epoch_offset = self._pipeline.recording.epochs_done(self.prefix)
        return self._epoch_offset or 0

    def new_fit(self) -> None:
        """Tells that a further fit begins, whose epochs are counted from 0 again."""
        if self._checkpoint is None:
            self._epoch_offset = None
        if self._pipeline is not None:
            self._pipeline.hide()  # Keras has one
        self.premises.again()

    def mark_seam(self) -> None:
        """Tells, in the run's tag, at which step a further fit of the model begins, if it is not the first."""
        if self._pipeline is not None:
            self.record(*self._pipeline.recording.seam(self._keys()))

    @property
    def watch(self) -> Watch | None:
        """What judges the training, while it is watched."""
        return None if self._pipeline is None else self._pipeline.watch

    def restore_fit(self, model: Any) -> bool:
        """Has a fit that is just beginning go on from the checkpoint; returns whether one is to be resumed.

        Raises:
            SettingError: the model is not the one that was saved.
        """
        checkpoint, self._checkpoint = self._checkpoint, None  # a further fit begins anew
        if checkpoint is not None:
            checkpoint.restore(model, self._optimizers)
            checkpoint.restore_fit(model, self.callbacks)
            resuming.go_on(model, self._keys(), checkpoint, self._pipeline)
        return checkpoint is not None

    def tell_premises(self) -> None:
        """Records what is known before the first step, once the model is built."""
        if self._pipeline is not None:
            self.record(*self.premises.tell(self.prefix))

    def record(self, *out: records.Record) -> None:
        """Puts records of other parts of the package (facts of the fit, models) into the journal."""
        if self._pipeline is not None:
            with contained("the journal", "some facts of this training are not recorded"):
                self._pipeline.recording.append(*out)

    @property
    def on(self) -> bool:
        """Whether the training is being watched."""
        return self._pipeline is not None

    @property
    def owns_run(self) -> bool:
        """Whether the run was made for this training."""
        return self._pipeline is not None and self._pipeline.run.owned

    @property
    def folder(self) -> Any:
        """Folder of the recording, where files wait for delivery; None before the start."""
        return None if self._pipeline is None else self._pipeline.folder

    def paused(self, since: float | None) -> None:
        """Tells that training has paused (validation), or with None that it goes on: no step time spans a pause."""
        self.record(*self._pauses.told(since))

    # -- rings -----------------------------------------------------------------------------------------------------
    def claims(self, ring: Ring) -> bool:
        """Whether the steps of a ring belong to this training."""
        if self.model is None:
            return ring.thread == self._thread and not pipelines.DRAIN.has(ring)
        return bool(ring.layout.keys & self._keys())

    def attach(self, ring: Ring) -> None:
        """Records the steps of a ring."""
        if self._pipeline is not None and not any(known is ring for known in self._rings):
            self._rings.append(ring)
            name = claims.trained(ring)
            model = name if self.model is None else str(self.model.name)
            self._pipeline.attach(ring, name, model, self.total_steps, self.settings.deep_every)
            self.tell_premises()

    def trains(self, keys: frozenset[str]) -> bool:
        """Whether any of these variables is being trained."""
        return any(ring.layout.keys & keys for ring in self._rings)

    def begins(self) -> bool:
        """Whether this is the training's very beginning: a further optimizer is part of it."""
        return self._pipeline is not None and self._pipeline.recording.begins(self._keys())

    def _keys(self) -> frozenset[str]:
        if self.model is None:
            return frozenset[str]().union(*(ring.layout.keys for ring in self._rings))
        return frozenset(graph.key(v) for v in self.model.trainable_variables)

    @property
    def prefix(self) -> str:
        """What precedes the names of the model's epoch metrics in the run."""
        if self._pipeline is None or self.model is None:
            return ""
        return self._pipeline.recording.prefix_of(self._keys(), str(self.model.name))

    def _consider(self, epoch: int, metrics: Mapping[str, float], within: bool = False) -> None:
        """Has a checkpoint made where one is due."""
        if self._pipeline is not None:
            step = self._pipeline.recording.steps_of(self._keys())
            around = moments.around(
                self.model, self._pipeline.recording, self.callbacks,
                epoch=epoch, step=step, first_epoch=self.epoch_offset, within=within,
            )  # fmt: skip
            others = moments.others(self.model, self._optimizers, self._rings)
            now = Moment(self.model, epoch, step, metrics, self.arguments, within, around, others)
            self._pipeline.keeper(self.prefix).consider(now)

    @property
    def has_best(self) -> bool:
        """Whether a best model of the training is kept that MLflow can load, after what waits has been written."""
        if self._pipeline is None:
            return False
        self._pipeline.finish_checkpoints()
        return self._pipeline.keeper(self.prefix).has_best
