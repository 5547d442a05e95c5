"""Pipeline of one run: rings, drain, recording, journal and delivery, assembled and taken apart."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import util
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon import cluster
from mlflow_tfmon.checkpoints.keeper import Keeper
from mlflow_tfmon.delivery import ending
from mlflow_tfmon.delivery.backlog import say_what_waits
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.facts.environment import command, environment
from mlflow_tfmon.journal import here, life
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.journal.spool import Spool
from mlflow_tfmon.probes import batches, inputs, ledger
from mlflow_tfmon.problems import alerts
from mlflow_tfmon.problems.watch import Watch
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.sinks import sinks
from mlflow_tfmon.stream import records, workers
from mlflow_tfmon.stream.drain import Drain, Reading
from mlflow_tfmon.stream.recording import Recording
from mlflow_tfmon.stream.ring import Ring, give_back
from mlflow_tfmon.stream.rows import with_batches
from mlflow_tfmon.tags import COMMAND_TAG, ENVIRONMENT_TAG
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.tracking.links import where
from mlflow_tfmon.uris import without_secrets
from mlflow_tfmon.watching import stalls, terminal
from mlflow_tfmon.watching.activations import ActivationWatch
from mlflow_tfmon.watching.end_budget import Thrift
from mlflow_tfmon.watching.evidence import Evidence, data_of
from mlflow_tfmon.watching.meter import Meter
from mlflow_tfmon.watching.stalls import Answers, Stall
from mlflow_tfmon.watching.summary import Summary
from mlflow_tfmon.watching.user_messages import say_what_is_not_matched

_open: dict[str, Pipeline] = {}
_lock = threading.RLock()
_DRAWN = 2  # streams, in a notebook's card
_LOOK = 1.0  # s between two looks at the delivery process


class Pipeline:
    """Pipeline of the trainings within one run.

    Args:
        run: their run.
        settings: their settings.
        journal: where they are recorded.
    """

    def __init__(self, run: runs.Run, settings: Settings, journal: Journal) -> None:
        self.run = run
        self.settings = settings
        self._rings: list[Ring] = []
        self.closed = False
        self.interrupted = False  # the training that ended last was
        self.thrift = Thrift()
        self._put_off = False  # whether the end of a training has not been followed by what `flush` does
        self._activations = ActivationWatch(None)
        self._model: tuple[Any, ...] = ()
        self._facts: dict[str, object] = {}
        self.bar: terminal.Bar | None = None
        self._said: Summary | None = None
        self._keepers: dict[str, Keeper] = {}
        self._spool = Spool(journal, settings.journal_gb * 1e9)
        self.folder = journal.folder
        self._arguments: weakref.WeakKeyDictionary[Ring, Callable[[], Any]] = weakref.WeakKeyDictionary()
        self._lookers: weakref.WeakKeyDictionary[Ring, Callable[[], None]] = weakref.WeakKeyDictionary()
        self.recording = Recording(self._append, run.past, self._look_at)
        self.evidence = Evidence(self.recording.append, self._data_of) if settings.keep_batches else None
        self.stall = Stall(
            lambda: self._rings, lambda: self.recording.steps, self.recording.append, self.folder,
            self.recording.system,
        )  # fmt: skip
        self._meter = Meter(self.recording.system, bool(tf.config.list_physical_devices("GPU")))
        self.watch = Watch(self.recording.append, settings.detectors)
        link = where(run.tracking_uri, run.experiment_id, run.run_id)
        self.watch.on_new += alerts.of(settings, run.run_id, run.name, link)
        self._delivery = DeliveryProcess.shared()
        self._started = records.RunStarted(
            run.tracking_uri, run.registry_uri, run.experiment_id, run.run_id, run.name, dict(run.tags),
            run.start_time, run.owned, run.active, settings.max_points, settings.max_variables, settings.report,
            settings.tensorboard, run.experiment_name, run.past.as_dict(), sinks.absolute(settings.sinks or ""),
            settings.variables or "",
        )  # fmt: skip
        self.recording.append(self._started)
        with contained("describing the environment", "it is not recorded"):
            tags = {ENVIRONMENT_TAG: environment(), COMMAND_TAG: command()}
            tags = {name: text for name, text in tags.items() if text}
            self.recording.append(records.Facts(tags=tags, time=time.time()))
        with contained("starting delivery", f"recordings are kept in {self.folder}"):
            self._delivery.watch(
                self.folder, run.tracking_uri, run.registry_uri, settings.silent, settings.alert_url
            )
        global _exit_wait
        _exit_wait = settings.exit_wait

    @classmethod
    def of(cls, run: runs.Run, settings: Settings, journal: Journal | None = None) -> tuple[Pipeline, bool]:
        """The pipeline of a run, and whether it was made now; one that is open takes a further training too."""
        with _lock:
            key = run.run_id or f"run created at {run.start_time}"
            pipeline = _open.get(key)
            if pipeline is not None and not pipeline.closed:
                if journal is not None:
                    journal.close()  # nothing is in it: whoever looks for what waits deletes it
                pipeline._tell()
                return pipeline, False
            say_what_waits()
            journal = journal or Journal.create()
            if run.run_id and not life.claim_run(journal.folder, run.run_id):
                run = runs.beside(run)
            pipeline = _open[key] = cls(run, settings, journal)
            pipeline._tell()
            return pipeline, True

    def _tell(self) -> None:
        for told in on_open:
            told(self.run.run_id)

    def keeper(self, prefix: str) -> Keeper:
        """What keeps the best and the last of the model whose names have a prefix."""
        if prefix not in self._keepers:
            self._keepers[prefix] = Keeper(self.settings, self.folder, prefix, self.recording.append)
        return self._keepers[prefix]

    def finish_checkpoints(self) -> None:
        """Has the checkpoints that wait written, so that they come before the end."""
        for keeper in self._keepers.values():
            keeper.finish()

    def has_best(self, prefix: str) -> bool:
        """Whether a best model that MLflow can load is kept, once pending checkpoints have been written."""
        self.finish_checkpoints()
        return self.keeper(prefix).has_best

    def attach(
        self,
        ring: Ring,
        name: str,
        model: str,
        total_steps: int | None,
        deep_every: int,
        *,
        compiled: bool = False,
        waits: bool = False,
        arguments: Callable[[], Any] = lambda: None,
    ) -> None:
        """Records a ring's steps from the first on that was not taken yet; `arguments` gives those of its fit."""
        self.drain()  # whether it is part of a training that begins goes by the steps made, not by those taken
        # Where neither the optimizer nor a function that it was traced into is left, no step will be made.
        gone = [one for one in self._rings if one.optimizer() is None and one.graph() is None]
        if gone:
            self.release(gone)
        self.recording.open_stream(ring, name, model, total_steps, compiled=compiled, waits=waits)
        ring.begin(workers.deep_every(ring, deep_every), self.recording.carried(ring))
        ring.seen = max(ring.seen, ring.taken)
        self._rings.append(ring)
        say_what_is_not_matched(self._started.variables, ring.layout.variables)
        self.stall.watch()
        self._arguments[ring] = arguments
        if self.evidence is not None:
            batches.begin(ring)
        whole, taken = workers.gathered(ring), inputs.Batches(ring.thread)

        def take(reading: Reading) -> None:
            batches.glance(ring, len(reading.rows), self.evidence is not None)
            self.recording.take(whole(ledger.with_losses(with_batches(reading, taken.until))))
            if (look := self._lookers.get(ring)) is not None:
                look()
            if self.evidence is not None:
                self.evidence.keep()

        DRAIN.attach(ring, take)

    def look_with(self, ring: Ring, look: Callable[[], None]) -> None:
        """Has something looked at whenever steps of a ring were taken, on the thread that takes them."""
        self._lookers[ring] = look

    def _look_at(self, *recorded: Any) -> None:
        if self.evidence is not None:
            self.evidence.look(*recorded)

    def _data_of(self, ring: Ring) -> Any:
        return data_of(self._arguments.get(ring, lambda: None)())

    def release(self, rings: Sequence[Ring]) -> None:
        """Takes what is left in rings and lets go of them; the run may go on."""
        DRAIN.detach(rings)
        self.recording.close_rings(rings)
        if self.evidence is not None:
            self.evidence.keep()
        for ring in rings:
            self._arguments.pop(ring, None)
            self._lookers.pop(ring, None)
            batches.end(ring)
        self._rings = [ring for ring in self._rings if not any(ring is gone for gone in rings)]

    def drain(self) -> None:
        """Takes all rows that have been written by now."""
        DRAIN.flush(self._rings)

    def flush(self, waits: bool = True) -> None:
        """Has MLflow brought up to date.

        Args:
            waits: whether all is judged, and waited for as long as the settings allow; else that comes later.
        """
        self.drain()
        if waits:
            self.finish_checkpoints()
        self.recording.settle()
        if waits:
            self.watch.finish()
        if self.closed:  # by one who was told of a problem
            return
        self._put_off = not waits  # each makes files
        if waits:
            self.recording.append(records.Flushed(time.time()))
            delivered = self._wait()
            if self.thrift.may_say():
                self._sum_up(delivered)

    def hasten(self) -> None:
        """Has what is recorded delivered now: whoever ends a training does other work before the wait for it."""
        self._delivery.wake()

    def catch_up(self) -> None:
        """Has MLflow brought up to date after all, since somebody reads the run."""
        if self._put_off and not self.closed:
            self._put_off = False
            self.recording.append(records.Flushed(time.time()))

    def is_news(self, what: str, facts: object) -> bool:
        """Whether facts of a fit are others than those of the fit before: a model may be fitted over and over."""
        before, self._facts[what] = self._facts.get(what), facts
        return facts != before

    def is_new(self, model: Any) -> bool:
        """Whether a model is another than that of the fit before, or made of other layers."""
        before = self._model
        self._model = weakref.ref(model), model.built, *map(id, getattr(model, "layers", ()))
        return before != self._model

    def activations_of(self, model: Any) -> ActivationWatch:
        """What looks at a model's activations: one that is fitted over and over is traced once."""
        if not self._activations.is_of(model):
            self._activations = ActivationWatch(model)
        return self._activations

    def close(self, status: str, reason: str = "") -> None:
        """Ends the recording, and the run if it was made for it."""
        with _lock:
            if self.closed:
                return
        self.thrift.pay()
        with _lock:
            if self.closed:
                return
            self.closed = True
            for key in [key for key, pipeline in _open.items() if pipeline is self]:
                del _open[key]
        self.stall.ended(over=status == "FINISHED")
        self.stall.close()
        self.release(list(self._rings))
        self.stall.failed(reason)
        self.hide()
        self.finish_checkpoints()
        with contained("leaving the run", "it stays the active one"):
            runs.leave(self.run)
        self.recording.settle()
        self.watch.finish(ended=status == "FINISHED" and not self.interrupted)
        self.recording.append(
            records.RunEnded(time.time(), status, self.run.is_ours, without_secrets(reason))
        )
        rest = self._spool.close()
        if self.run.run_id:
            life.disclaim_run(self.folder, self.run.run_id)
        if rest:
            written = records.LeftOut(dict(self._spool.written), self._spool.why)
            self._delivery.rest(
                self.folder, rest, self.run.tracking_uri, self.run.registry_uri, [self._started, written]
            )
        self._sum_up(self._wait())
        if who := ending.of_training():
            ending.wait(self.settings.exit_wait, who)

    def show(self) -> None:
        """Shows a progress bar from now on, where one can be seen."""
        with contained("the progress bar", "there is none"):
            self.bar = self.bar or terminal.bar()

    def hide(self) -> None:
        """Ends the progress bar."""
        bar, self.bar = self.bar, None
        if bar is not None:
            with contained("the progress bar", "its last values are not shown"):
                bar.close()

    def _sum_up(self, delivered: bool) -> None:
        """Logs the summary of the run, unless that was done."""
        with contained("summing up", "it stays in MLflow"):
            found = self._delivery.status(self.folder)
            best = [
                keeper.best.text(prefix, self.recording.epochs_done(prefix))
                for prefix, keeper in self._keepers.items()
            ]
            summary = Summary(
                self.run.run_id or found.run_id,
                self.run.experiment_id,
                self.run.tracking_uri,
                self.recording.steps,
                self.recording.epochs,
                tuple(one for one in best if one),
                tuple(self.watch.problems),
                0 if delivered else max(1, self._spool.last - found.delivered),
                found.error,
                self._spool.not_kept,
                self.run.name,
                self._curves(),
            )
            if summary.is_news(self._said) and (summary.steps or summary.epochs or summary.waiting):
                self._said = summary
                summary.say()

    def _curves(self) -> dict[str, np.ndarray]:
        """What a notebook's card draws, of the first streams."""
        found = {}
        for prefix, history in list(self.watch.histories.items())[:_DRAWN]:
            for table, column, name in (
                (history.steps, "loss", "loss of the step"),
                (history.epochs, "val_loss", "val_loss"),
                (history.steps, "grad_norm", "gradient norm"),
            ):
                found[prefix + name] = table.column(column).mean[:, 0]
        return found

    def watch_delivery(self) -> None:
        """Starts delivery anew if it died, and says once what it could not do."""
        with contained("restarting delivery", f"recordings are kept in {self.folder}"):
            if not self._delivery.ensure_alive():
                say_once(
                    f"dead {self.folder}",
                    "mlflow_tfmon: delivery to MLflow has failed repeatedly and is stopped; recordings are kept "
                    f"in {self.folder} until `mlflow-tfmon sync` delivers it.",
                )
        status = self._delivery.status(self.folder)
        if status.error:
            say_once(
                f"{self.folder} {status.error[:40]}",
                f"mlflow_tfmon: delivery to MLflow is waiting: {status.error}",
            )

    def measure(self) -> None:
        """Records from time to time what the training takes of the machine."""
        if self._rings:
            self._meter.look()

    def _append(self, out: Sequence[records.Record]) -> None:
        if out:
            self._spool.append(out)
            self.watch.take(out)
            if self.bar is not None:
                self.bar.take(out)

    def _wait(self) -> bool:
        if DRAIN.is_this_thread():
            return True  # the rings fill up meanwhile; whoever trains waits for nothing either
        if not self._spool.flush():
            return False  # what is to be waited for is not even in the journal
        with contained("restarting delivery", f"recordings are kept in {self.folder}"):
            self._delivery.ensure_alive()  # nobody looks after it from here on
        return self._delivery.wait(self.folder, self._spool.last, self.settings.delivery_wait)


