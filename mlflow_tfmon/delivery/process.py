"""The trainer's handle on the delivery process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from mlflow_tfmon.delivery.daemon import Daemon, as_it_reads
from mlflow_tfmon.delivery.status import Status, read_status
from mlflow_tfmon.journal.journal import coded, plain
from mlflow_tfmon.stream.records import Evidence, Record
from mlflow_tfmon.uris import absolute

_POLL_SECONDS = 0.02
_MAX_STARTS = 5
_STEADY_SECONDS = 60.0  # a process that has lived this long did not die of how it was started


class DeliveryProcess:
    """One delivery process for all recordings of this process.

    It is detached (`Daemon`) and ends after its stdin is closed: it outlives a killed trainer.

    Example:
        >>> delivery = DeliveryProcess.shared()
        >>> delivery.watch(journal.folder, mlflow.get_tracking_uri(), mlflow.get_registry_uri())
        >>> delivery.wait(journal.folder, journal.append([Flushed(time.time())]), timeout=10.0)
        True
    """

    _shared: ClassVar[DeliveryProcess | None] = None
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._process: Daemon | None = None
        self._last: Daemon | None = None  # whose end was asked for, while it has something to deliver
        self._starts = 0
        self._started_at = 0.0
        self._watched: dict[Path, dict[str, str | bool | None]] = {}
        self._environment: dict[str, str] = {}  # ours, as the process knows it

    @classmethod
    def shared(cls) -> DeliveryProcess:
        """Returns this process's own, started at the first call; a forked child gets a separate one."""
        with cls._shared_lock:
            if cls._shared is None or cls._shared._pid != os.getpid():
                cls._shared = DeliveryProcess()
                with contextlib.suppress(OSError):  # no room for it: who has something to deliver tries again
                    cls._shared.ensure_alive()
            return cls._shared

    def watch(
        self,
        folder: Path,
        tracking_uri: str,
        registry_uri: str | None = None,
        silent: bool = False,
        alert_url: str | None = None,
    ) -> None:
        """Delivers a recording from now on, in a process that is started if there is none.

        Args:
            folder: of the recording.
            tracking_uri: MLflow tracking URI, with its credentials if it has some: it goes through a pipe, to no disk.
            registry_uri: MLflow registry URI.
            silent: whether nothing is said, not even of what could not be delivered.
            alert_url: who is told how the training ended, with credentials, or None; it goes the same way.

        Raises:
            OSError: the process could not be started; the recording stays on the disk.
        """
        command = {**_watch(folder, tracking_uri, registry_uri), "silent": silent, "alert_url": alert_url}
        with self._lock:
            self._watched[folder] = command
            if not self._started():
                self._tell_environment()
                self._tell(command)

    def expect(self, tracking_uri: str) -> None:
        """Has the process load now what it needs for a store, while the trainer still builds its model.

        Args:
            tracking_uri: MLflow tracking URI.
        """
        with self._lock:
            self._tell({"expect": absolute(tracking_uri)})

    def rest(
        self,
        folder: Path,
        records: Sequence[Record],
        tracking_uri: str,
        registry_uri: str | None,
        begins: Sequence[Record],
    ) -> bool:
        """Has records delivered that the journal of a recording did not take, after all that it has taken.

        Args:
            folder: of the recording.
            records: without blocks of numbers.
            tracking_uri: as in `watch`.
            registry_uri: as in `watch`.
            begins: what they follow on if the journal was gone before anybody saw it.

        Returns:
            Whether there is a process to tell them to.
        """
        told = {
            name: [coded(_without_batch(one))[:2] for one in of]
            for name, of in (("rest", records), ("begins", begins))
        }
        with self._lock:
            with contextlib.suppress(OSError):
                self._started()
            self._tell({**_watch(folder, tracking_uri, registry_uri), **told})
            return self._alive()

    def ensure_alive(self) -> bool:
        """Starts the process, or starts it anew if it died; one that dies again and again is left dead.

        Returns:
            Whether it runs.
        """
        with self._lock:
            self._forget_complete()
            self._tell_environment()
            return self._started() or self._alive()

    def status(self, folder: Path) -> Status:
        """Returns the progress of a recording's delivery."""
        return read_status(folder)

    def wake(self) -> None:
        """Has it deliver now what is there."""
        with self._lock:
            self._tell({"wake": True})

    def wait(self, folder: Path, flushed_seq: int, timeout: float) -> bool:
        """Waits until a `Flushed` or `RunEnded` record has been delivered in full.

        Args:
            folder: of the recording.
            flushed_seq: the record's number.
            timeout: seconds.

        Returns:
            Whether it has been delivered: False after the timeout, and as soon as the store is found to be away
            or delivery to be dead.
        """
        asked, until = time.time(), time.monotonic() + timeout
        self.wake()
        while True:
            status = self.status(folder)
            if status.complete or status.flushed >= flushed_seq:
                return True
            away = status.error is not None and status.tried >= asked
            if away or time.monotonic() > until or not self._alive():
                return False
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Tells the process that no more records come: it delivers what is left and ends by itself."""
        with self._lock:
            if self._process is not None and os.getpid() == self._pid:
                self._process.close()
            self._process = None  # who is watched from now on gets another
            self._watched.clear()

    @classmethod
    def finish(cls, timeout: float) -> bool:
        """Closes this process's own, and waits until all that can be delivered is, the reports too, and it has ended.

        Args:
            timeout: seconds.

        Returns:
            Whether it has ended, or there is nothing to wait for.
        """
        shared = cls._shared
        if shared is None or shared._pid != os.getpid():
            return True
        with shared._lock:
            if shared._watched:
                shared._forget_complete()
                if shared._watched:
                    with contextlib.suppress(OSError):
                        shared._started()  # if it has died since
                shared._last = shared._process
            last = shared._last
        shared.close()
        return last is None or last.wait(timeout)

    def _alive(self) -> bool:
        return self._process is not None and os.getpid() == self._pid and self._process.is_alive()

    def _started(self) -> bool:
        """Starts the process if none runs; returns whether it was started now."""
        if self._alive() or os.getpid() != self._pid:
            return False
        if time.monotonic() - self._started_at > _STEADY_SECONDS:
            self._starts = 0
        if self._starts >= _MAX_STARTS:
            return False
        ours = dict(os.environ)
        self._starts += 1
        self._started_at = time.monotonic()
        if self._process is not None:
            self._process.close()
        self._process = Daemon(ours)
        self._environment = ours
        for command in self._watched.values():
            self._tell(command)
        return True

    def _tell(self, command: Mapping[str, object]) -> None:
        if self._alive() and self._process is not None:
            # If it died just now, `ensure_alive` tells its successor.
            with contextlib.suppress(OSError, ValueError):
                self._process.tell(json.dumps(command, default=plain).encode() + b"\n")

    def _tell_environment(self) -> None:
        """Tells what has changed in it: a token that was set or renewed, say, counts for delivery too."""
        with contextlib.suppress(KeyError):  # it is being changed at this moment: the next time
            before, now = self._environment, dict(os.environ)
            if before != now and self._alive():
                changed = {name: now.get(name) for name in before | now if before.get(name) != now.get(name)}
                self._tell({"environment": {name: one and as_it_reads(one) for name, one in changed.items()}})
                self._environment = now

    def _forget_complete(self) -> None:
        for folder in [folder for folder in self._watched if read_status(folder).complete]:
            del self._watched[folder]


def _watch(folder: Path, tracking_uri: str, registry_uri: str | None) -> dict[str, str | bool | None]:
    return {
        "watch": as_it_reads(str(folder)),
        "tracking_uri": absolute(tracking_uri),
        "registry_uri": absolute(registry_uri) if registry_uri else None,
    }


def _forked() -> None:
    """In a forked child: lets go of the parent's delivery process."""
    shared = DeliveryProcess._shared
    if shared is not None and shared._process is not None:
        shared._process.let_go()
    DeliveryProcess._shared = None
    DeliveryProcess._shared_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _without_batch(record: Record) -> Record:
    """A record as it is told: of a kept batch, what is known of it."""
    if not isinstance(record, Evidence):
        return record
    text = str(record.about.get("text", "")).partition("; kept in")[0]
    about = {**record.about, "kept": [], "text": f"{text}; the training's disk did not take the batch."}
    return dataclasses.replace(record, about=about, batch=b"")
