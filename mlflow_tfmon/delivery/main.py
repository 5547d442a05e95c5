"""Main program of the delivery process, from its start by `daemon` to its end.

Reads commands from stdin, a JSON object a line:

    {"watch": "/folder/of/a/recording", "tracking_uri": "...", "registry_uri": "..."}   deliver this recording
    {"watch": ..., "alert_url": "..."}                                 and tell this address how the training ended
    {"watch": ..., "rest": [[kind, body], ...], "begins": [...]}                       and what its journal did not take
    {"environment": {"NAME": "value", "OTHER": null}}                                  what has changed in the trainer's
    {"wake": true}                                                                     look for new records now
    {"expect": "..."}                                                                  recordings for a store come soon

The end of stdin, or of the trainer, means that no more records come: what is left is delivered, then the process ends.
SIGTERM means that there is little time: what there is is delivered, as far as it can be in `TERMINATE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mlflow_tfmon.stream.coding import decode

if TYPE_CHECKING:
    from mlflow_tfmon.delivery.deliverer import Deliverer

PAUSE_SECONDS = 1.0
GIVE_UP_SECONDS = 60.0
TERMINATE_SECONDS = 20  # SLURM and Kubernetes kill after 30, systemd after 90


class Delivery:
    """Delivery loop that runs until no more recordings come and all have arrived.

    Args:
        give_up: seconds without any success, after the trainer's end, after which what is left is left on the disk.
    """

    def __init__(self, give_up: float = GIVE_UP_SECONDS) -> None:
        self._give_up = give_up
        self._lock = threading.Lock()
        self._deliverers: dict[Path, Deliverer] = {}
        self._silent: set[Path] = set()
        self._wake = threading.Event()
        self._hurry = False
        self._closed = False
        self._terminated = False

    def listen(self, lines: Iterable[str | bytes]) -> None:
        """Takes commands until there are no more; meant for a thread of its own."""
        from mlflow_tfmon.delivery.deliverer import Deliverer
        from mlflow_tfmon.tracking.store import load_store

        for line in lines:
            # Whatever is wrong with one, or comes in its way: without those that follow nobody would see the end.
            with contextlib.suppress(Exception):
                command = json.loads(line)
                if "watch" in command:
                    folder = Path(command["watch"])
                    with self._lock:
                        if folder not in self._deliverers:
                            uris = command.get("tracking_uri"), command.get("registry_uri")
                            self._deliverers[folder] = Deliverer(folder, *uris, command.get("alert_url"))
                        if command.get("silent"):
                            self._silent.add(folder)
                        if "rest" in command:
                            rest, begins = (
                                [decode(kind, body, None) for kind, body in command[name]]
                                for name in ("rest", "begins")
                            )
                            self._deliverers[folder].rest(rest, begins)
                for name, value in command.get("environment", {}).items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                if "expect" in command:
                    load_store(command["expect"])
                self._hurry = self._hurry or "wake" in command
            self._wake.set()
        self._closed = True
        self._wake.set()

    def terminate(self) -> None:
        """Delivers what there is at once, and ends in `TERMINATE_SECONDS` at the latest, with what is left on the disk.

        Until then it goes on: who ends this process may well be about to end the trainer.
        """
        if not self._terminated:
            self._terminated = True
            signal.alarm(TERMINATE_SECONDS)  # whatever it waits for by then

    def run(self) -> int:
        """Delivers; returns the number of recordings that had to be left on the disk."""
        gone_at: float | None = None
        while True:
            self._wake.clear()
            gone = self._closed
            hurry, self._hurry = self._hurry or self._terminated, False
            if gone and gone_at is None:
                gone_at, hurry = time.monotonic(), True
            for one in self._watched():
                one.advance(trainer_gone=gone, hurry=hurry)
                if one.done:
                    with self._lock:
                        del self._deliverers[one.folder]
                    if one.status.error:
                        self._leave([one])
            left = self._watched()
            if gone_at is not None and (not left or all(self._hopeless(one, gone_at) for one in left)):
                return self._leave(left)
            self._wake.wait(PAUSE_SECONDS if gone_at is None else PAUSE_SECONDS / 4)

    def _watched(self) -> list[Deliverer]:
        with self._lock:
            return list(self._deliverers.values())

    def _hopeless(self, one: Deliverer, gone_at: float) -> bool:
        return time.monotonic() - max(gone_at, one.progressed) > self._give_up

    def _leave(self, left: list[Deliverer]) -> int:
        for one in left:
            one.close()
            if one.folder in self._silent:
                continue
            run = one.status.run_id or "(not created yet)"
            why = one.status.error or "another process is delivering it"
            with contextlib.suppress(OSError):
                print(
                    f"mlflow_tfmon: {one.status.waiting} records of run {run} could not be delivered to {one.where} "
                    f"({why}); they are kept in {one.folder} until `mlflow-tfmon sync` delivers them.",
                    file=sys.stderr,
                    flush=True,
                )
        return len(left)


def commands(stdin: int, trainer: Trainer | None) -> Iterator[bytes]:
    """The lines that come from stdin, until it ends or the trainer does.

    A child that the trainer forked may hold the pipe open after the trainer's death, so its end alone is no sure sign.

    Args:
        stdin: file descriptor.
        trainer: None if stdin alone tells of its end.
    """
    rest = b""
    while True:
        # What is in the pipe is read before the trainer's death counts.
        if trainer is not None and not _is_ready(stdin, PAUSE_SECONDS / 4):
            if trainer.is_gone():
                return
            continue
        chunk = os.read(stdin, 65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _is_ready(handle: int, seconds: float) -> bool:
    """Whether there is something to read, or nothing will be, within so many seconds."""
    if not hasattr(select, "poll"):
        return bool(select.select([handle], [], [], seconds)[0])
    # `select` takes no descriptor above 1,023, such as a trainer with many open files hands on.
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Trainer:
    """Who has started the delivery process, which is none of its children.

    Args:
        pid: its process id.
        pidfd: what tells of its end, or -1 where the system has no such thing.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pidfd = pidfd
        self._process: psutil.Process | None = None
        if pidfd < 0:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process = psutil.Process(pid)

    def is_gone(self) -> bool:
        """Whether it has ended."""
        if self._pidfd >= 0:
            return _is_ready(self._pidfd, 0.0)
        try:
            return (
                self._process is None
                or not self._process.is_running()
                or self._process.status() == psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return True


def start(trainer: int, pidfd: int) -> None:
    """Runs the delivery process, and ends it: with exit status 1 if something had to be left on the disk.

    Args:
        trainer: process id of who has started it.
        pidfd: as for `Trainer`.
    """
    delivery = Delivery()
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C, or the terminal's end, stops the training alone
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: delivery.terminate())
    _say_that_it_lives()
    from mlflow_tfmon.tracking.patience import be_quick  # only now: MLflow takes seconds of the processor

    be_quick()
    warnings.simplefilter("ignore")
    for name in ("mlflow", "alembic", "urllib3", "sqlalchemy"):  # we report outages ourselves, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    lines = commands(sys.stdin.fileno(), Trainer(trainer, pidfd))
    threading.Thread(target=delivery.listen, args=(lines,), daemon=True).start()
    status = 1 if delivery.run() else 0
    from mlflow_tfmon.problems import alerts

    alerts.wait()
    with contextlib.suppress(OSError):  # the terminal may be gone
        sys.stderr.flush()
    os._exit(status)  # the thread that reads stdin may be blocked in it for ever


def _say_that_it_lives() -> None:
    """Says so to the trainer for as long as it does, by a pipe that nothing else has."""
    handle = os.dup(1)  # which no program that is called inherits
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    with contextlib.suppress(OSError):  # it has gone already
        os.write(handle, b"%d\n" % os.getpid())