def report(ring: Ring) -> None:
    """On a worker that is not the chief: a ring's steps are told to the chief, which records them."""
    place = cluster.place()
    if place is not None:
        reporter, batches = workers.Reporter(ring, place.index), inputs.Batches(ring.thread)
        ring.begin(workers.TELLS_EVERY)
        DRAIN.attach(ring, lambda reading: reporter.take(with_batches(reading, batches.until)))
        global _answers
        if _answers is None:
            _answers = Answers(ring.thread, place.index)
            _answers.watch()
        _answers.thread = ring.thread


def of_run(run_id: str | None) -> Pipeline | None:
    """The open pipeline of a run."""
    with _lock:
        return None if run_id is None else _open.get(run_id)


def _catch_up() -> None:
    with contained("bringing MLflow up to date", "the last steps may be missing in what is read"):
        for pipeline in list(_open.values()):
            pipeline.catch_up()


here.on_wait.append(_catch_up)


def watch_run_end(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `MlflowClient.set_terminated`: a run that the user ends first gets what was measured for it.

    The rows still in a ring are the ended run's; a moment later they would be taken for the next run's.
    """

    def set_terminated(self: Any, run_id: str, *args: Any, **kwargs: Any) -> Any:
        with contained("closing the recording of a run", "its last steps may be missing"):
            for told in on_run_end:
                told(run_id)
            pipeline = of_run(run_id)
            if pipeline is not None:
                pipeline.close(_status(*args, **kwargs))
        return original(self, run_id, *args, **kwargs)

    return set_terminated


def _status(status: str | None = None, *_: Any, **__: Any) -> str:
    return str(status or "FINISHED")


_looked = 0.0


def _look() -> None:
    global _looked
    with contained("freeing memory", "the rings of finished trainings keep it"):
        give_back()
        batches.give_back()
    for pipeline in list(_open.values()):
        pipeline.watch.look()
    for look in on_look:
        look()
    if time.monotonic() - _looked >= _LOOK:
        _looked = time.monotonic()
        for pipeline in list(_open.values()):
            pipeline.recording.settle(waited=True)
            pipeline.watch_delivery()
            pipeline.measure()


# What custom loops under `autolog` want to be told of.
on_look: list[Callable[[], None]] = []  # called before each look at the rings, in the drain's thread
on_run_end: list[
    Callable[[str], None]
] = []  # called with the id of a run that is being ended, on the user's thread
on_open: list[
    Callable[[str | None], None]
] = []  # called with the run's id (None while MLflow is away) when a training begins
on_exit: list[Callable[[], None]] = []  # called when the script is over
DRAIN = Drain(on_idle=_look)
_answers: Answers | None = None  # of a worker that is not the chief
_exit_wait: float | None = None  # of the run that was begun last


@atexit.register
def _close_all() -> None:
    """The script is over: ends what is still being recorded, as failed if an exception ended the script."""
    # Interactively, it is the last error of any cell.
    interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules
    error = None if interactive else getattr(sys, "last_value", None)
    for told in on_exit:
        with contained("ending custom loops", "the last of them may be missing"):
            told()
    for pipeline in list(_open.values()):
        with contained(
            "ending the recording", "the last records are delivered by the next `mlflow-tfmon sync`"
        ):
            if error is None:
                pipeline.close("FINISHED")
            else:
                pipeline.close("FAILED", f"{type(error).__name__}: {error}")
    with contained("sending the last steps to the chief", "their loss is not recorded"):
        DRAIN.flush()
    DRAIN.stop()
    stalls.stop()
    with contained("waiting for delivery", "`mlflow-tfmon sync` delivers the rest"):
        ending.wait(_exit_wait, ending.of_script())


def _forked() -> None:
    """In a forked child: what its parent records is none of its own; what it trains itself is."""
    _lock._at_fork_reinit()  # type: ignore[attr-defined]  # Python 3.9 to 3.13
    _open.clear()
    DRAIN.forked()


def _close_with_worker(_: object = None) -> None:
    """Has all closed at the end of one of multiprocessing's processes, which leaves without what `atexit` has."""
    util.Finalize(None, _close_all, exitpriority=0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
util.register_after_fork(DRAIN, _close_with_worker)  # where it begins after this is imported
if multiprocessing.parent_process() is not None:
    _close_with_worker()
