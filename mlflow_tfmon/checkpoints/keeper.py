"""Keeper of the best and the last checkpoint of one model within one run."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_tfmon import kerases
from mlflow_tfmon.checkpoints import names
from mlflow_tfmon.checkpoints.best import Best, directions_of
from mlflow_tfmon.checkpoints.folder import Writer
from mlflow_tfmon.checkpoints.moments import Moment
from mlflow_tfmon.checkpoints.names import BEST, ERROR, LAST, MODELS, RESUME
from mlflow_tfmon.checkpoints.retention import Before, Kept
from mlflow_tfmon.checkpoints.snapshot import Camera, ChangedError, Snapshot
from mlflow_tfmon.checkpoints.state import State, joined, of_snapshot
from mlflow_tfmon.checkpoints.writer import SHARE, Queue
from mlflow_tfmon.errors import contained, logger, say_once
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.tags import EPOCH, WEIGHTS_ONLY, pointer
from mlflow_tfmon.tracking.models import datasets_among


@dataclass(frozen=True, eq=False)
class _Job:
    snapshot: Snapshot
    best: bool
    saved: records.ModelSaved
    state: State | None
    resumes: bool


class Keeper:
    """Takes a snapshot when one is due, has it written on another thread, and records which are kept.

    Attributes:
        best: the best epoch so far.
        resumed: whether it continues from earlier recordings.

    Args:
        settings: what is kept.
        folder: of the recording.
        prefix: what precedes the model's names in the run.
        record: takes records.
    """

    def __init__(
        self, settings: Settings, folder: Path, prefix: str, record: Callable[[records.Record], None]
    ) -> None:
        self.best = Best(settings)
        self.resumed = False
        self._best_kept = Best(settings)  # of the due ones
        self._bars: dict[int, dict[str, Any]] = {}  # by number, of those that are or may become the best
        self._settings = settings
        self._folder = folder
        self._prefix = prefix
        self._record = record
        self._kept = Kept(settings)
        self._lock = threading.RLock()
        self._queue: Queue[_Job] = Queue(self._write)
        self._camera = Camera()
        self._writer: Writer | None = None
        self._number = 0
        every, unit = settings.checkpoint_every or (1, "epochs")
        self._due_from = every if unit == "steps" else 0  # the step from which the next is due
        self._patience_until = 0.0
        self._at_epoch_end = False  # whether there was one at an epoch's end
        self._paths: dict[int, str] = {}  # of the written and kept ones
        self._on_disk: dict[
            str, tuple[str, ...]
        ] = {}  # of those to be delivered: which ones each of them replaces
        self._newest = {BEST: -1, LAST: -1, RESUME: -1}
        self._whole_before = False  # whether an earlier recording has a best one that MLflow can load

    @property
    def has_best(self) -> bool:
        """Whether there is a best model that MLflow can load."""
        whole = self._whole_before if self._writer is None else self._writer.whole
        return self._newest[BEST] >= 0 and whole

    def restore(self, kept: Sequence[Before], state: State | None = None) -> None:
        """Continues from earlier recordings of the run.

        Args:
            kept: the checkpoints that are kept in MLflow, oldest first.
            state: of the one that the training resumes; None for a further training.
        """
        self.resumed = True
        step = math.inf if state is None else state.about["step"]
        unnamed = sum(not one.pointers for one in kept)
        for self._number, one in enumerate(kept, start=1):
            if not one.pointers and unnamed >= self._settings.checkpoint_keep:
                continue  # more were to be kept then: they stay
            if one.pointers or one.step <= step:  # else its step is made again
                self._kept.add(self._number, one.value, one.more, one.metric, one.within)
            self._paths[self._number] = f"{MODELS}{one.model_id}"
            self._newest |= dict.fromkeys(one.pointers, self._number)
            if BEST in one.pointers:  # a better one that never reached MLflow need not be beaten
                self._whole_before = one.whole
                self._register(one)
                bar = {"metric": one.metric, "value": one.value, "epoch": one.epoch, "more": one.more}
                self._bars[self._number] = bar
                self._best_kept.restore(bar)
        self.best.restore(self._best_kept.state() if state is None else state.about["best"])

    def _register(self, best: Before) -> None:
        """Registers the best of earlier recordings, unless it is registered, since no better one may follow."""
        name = self._settings.registered_model_name
        if name and best.whole and name not in best.registered:
            self._record(records.Facts(time=time.time(), register={pointer(BEST, self._prefix): name}))

    def consider(self, now: Moment) -> None:
        """Takes a moment of the training, on the training thread, which waits only for the snapshot."""
        directions = directions_of(now.model)
        if not now.within and self.best.consider(now.epoch, now.metrics, directions, now.validated):
            assert self.best.value is not None
            figures = (
                (f"{self._prefix}best/{self.best.metric}", self.best.value, now.epoch),
                (f"{self._prefix}best/epoch", float(now.epoch), now.epoch),
            )
            self._record(records.Facts(metrics=figures, time=time.time()))
        wanted = self._settings.checkpoint and self._settings.log_models
        if wanted and isinstance(
            now.model, kerases.every("Model")
        ):  # a tf.Module has no file format of its own
            with contained("the checkpoint", "the model of this epoch is not kept"):
                self._keep(now, directions)

    def finish(self) -> None:
        """Writes all pending checkpoints and waits for it: after this the recording may be closed."""
        if not self._queue.finish():
            logger.warning("mlflow_tfmon: the last checkpoints could not be written.")

    def _keep(self, now: Moment, directions: Mapping[str, str]) -> None:
        if not self._due(now):
            return
        began = time.monotonic()
        with self._lock:
            best = self._best_kept
            is_best = best.consider(now.epoch, now.metrics, directions, now.validated)
            metric = best.metric or ""
            value = now.metrics.get(metric)
            among = self._kept.joins(value, best.more, metric)
            if (
                not is_best
                and not among
                and self._settings.checkpoint_save_best_only
                and began < self._patience_until
            ):
                return  # so far only the last one: the next will be written
            snapshot = self._camera.take(now.model, now.others)
            self._number += 1
            self._kept.add(self._number, value, best.more, metric, now.within)
            state = self._state(now, snapshot)
            resumes = state is not None and not (now.within and self._at_epoch_end)
            self._at_epoch_end |= not now.within
            if self._writer is None:
                form = self._folder / "form" / uuid.uuid4().hex
                self._writer = Writer(form, self._settings, now.arguments, self._queue.once)
            saved = self._described(now, metric, value, is_best)
            job = _Job(snapshot, is_best, saved, state, resumes)
            if is_best:
                self._bars[self._number] = best.state()
            wanted = self._kept.wanted
            self._bars = {n: bar for n, bar in self._bars.items() if n in wanted or n == self._newest[BEST]}
            self._queue.put(self._number, job, wanted)
        if (
            snapshot.live
        ):  # the training waits for the writing too, which may take only a limited share of its time
            self._queue.finish()
            ended = time.monotonic()
            self._patience_until = ended + (ended - began) * (1 / SHARE - 1)

    def _state(self, now: Moment, snapshot: Snapshot) -> State | None:
        """Returns the state needed to resume from here.

        Keras 2 saves the optimizer that a model is compiled with, no other, and no `legacy` one (2.16 to 2.21).
        """
        if now.around is None:
            return None
        new = kerases.every("optimizers.Optimizer")
        if snapshot.live and (now.others or not isinstance(getattr(now.model, "optimizer", None), new)):
            return None
        state, around = of_snapshot(snapshot), now.around()
        standing = {"best": self.best.state(), "prefix": self._prefix}
        return joined((state.about, state.arrays), (around.about, around.arrays), (standing, {}))

    def _due(self, now: Moment) -> bool:
        every, unit = self._settings.checkpoint_every or (1, "epochs")
        if unit == "epochs":
            return not now.within and (now.epoch + 1) % every == 0
        if now.within and now.step < self._due_from:
            return False
        self._due_from = (now.step // every + 1) * every
        return True

    def _described(self, now: Moment, metric: str, value: float | None, is_best: bool) -> records.ModelSaved:
        place = f"{self._prefix}checkpoint/" if now.within else self._prefix
        tags = names.tags_of(now.epoch, now.step, metric, value, self._best_kept.more)
        return records.ModelSaved(
            path=f"checkpoints/{uuid.uuid4().hex}",
            name=names.name_of(self._prefix, is_best),
            step=now.step if now.within else now.epoch,
            metrics={f"{place}{name}": number for name, number in now.metrics.items()},
            tags=tags | names.judged_on(metric, datasets_among(now.datasets)),
            datasets=dict(now.datasets),
        )

    def _write(self, number: int, job: _Job) -> bool:
        """Writes a checkpoint, on the queue's thread; returns whether it is finished."""
        assert self._writer is not None
        path = job.saved.path
        try:
            (self._folder / path).parent.mkdir(mode=0o700, exist_ok=True)
            self._writer.write(job.snapshot, self._folder / path, job.state)
        except Exception as error:
            self._tell(job.saved, error)
            if isinstance(error, ChangedError):
                self._give_up(number)
                return True
            return False
        gone: list[Path] = []
        with self._lock, contained("recording a checkpoint", "it does not reach MLflow"):
            kinds = [BEST] * job.best + [LAST] + [RESUME] * job.resumes
            newer = [kind for kind in kinds if number > self._newest[kind]]
            if not newer and number not in self._kept.wanted:
                shutil.rmtree(self._folder / path, ignore_errors=True)
                return True
            self._newest |= dict.fromkeys(newer, number)
            self._paths[number] = path
            self._record(self._pointed(newer, job))
            gone = self._put_aside()
        for folder in gone:  # not while the training may wait for the lock
            shutil.rmtree(folder, ignore_errors=True)
        return True

    def _give_up(self, number: int) -> None:
        """Gives up a checkpoint: later ones need not be better than it."""
        with self._lock:
            lost = self._bars.pop(number, None)
            same = {n: bar for n, bar in self._bars.items() if lost and bar["metric"] == lost["metric"]}
            self._kept.forget(number, {n: bar["value"] for n, bar in same.items()})
            if lost == self._best_kept.state():
                self._best_kept = Best(self._settings)
                if self._bars:
                    self._best_kept.restore(self._bars[max(self._bars)])

    def _pointed(self, newer: Sequence[str], job: _Job) -> records.ModelSaved:
        """Returns the record of a written checkpoint and its pointers, and what changes by it."""
        # The target of a pointer stays until another is written: a better one may be pending, or have failed.
        stay = self._kept.wanted | set(self._newest.values())
        drops = [path for n, path in self._paths.items() if n not in stay]
        self._paths = {n: path for n, path in self._paths.items() if n in stay}
        drops += [one for path in self._superseded() for one in self._on_disk[path]]
        self._on_disk[job.saved.path] = tuple(dict.fromkeys(drops))
        whole = self._writer is not None and self._writer.whole
        name = self._settings.registered_model_name if whole and BEST in newer else None
        return records.ModelSaved(
            **{
                **vars(job.saved),
                "tags": job.saved.tags | ({} if whole else {WEIGHTS_ONLY: "true"}),
                "pointers": tuple(pointer(kind, self._prefix) for kind in newer),
                "drops": self._on_disk[job.saved.path],
                "registered_model_name": name,
            }
        )

    def _superseded(self) -> list[str]:
        """Returns what need no longer be delivered, except the first, which may be on its way."""
        self._on_disk = {
            path: drops for path, drops in self._on_disk.items() if (self._folder / path).exists()
        }
        return [path for path in list(self._on_disk)[1:] if path not in self._paths.values()]

    def _put_aside(self) -> list[Path]:
        """Withdraws from delivery what need no longer be delivered; returns the remaining folders."""
        gone = []
        for path in self._superseded():
            (self._folder / f"{path}.gone").touch()  # for delivery
            gone.append(self._folder / f"{path}.old")
            os.replace(self._folder / path, gone[-1])
        return gone

    def _tell(self, saved: records.ModelSaved, error: Exception) -> None:
        text = f"the checkpoint of epoch {saved.tags[EPOCH]} is not saved: {type(error).__name__}: {error}"
        text = " ".join(text.split())[:400]
        say_once(
            f"checkpoint {self._folder} {type(error).__name__}",
            f"mlflow_tfmon: {text}; training continues, and earlier checkpoints are kept.",
        )
        with contained("recording the outcome of a checkpoint", "its run does not show it"):
            self._record(records.Facts(tags={pointer(ERROR, self._prefix): text}, time=time.time()))
