"""Monitor: one monitored training: its steps, epochs, metrics and checkpoints, from its start to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from mlflow_tfmon import cluster, probes
from mlflow_tfmon.checkpoints import moments
from mlflow_tfmon.checkpoints.moments import Moment
from mlflow_tfmon.checkpoints.restoring import Checkpoint
from mlflow_tfmon.checkpoints.state import Callbacks
from mlflow_tfmon.errors import SettingError, contained, logger, quiet, say_once
from mlflow_tfmon.facts import fit_frames, model_order
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.facts.loop_facts import LoopFacts
from mlflow_tfmon.facts.premises import Telling
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.probes import batches, graph, histograms, hooks, objective
from mlflow_tfmon.probes.hooks import mlflow as mlflow_hooks
from mlflow_tfmon.problems.watch import Watch
from mlflow_tfmon.settings import Settings, autolog_settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tags import REGISTERED
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.tracking.names import GRAPH
from mlflow_tfmon.watching import actions, claims, resuming
from mlflow_tfmon.watching import pipeline as pipelines
from mlflow_tfmon.watching.actions import Actions
from mlflow_tfmon.watching.epoch_metrics import measured
from mlflow_tfmon.watching.pauses import Pauses
from mlflow_tfmon.watching.pipeline import DRAIN, Pipeline
from mlflow_tfmon.watching.predictions import Predictions
from mlflow_tfmon.watching.user_messages import plain_epoch, plain_numbers, say_what_is_missing

_NOT_CHIEF = "this is worker {}; the training is recorded in the chief's run."


class Monitor:
    """Monitor of one training: its steps, its epochs, and its facts.

    Records every optimizer step while it is on, also within a `tf.function`, provided that the function is traced
    (called for the first time) after the monitor was started or autologging enabled.

    Args:
        model: the trained Keras model. Without it, everything that this thread trains is recorded.
        optimizer: one or several Keras optimizers of a custom loop with which the model is not compiled: their state is
            saved in checkpoints and restored with `resume`.
        run_id: MLflow run for the training. Default: the active run, else a new one.
        total_steps: planned number of optimizer steps, so that the progress bar shows the time left.
        **settings: any of `mlflow_tfmon.settings.Settings`, such as `monitor="val_accuracy"`.

    Raises:
        SettingError: for an unknown setting or an invalid value.

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
            raise SettingError(f"model={model!r}: model must be a Keras model, or None for any model.")
        checked = Settings.make(**settings)
        if settings.get("resume") and (model is None or run_id):
            raise SettingError("resume: needs the model and replaces run_id: use Monitor(model, resume=...).")
        if model is not None and not run_id:
            resuming.prepare(checked.resume)
        self._make(model, checked, run_id, optimizers=tf.nest.flatten([] if optimizer is None else optimizer))
        self.total_steps = total_steps  # planned number, if known

    def _make(
        self, model: Any, settings: Settings, run_id: str | None, *, optimizers: Sequence[Any] = ()
    ) -> None:
        self.model = model
        self.settings = settings
        self.premises = Telling(model)
        self.known: frozenset[tuple[str, str]] = frozenset()  # problems that the run had before
        self._run_id = run_id
        self._optimizers = list(optimizers)
        self._thread = threading.get_ident()
        self._checkpoint: Checkpoint | None = None  # that it resumes
        self._pipeline: Pipeline | None = None
        self._made_pipeline = False
        self._in_fit = False
        self._rings: list[Ring] = []
        # By the keys of variables: how many optimizers have trained them, and the last one.
        self._optimizers_of: dict[frozenset[str], tuple[int, Callable[[], Any]]] = {}
        # Keys of the variables that optimizers were seen to train.
        self._trained: frozenset[str] = frozenset()
        self._epoch_offset: int | None = None
        # Number of the first epoch as the fit or loop itself counts.
        self._began_with = 0
        self._first_step = 0
        self._begun = 0.0  # monotonic time
        self._may_spend: bool | None = None
        self.callbacks: Callbacks | None = None  # of the monitored fit
        self.arguments: FitArguments | None = None  # of the monitored fit
        self.datasets: dict[str, tuple[str, str]] = {}  # of the monitored fit, as in `ModelSaved`
        self._pauses = Pauses()
        self._predictions = Predictions(settings.predictions)
        self._actions: Actions | None = None  # of a loop
        self.last_epoch = 0
        self.last_metrics: dict[str, float] = {}
        self._ended = (0, 0)  # the last epoch of a loop, and the number of steps by its end

    @classmethod
    def with_settings(cls, model: Any, settings: Settings, run_id: str | None = None) -> Monitor:
        """Returns a monitor with validated settings."""
        monitor = cls.__new__(cls)
        monitor._make(model, settings, run_id)
        monitor.total_steps = None
        return monitor

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, or None before the start or while the tracking server is away."""
        return None if self._pipeline is None else self._pipeline.run.run_id

    @property
    def steps(self) -> int:
        """The run's number of the last step of the model, as far as steps were taken from the rings."""
        return 0 if self._pipeline is None else self._pipeline.recording.steps_of(self._keys())

    @property
    def for_run(self) -> str | None:
        """Like `run_id`, but the id of the intended run if another process records that one."""
        return None if self._pipeline is None else self._pipeline.run.beside or self.run_id

    @property
    def first_epoch(self) -> int:
        """The first epoch of the training: 0, or with `resume` the one after the checkpoint's."""
        return 0 if self._checkpoint is None else self._checkpoint.first_epoch

    # -- from start to end -----------------------------------------------------------------------------------------
    def __enter__(self) -> Monitor:
        actions.say_what_loops_lack(self.settings.on_problem, can_ask=True)
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.end()
        else:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.end(status, f"{type(error).__name__}: {error}")

    def start(
        self,
        *,
        stay_active: bool = True,
        thread: int | None = None,
        bar: bool = True,
        in_fit: bool = False,
    ) -> Monitor:
        """Starts monitoring.

        Args:
            stay_active: whether a run created for the training becomes the active MLflow run.
            thread: the training thread; default: this one.
            bar: whether to show a progress bar, where one is visible.
            in_fit: whether a fit is beginning, which has its own bar and will call `restore_fit` once the model is
                built.

        Raises:
            SettingError: the model differs from the one to resume.
        """
        if self in claims.active:
            return self
        if self.settings.silent:
            quiet(True)
        batches.keeping = self.settings.keep_batches
        self._thread, self._in_fit = thread or threading.get_ident(), in_fit
        self._checkpoint = None if self.model is None else resuming.take(self.settings.resume, self.model)
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
        elif on := pipelines.of_run(self._run_id or runs.active_id(thread)):
            run = (
                on.run
            )  # of many short fits in one run each is the store's and MLflow's settings are asked once
        else:
            run = runs.of_id(self._run_id) if self._run_id else runs.active(thread)
        with contained("starting the monitor", "this training is not recorded"):
            journal = None
            if run is None:
                journal = Journal.create()  # first: no run is created for what cannot be recorded
                try:
                    run = runs.start(self.settings.extra_tags, stay_active)
                except BaseException:
                    journal.close()
                    raise
            probes.install(self, claims.claim)
            hooks.put_in([mlflow_hooks.run_ends(pipelines.watch_run_end)])
            self._pipeline, self._made_pipeline = Pipeline.of(run, self.settings, journal)
            resuming.go_on(self.model, self._keys(), self._checkpoint, self._pipeline)
            if self._checkpoint is not None:
                self._epoch_offset = self._checkpoint.state.about["first_epoch"]
                self._began_with = self._checkpoint.began_with
            now = time.time()
            self._begun, self._may_spend = time.monotonic(), None
            self._pipeline.stall.paused = False
            self.record(records.Paused(now, now))  # the time since a training before is no step's
            if self._checkpoint is None:  # else those before are its own
                self._first_step = self._pipeline.recording.steps_of(self._keys())
            claims.active.append(self)
            self.forget_problems()
            if bar and not in_fit and not self.settings.silent:
                self._pipeline.show()
            self.tell_premises()
            for ring in probes.rings_of(self._keys()):
                if not pipelines.DRAIN.has(ring):
                    ring.taken = ring.written()  # its earlier steps belong to another training, or to none
                    self.attach(ring, waits=self._checkpoint is None)
        if self._pipeline is None:
            probes.remove(self)
        return self

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """Stops monitoring, and waits a little until MLflow has everything; a run created for the training ends.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            reason: why it failed.
        """
        if status == "FINISHED" and self._pipeline is not None:
            with contained("looking for a best model", "the run does not show that none is registered"):
                self._tell_registered()
        if self in claims.active:
            claims.active.remove(self)
        if status == "FINISHED" and self.model is not None:
            model_order.ended(self.model)
        pipeline = self._pipeline
        may_spend = self.may_spend
        probes.remove(self)
        if pipeline is None:
            with contained("ending the monitor", "this worker's last steps may be missing"):
                pipelines.DRAIN.flush()
            return
        if self.settings.tensorboard:
            self._tell_graph()
        with contained("ending the monitor", "the last records may arrive late"):
            pipeline.stall.ended(over=status == "FINISHED")
            pipeline.stall.paused = False  # others of the run may train on
            pipeline.release(self._rings)
            pipeline.hide()
            pipeline.interrupted = status != "FINISHED"
            if status == "FINISHED":
                made = pipeline.recording.steps_of(self._keys()) - self._first_step
                say_what_is_missing(self.model, made, pipeline.keeper(self.prefix).best)
            if pipeline.run.owned and self._made_pipeline:
                pipeline.close(status, reason)
            elif not pipeline.closed:
                with pipeline.thrift.spending() if may_spend else contextlib.nullcontext():
                    pipeline.flush(waits=may_spend)
        self._rings.clear()
        self._trained = frozenset()
        self._pipeline = None
        if self.settings.silent:
            quiet(autolog_settings().silent)

    def _tell_registered(self) -> None:
        """Records in the run, at the end of a loop, if no requested version was registered."""
        name = self.settings.registered_model_name
        if name and self.arguments is None and not self.has_best:
            why = "there is no best model that MLflow can load"
            logger.warning(
                "mlflow_tfmon: registered_model_name=%r: nothing is registered, since %s.", name, why
            )
            self.record(records.Facts(tags={REGISTERED: f"{name} gets no version: {why}"}, time=time.time()))

    def _tell_graph(self) -> None:
        """Records the graph of the last traced step, if it still exists."""
        with contained("reading the training's graph", "TensorBoard's files lack it"):
            traced = [found for found in (ring.graph() for ring in self._rings) if found is not None]
            for one in traced[-1:]:
                self.record(records.Text(GRAPH, graph.as_text(one)))

    # -- calls of the user -----------------------------------------------------------------------------------------
    def log(self, **values: float) -> None:
        """Records your own metrics at the current step, as `batch/<name>`.

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
            with contained("Monitor.log", "these values are not recorded"):
                self._pipeline.drain()
                self._pipeline.recording.logged(numbers, self._keys())
                if isinstance(self.settings.checkpoint_save_freq, int):
                    self._consider(self._pipeline.recording.epochs_done(self.prefix), numbers, within=True)

    def step_ended(self, metrics: Mapping[str, float]) -> None:
        """Makes a checkpoint within an epoch, if one is due, with the metrics so far."""
        if self._pipeline is not None:
            with contained("a checkpoint within an epoch", "the model at this step is not kept"):
                self._pipeline.drain()
                self._consider(self._pipeline.recording.epochs_done(self.prefix), metrics, within=True)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float] | None = None) -> dict[str, float]:
        """Records the metrics of an epoch, given ones and `epoch_metrics`, and the best of `monitor` so far.

        If a loop restarts its epochs (for example after a reset of the model), the run's count continues, as for a
        further fit; metrics given again for the last epoch are added to it.

        Args:
            epoch: number of the epoch in this training, from 0.
            metrics: numbers by name, such as `{"val_loss": 0.3}`.

        Returns:
            The recorded metrics.

        Raises:
            SettingError: `epoch` is not a whole number from 0, or a metric is not a number.
        """
        epoch, numbers = plain_epoch(epoch), plain_numbers(metrics or {}, "log_epoch")
        numbers |= self.measured()
        with contained("counting epochs", "epochs that restart replace the earlier ones"):
            self._count_epoch(epoch)
        self.epoch_ended(epoch, numbers)
        with contained("acting on a problem", "training continues as it is"):
            self._actions = self._actions or Actions.of_loop(self)
            if self._actions is not None:
                self._actions.epoch_ended(numbers)
        return numbers

    def _count_epoch(self, epoch: int) -> None:
        """Makes an epoch that a loop restarts follow on those before it."""
        if self._pipeline is None:
            return
        self._pipeline.drain()
        self.place_epochs(epoch)
        last, then = self._ended
        steps = self._pipeline.recording.steps_of(self._keys())
        if self.epoch_offset + epoch < last and steps > then:  # else it is recorded late
            self._epoch_offset = last + 1 - epoch
            self.record(*self._pipeline.recording.seam(self._keys(), then))
        self._ended = max(self._ended, (self.epoch_offset + epoch, steps))

    @property
    def should_stop(self) -> bool:
        """Whether a loop with `on_problem="stop"` should end: a critical problem is at least 80% certain.

        May be read at each step. `log_epoch` restores the best epoch's weights.

        Example:
            ```python
            monitor.log_epoch(epoch, {"val_loss": validate(model)})
            if monitor.should_stop:
                break
            ```
        """
        return self.settings.on_problem == "stop" and bool(actions.sure(self)) and actions.may_act(self)

    def measured(self) -> dict[str, float]:
        """Returns the `epoch_metrics` of the model now, on every worker, while the training pauses."""
        self.paused(time.time())
        return measured(self.model, self.settings)

    def epoch_ended(self, epoch: int, numbers: dict[str, float]) -> None:
        """Takes all metrics of an epoch."""
        if self._pipeline is None:
            return
        with contained("Monitor.log_epoch", "this epoch's metrics are not recorded"):
            self._pipeline.drain()
            self.place_epochs(epoch)
            number = self.epoch_offset + epoch
            recording = self._pipeline.recording
            recording.epoch_ended(number, numbers, self._keys(), self.prefix)
            self.last_epoch, self.last_metrics = number, numbers
            steps = recording.steps_of(self._keys())
            histograms.epoch_ended(recording, self._rings, number, DRAIN.before_next_rows)
            activations = self._pipeline.activations_of(self.model)
            recording.append(*activations.look(number, steps, self.prefix, self._rings))
            shown = self._predictions.look(self.model, self.arguments, number, steps, self.prefix)
            recording.append(*shown)
            recording.append(self._pauses.end())
            # Last, since the writing thread competes for the interpreter from here on.
            self._consider(number, numbers)
            self._pipeline.stall.paused = False

    def paused(self, since: float | None) -> None:
        """Notes that training has paused (validation), or with None that it continues, for the step times."""
        if self._pipeline is not None:
            self._pipeline.stall.paused = since is not None
        self.record(*self._pauses.told(since))

    # -- the fits of a training ------------------------------------------------------------------------------------
    def new_fit(self) -> None:
        """Notes that a further fit begins, whose epochs are counted from 0 again."""
        if self._checkpoint is None:
            self._epoch_offset = None
        if self._pipeline is not None:
            self._pipeline.hide()  # Keras has one
            if self._pipeline.recording.steps_of(self._keys()) > self._first_step:
                self.forget_problems()
        self.premises.again()

    def mark_seam(self) -> None:
        """Records in the run's tag at which step a further fit of the model begins."""
        if self._pipeline is not None:
            self.record(*self._pipeline.recording.seam(self._keys()))

    def restore_fit(self, model: Any) -> bool:
        """Restores the checkpoint for a fit that is beginning; returns whether there is one to resume.

        Raises:
            SettingError: the model differs from the saved one.
        """
        checkpoint, self._checkpoint = self._checkpoint, None  # a further fit starts from scratch
        if checkpoint is not None:
            if not self._in_fit:  # the monitor encloses fits, of which this is the first
                checkpoint.check_fit(model_order.fits(model))
            fit_frames.build(model)
            checkpoint.restore(model, self._optimizers)
            checkpoint.restore_fit(model, self.callbacks)
        resuming.go_on(model, self._keys(), checkpoint, self._pipeline)
        return checkpoint is not None

    # -- checkpoints -----------------------------------------------------------------------------------------------
    def _consider(self, epoch: int, metrics: Mapping[str, float], within: bool = False) -> None:
        """Makes a checkpoint if one is due."""
        if self._pipeline is not None:
            step = self._pipeline.recording.steps_of(self._keys())
            around = moments.around(
                self.model, self._pipeline.recording, self.callbacks,
                epoch=epoch, step=step, first_epoch=self.epoch_offset, began_with=self._began_with,
                fits=model_order.fits(self.model), place=model_order.place(self.model), within=within,
            )  # fmt: skip
            others = moments.others(self.model, self._optimizers, self._rings)
            now = Moment(
                self.model, epoch, step, metrics, self.arguments, within, around, others, self.datasets
            )
            stall = self._pipeline.stall
            before, stall.paused = stall.paused, True
            self._pipeline.keeper(self.prefix).consider(now)
            stall.paused = before

    @property
    def has_best(self) -> bool:
        """Whether a best model that MLflow can load is kept, once pending checkpoints have been written."""
        return self._pipeline is not None and self._pipeline.has_best(self.prefix)

    # -- what is recorded ------------------------------------------------------------------------------------------
    def tell_premises(self) -> None:
        """Records what is known before the first step, once the model is built."""
        if self._pipeline is not None and not self.premises.told:
            recorded = self._pipeline.recording.steps_of(self._keys())
            layers = weakref.ref(self.model), *map(id, getattr(self.model, "layers", None) or ())
            drawn = self._pipeline.is_news("layers", layers) or not recorded
            self.record(*self.premises.tell(self.prefix, recorded, drawn))

    def tell_more(self, **found: Any) -> None:
        """Records what became known of the training (fields of `Premises`) after `tell_premises`."""
        if self._pipeline is not None:
            self.record(self.premises.tell_more(self.prefix, self.steps, **found))

    def record(self, *out: records.Record) -> None:
        """Writes records of other parts of the package (facts of the fit, models) to the journal."""
        if self._pipeline is not None:
            with contained("the journal", "some facts of this training are not recorded"):
                self._pipeline.recording.append(*out)

    @property
    def on(self) -> bool:
        """Whether the training is being monitored."""
        return self._pipeline is not None

    @property
    def may_spend(self) -> bool:
        """Whether the end of this training may take its time: of many short ones in one run, not each may."""
        if self._may_spend is None and self._pipeline is not None:
            own = self._pipeline.run.owned and self._made_pipeline
            self._may_spend = self._pipeline.thrift.may_spend(time.monotonic() - self._begun) or own
        return self._may_spend is not False

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline of the run that takes the training, while it is watched."""
        return self._pipeline

    @property
    def owns_run(self) -> bool:
        """Whether the run was created for this training."""
        return self._pipeline is not None and self._pipeline.run.owned

    @property
    def folder(self) -> Path | None:
        """Folder of the recording, with files to be delivered; None before the start."""
        return None if self._pipeline is None else self._pipeline.folder

    @property
    def watch(self) -> Watch | None:
        """The search for problems, while the training is monitored."""
        return None if self._pipeline is None else self._pipeline.watch

    @property
    def epoch_offset(self) -> int:
        """The run's number of the fit's (or loop's) epoch 0: epochs of one model within one run are counted on."""
        if self._epoch_offset is not None or self._pipeline is None:
            return self._epoch_offset or 0
        return max(0, self._pipeline.recording.epochs_done(self.prefix) - self._began_with)

    def epochs_begin(self, first: int) -> None:
        """Takes the number of the first epoch; it is kept if it continues the run's count."""
        if self._epoch_offset is None:
            self._began_with = first

    def place_epochs(self, first: int) -> None:
        """Fixes the run's numbers of the epochs once the first has made steps, since only then the model is known."""
        if self._epoch_offset is None and self._pipeline is not None:
            self.epochs_begin(first)
            self._epoch_offset = self.epoch_offset

    def forget_problems(self) -> None:
        """Ignores the problems found in the run so far."""
        found = self._pipeline.watch.found if self._pipeline is not None else {}
        self.known = frozenset(key for key, problem in found.items() if problem.severity == "critical")

    # -- rings -----------------------------------------------------------------------------------------------------
    def claims(self, ring: Ring) -> bool:
        """Whether the steps of a ring belong to this training."""
        if self.model is None:
            return ring.thread == self._thread and not pipelines.DRAIN.has(ring)
        return bool(ring.layout.keys & self._keys())

    def attach(self, ring: Ring, waits: bool = False) -> None:
        """Records the steps of a ring; one that waits has no stream before its first step."""
        if self._pipeline is not None and not any(known is ring for known in self._rings):
            self._rings.append(ring)
            self._trained |= ring.layout.keys
            name = claims.trained(ring)
            model = name if self.model is None else str(self.model.name)
            optimizer = ring.optimizer()
            compiled = optimizer is not None and getattr(self.model, "optimizer", None) is optimizer
            self._pipeline.attach(
                ring, name, model, self.total_steps, self.settings.deep_every,
                compiled=compiled, waits=waits, arguments=lambda: self.arguments,
            )  # fmt: skip
            self._rings = [one for one in self._rings if one is ring or pipelines.DRAIN.has(one)]
            self.tell_premises()
            self._examine(ring, compiled)

    def _examine(self, ring: Ring, compiled: bool) -> None:
        """Tells what the graph of the step shows of its loss, and of a loop also what its batches do, as they come."""
        with contained("examining the loss", "some problems may not be found"):
            # A loop with an optimizer of its own has a loss of its own too, whatever its model is compiled with.
            if self.premises.arguments is not None or compiled:
                found = objective.of(ring.weights)
                if found is not None and found.broadcast:
                    self.tell_more(broadcast=found.broadcast)
                return
            assert self._pipeline is not None
            facts = LoopFacts(
                ring, self.premises.found, lambda: list(self._rings), self._count_optimizers(ring)
            )
            recording = self._pipeline.recording

            def look() -> None:
                with contained("examining the batches", "some problems may not be found"):
                    if found := facts.look(self.premises.found):
                        prefix = recording.prefix_of(ring.layout.keys, "")
                        recording.append(records.Premises(dataclasses.asdict(found), prefix, self.steps))

            self._pipeline.look_with(ring, look)

    def _count_optimizers(self, ring: Ring) -> int:
        """How many optimizers have trained a ring's variables by now, one after another."""
        count, last = self._optimizers_of.get(ring.layout.keys, (0, lambda: None))
        if last() is None or last() is not ring.optimizer():
            count += 1
        self._optimizers_of[ring.layout.keys] = count, ring.optimizer
        return count

    def trains(self, keys: frozenset[str]) -> bool:
        """Whether any of these variables is being trained."""
        return bool(self._trained & keys)

    def begins(self) -> bool:
        """Whether the training is just beginning, so that a further optimizer is part of it."""
        if self._pipeline is None:
            return False
        self._pipeline.drain()
        return self._pipeline.recording.begins(self._keys())

    def _keys(self) -> frozenset[str]:
        if self.model is None:
            return self._trained
        return frozenset(graph.key(v) for v in self.model.trainable_variables)

    @property
    def prefix(self) -> str:
        """Prefix of the model's epoch metrics in the run."""
        if self._pipeline is None or self.model is None:
            return ""
        return self._pipeline.recording.prefix_of(self._keys(), str(self.model.name))

    @property
    def prefixes(self) -> frozenset[str]:
        """Prefix of the series of each optimizer."""
        if self._pipeline is None:
            return frozenset()
        of = self._pipeline.recording.prefix_of
        return frozenset({self.prefix, *(of(ring.layout.keys, "") for ring in self._rings)})


def watching(model: Any) -> Monitor | None:
    """Returns the monitor that was started for a model and is still on."""
    found = (one for one in reversed(claims.active) if isinstance(one, Monitor) and one.model is model)
    return next(found, None)
