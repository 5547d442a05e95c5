"""Life of one monitored training: it starts, gets its optimizer steps, and ends."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from pathlib import Path
from typing import Any, TypeVar

from mlflow_tfmon import cluster, probes
from mlflow_tfmon.checkpoints.restoring import Checkpoint
from mlflow_tfmon.errors import contained, quiet, say_once
from mlflow_tfmon.facts import order
from mlflow_tfmon.facts.premises import Telling
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.probes import graph, hooks
from mlflow_tfmon.probes.hooks import mlflow as mlflow_hooks
from mlflow_tfmon.problems.watch import Watch
from mlflow_tfmon.settings import Settings, autolog_settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.tracking.names import GRAPH
from mlflow_tfmon.watching import claims, resuming
from mlflow_tfmon.watching import pipeline as pipelines
from mlflow_tfmon.watching.complaints import say_what_is_missing
from mlflow_tfmon.watching.pipeline import Pipeline

_NOT_CHIEF = "this is worker {}; the training is recorded in the chief's run."
_Self = TypeVar("_Self", bound="Training")


class Training:
    """One monitored training: whose steps it takes, in which run they are recorded, and for how long.

    Args:
        model: the trained Keras model, or None for everything that this thread trains.
        settings: its settings.
        run_id: its MLflow run, or None for the active one, else a new one.
        optimizers: those that the model is not compiled with, as far as they were passed.
    """

    def __init__(self, model: Any, settings: Settings, run_id: str | None, optimizers: list[Any]) -> None:
        self.model = model
        self.settings = settings
        self.total_steps: int | None = None  # planned number, if known
        self.premises = Telling(model)
        self.known: frozenset[tuple[str, str]] = frozenset()  # problems that the run had before
        self._run_id = run_id
        self._optimizers = optimizers
        self._thread = threading.get_ident()
        self._checkpoint: Checkpoint | None = None  # that it resumes
        self._pipeline: Pipeline | None = None
        self._made_pipeline = False
        self._in_fit = False
        self._rings: list[Ring] = []
        self._trained: frozenset[str] = (
            frozenset()
        )  # keys of the variables that optimizers were seen to train
        self._epoch_offset: int | None = None
        # Number of the first epoch as the fit or loop itself counts.
        self._began_with = 0
        self._first_step = 0
        self._begun = 0.0  # monotonic time
        self._may_spend: bool | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, or None before the start or while the tracking server is away."""
        return None if self._pipeline is None else self._pipeline.run.run_id

    @property
    def for_run(self) -> str | None:
        """Like `run_id`, but the id of the intended run if another process records that one."""
        return None if self._pipeline is None else self._pipeline.run.beside or self.run_id

    @property
    def first_epoch(self) -> int:
        """The first epoch of the training: 0, or with `resume` the one after the checkpoint's."""
        return 0 if self._checkpoint is None else self._checkpoint.first_epoch

    # -- from start to end -----------------------------------------------------------------------------------------
    def start(
        self: _Self,
        *,
        stay_active: bool = True,
        thread: int | None = None,
        bar: bool = True,
        in_fit: bool = False,
    ) -> _Self:
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
                    self.attach(ring)
        if self._pipeline is None:
            probes.remove(self)
        return self

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """Stops monitoring, and waits a little until MLflow has everything; a run created for the training ends.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            reason: why it failed.
        """
        if self in claims.active:
            claims.active.remove(self)
        if status == "FINISHED" and self.model is not None:
            order.ended(self.model)
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

    def _tell_graph(self) -> None:
        """Records the graph of the last traced step, if it still exists."""
        with contained("reading the training's graph", "TensorBoard's files lack it"):
            traced = [found for found in (ring.graph() for ring in self._rings) if found is not None]
            for one in traced[-1:]:
                self.record(records.Text(GRAPH, graph.as_text(one)))

    # -- what is recorded ------------------------------------------------------------------------------------------
    def tell_premises(self) -> None:
        """Records what is known before the first step, once the model is built."""
        if self._pipeline is not None and not self.premises.told:
            recorded = self._pipeline.recording.steps_of(self._keys())
            layers = weakref.ref(self.model), *map(id, getattr(self.model, "layers", None) or ())
            drawn = self._pipeline.is_news("layers", layers) or not recorded
            self.record(*self.premises.tell(self.prefix, recorded, drawn))

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

    def attach(self, ring: Ring) -> None:
        """Records the steps of a ring."""
        if self._pipeline is not None and not any(known is ring for known in self._rings):
            self._rings.append(ring)
            self._trained |= ring.layout.keys
            name = claims.trained(ring)
            model = name if self.model is None else str(self.model.name)
            optimizer = ring.optimizer()
            compiled = optimizer is not None and getattr(self.model, "optimizer", None) is optimizer
            self._pipeline.attach(ring, name, model, self.total_steps, self.settings.deep_every, compiled)
            self._rings = [one for one in self._rings if one is ring or pipelines.DRAIN.has(one)]
            self.tell_premises()
            with contained("examining the loss", "one problem may not be found"):
                if shapes := probes.broadcasts(ring.weights):
                    recorded = self._pipeline.recording.steps_of(self._keys())
                    self.record(self.premises.tell_of_loss(shapes, self.prefix, recorded))

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
