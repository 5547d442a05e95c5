"""The pipeline of one run: rings, drain, recording, journal and delivery, put together and taken apart."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Sequence

from mlflow_tfmon.best import Best
from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import inputs
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.drain import Drain
from mlflow_tfmon.stream.recording import Recording
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.tracking.journal import Journal
from mlflow_tfmon.tracking.process import DeliveryProcess

_open: dict[str, Pipeline] = {}
_lock = threading.RLock()
_LOOK = 1.0  # s between two looks at the delivery process


class Pipeline:
    """What watches the trainings within one run.

    Args:
        run: the run that takes them.
        settings: how they are watched.
    """

    def __init__(self, run: runs.Run, settings: Settings) -> None:
        self.run = run
        self.settings = settings
        self.rings: list[Ring] = []
        self.closed = False
        self._best: dict[str, Best] = {}
        self._journal = Journal.create()
        self._sequence = 0
        self.folder = self._journal.folder
        self.recording = Recording(self._append, inputs.taken_until)
        self._delivery = DeliveryProcess.shared()
        self.recording.append(
            records.RunStarted(
                run.tracking_uri,
                run.registry_uri,
                run.experiment_id,
                run.run_id,
                run.name,
                dict(run.tags),
                run.start_time,
                run.owned,
                settings.max_points,
                settings.max_variables,
            )
        )
        with contained("starting delivery", f"what is recorded waits in {self.folder}"):
            self._delivery.watch(self.folder, run.tracking_uri, run.registry_uri)

    @classmethod
    def of(cls, run: runs.Run, settings: Settings) -> Pipeline:
        """The pipeline of a run: the one that is open for it, else a new one."""
        with _lock:
            key = run.run_id or f"run made at {run.start_time}"
            pipeline = _open.get(key)
            if pipeline is None or pipeline.closed:
                pipeline = _open[key] = cls(run, settings)
            return pipeline

    def best(self, prefix: str) -> Best:
        """The best epoch so far of the model whose names have a prefix."""
        return self._best.setdefault(prefix, Best(self.settings))

    def attach(self, ring: Ring, name: str, model: str, total_steps: int | None) -> None:
        """Records a ring's steps from the first on that was not taken yet."""
        self.recording.open_stream(ring, name, model, total_steps)
        self.rings.append(ring)
        DRAIN.attach(ring, self.recording.take)

    def release(self) -> None:
        """Takes what is left in the rings and lets go of them; the run may go on."""
        DRAIN.detach(self.rings)
        self.rings.clear()

    def drain(self) -> None:
        """Takes all rows that have been written by now."""
        DRAIN.flush(self.rings)

    def flush(self) -> bool:
        """Has MLflow brought up to date, and waits for it as long as the settings allow.

        Returns:
            Whether MLflow has everything.
        """
        self.drain()
        self.recording.append(records.Flushed(time.time()))
        return self._wait()

    def close(self, status: str, reason: str = "") -> None:
        """Ends the recording, and the run if it was made for it."""
        with _lock:
            if self.closed:
                return
            self.closed = True
            for key in [key for key, pipeline in _open.items() if pipeline is self]:
                del _open[key]
        self.release()
        with contained("leaving the run", "it stays the active one"):
            runs.leave(self.run)
        self.recording.append(records.RunEnded(time.time(), status, self.run.owned, reason))
        self._journal.close()
        if not self._wait():
            status_ = self._delivery.status(self.folder)
            say_once(
                f"waiting {self.folder}",
                f"mlflow_tfmon: {status_.waiting} records of run {self.run.run_id or 'not made yet'} wait for delivery"
                f"{f' ({status_.error})' if status_.error else ''}; they are kept in {self.folder}.",
            )

    def watch_delivery(self) -> None:
        """Starts delivery anew if it died, and says once what it could not do."""
        self._delivery.ensure_alive()
        status = self._delivery.status(self.folder)
        if status.error:
            say_once(
                f"{self.folder} {status.error[:40]}",
                f"mlflow_tfmon: delivery to MLflow waits: {status.error}",
            )

    def _append(self, out: Sequence[records.Record]) -> None:
        if out:
            self._sequence = self._journal.append(out)

    def _wait(self) -> bool:
        return self._delivery.wait(self.folder, self._sequence, self.settings.delivery_wait)


def of_run(run_id: str | None) -> Pipeline | None:
    """The open pipeline of a run."""
    with _lock:
        return None if run_id is None else _open.get(run_id)


_looked = 0.0


def _look() -> None:
    global _looked
    for look in on_look:
        look()
    if time.monotonic() - _looked >= _LOOK:
        _looked = time.monotonic()
        for pipeline in list(_open.values()):
            pipeline.watch_delivery()


on_look: list[Callable[[], None]] = []  # called after each look at the rings, in the drain's thread
DRAIN = Drain(on_idle=_look)


@atexit.register
def _close_all() -> None:
    """The script is over: ends what is still being recorded, as failed if an exception ended the script."""
    error = getattr(sys, "last_value", None)
    for pipeline in list(_open.values()):
        with contained(
            "ending the recording", "what was recorded last is delivered by the next `mlflow-tfmon sync`"
        ):
            if error is None:
                pipeline.close("FINISHED")
            else:
                pipeline.close("FAILED", f"{type(error).__name__}: {error}")
    DRAIN.stop()
