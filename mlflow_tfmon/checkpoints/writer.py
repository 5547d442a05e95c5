"""Thread that writes checkpoints while training continues."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Job = TypeVar("Job")
SHARE = 0.05  # share of the time for writing, which takes the interpreter from the training


class Queue(Generic[Job]):
    """Queue of pending jobs, by number, done on a thread that lives while there are any.

    After a job that used t seconds of the processor the next waits 19 t, so that a short epoch's checkpoint does not
    slow down the next epoch; meanwhile a better one may replace it. Waiting for a disk, or for a busy processor, takes
    nothing from the training.

    Args:
        do: does a job; returns whether it is done. If not (disk full), the job waits for the next call of `put` or
            `finish`. Must not raise.
    """

    def __init__(self, do: Callable[[int, Job], bool]) -> None:
        self._do = do
        self._jobs: dict[int, Job] = {}
        self._stuck: set[int] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._hurry = 0
        self._rest_until = 0.0
        self._once = 0.0  # s of the current job that later jobs do not take again

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Context manager within a job for one-time work (imports, shared files), which does not delay the next job."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._once += time.thread_time() - began

    def put(self, number: int, job: Job, wanted: frozenset[int]) -> None:
        """Adds a job; pending jobs that are no longer wanted are dropped."""
        with self._changed:
            self._jobs[number] = job
            self._jobs = {n: one for n, one in self._jobs.items() if n in wanted}
            self._stuck.clear()
            self._go_on()

    def finish(self) -> bool:
        """Does all pending jobs at once, and waits for them; not within a job, which would wait for itself.

        Returns:
            Whether all are done: those that the disk does not accept are not.
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
