"""Thread that writes checkpoints while training continues."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Job = TypeVar("Job")
SHARE = 0.05  # of the time may be spent on writing: it takes the interpreter from the training


class Queue(Generic[Job]):
    """Jobs that wait to be done, by number, on a thread that lives while there are any.

    After a job that took the processor for t seconds the next waits 19 t, so that a short epoch's checkpoint does not
    slow the next down; meanwhile a better one may take its place. Waiting for a disk, or for a processor that others
    have, takes nothing from the training.

    Args:
        do: does a job; returns whether it is done. One that is not (disk full) waits for the next call of `put` or
            `finish`. It must not raise.
    """

    def __init__(self, do: Callable[[int, Job], bool]) -> None:
        self._do = do
        self._jobs: dict[int, Job] = {}
        self._stuck: set[int] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._hurry = 0
        self._rest_until = 0.0
        self._once = 0.0  # s of the job that is being done that no further job takes

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Within a job: what is done here (imports, what all have in common) is done once, and the next waits none."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._once += time.thread_time() - began

    def put(self, number: int, job: Job, wanted: frozenset[int]) -> None:
        """Adds a job; those that wait and are not wanted any more are forgotten."""
        with self._changed:
            self._jobs[number] = job
            self._jobs = {n: one for n, one in self._jobs.items() if n in wanted}
            self._stuck.clear()
            self._go_on()

    def finish(self) -> bool:
        """Does at once all that waits, and waits for it; not within a job, which would wait for itself.

        Returns:
            Whether all of it is done: what a disk does not take is not.
        """
        with self._changed:
            if self._thread is threading.current_thread():
                return True
            self._hurry += 1
            self._stuck.clear()
            self._go_on()
            self._changed.wait_for(lambda: self._thread is None)
            self._hurry -= 1
            return not self._jobs

    def _go_on(self) -> None:
        self._changed.notify_all()
        if self._jobs and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow_tfmon checkpoints", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            self._work_until_done()
        except BaseException:
            with self._changed:
                self._thread = None
                self._changed.notify_all()
            raise

    def _work_until_done(self) -> None:
        while True:
            with self._changed:
                rest = self._rest_until - time.monotonic()
                if rest > 0 and not self._hurry:
                    self._changed.wait(rest)
                    continue
                number = next((n for n in self._jobs if n not in self._stuck), None)
                if number is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
                job = self._jobs[number]
            self._once, began = 0.0, time.thread_time()
            done = self._do(number, job)
            with self._changed:
                took = time.thread_time() - began - self._once
                self._rest_until = time.monotonic() + took * (1 / SHARE - 1)
                if not done:
                    self._stuck.add(number)
                elif self._jobs.get(number) is job:
                    del self._jobs[number]
                del job
