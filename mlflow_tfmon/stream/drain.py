"""The drain: the one thread that takes rows out of the rings and hands them to whoever records them."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mlflow_tfmon.errors import contained
from mlflow_tfmon.stream.ring import Ring, SeldomRows

# s between two looks at the rings, such that the fullest is a quarter full by the next. A look takes a millisecond of
# Python, for which the training's own has to wait.
_SOONEST, _FIRST, _LATEST = 0.02, 0.05, 0.25
_FULL = 0.25


@dataclass(frozen=True)
class Reading:
    """What was read of a ring at once.

    Attributes:
        ring: where it comes from.
        rows: array (steps, ring.width), oldest first.
        deep: rows (deep steps, ...); column 0 is the ring's own step.
        histograms: the same for the steps that have some.
        first: the ring's own number of the first step asked for.
        lost: how many steps from `first` on were overwritten before they could be read.
        seen: Unix time of the reading.
        more: further columns, by name; NaN where there is nothing.
    """

    ring: Ring
    rows: np.ndarray = field(repr=False)
    deep: SeldomRows = field(repr=False)
    histograms: SeldomRows = field(repr=False)
    first: int
    lost: int
    seen: float
    more: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)


@dataclass
class _Tap:
    ring: Ring
    sink: Callable[[Reading], None]


class Drain:
    """Reads rings in a background thread; sinks are called one at a time, in order.

    Args:
        on_idle: called before each look at the rings, in the drain's thread.
    """

    def __init__(self, on_idle: Callable[[], None] = lambda: None) -> None:
        self._taps: list[_Tap] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._on_idle = on_idle
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._stopped = False
        self._called = threading.Event()

    def attach(self, ring: Ring, sink: Callable[[Reading], None]) -> None:
        """Hands a ring's steps to a sink, from the first on that was not taken yet; a ring has one sink."""
        with self._lock:
            if self.has(ring):
                return
            self._taps.append(_Tap(ring, sink))
            self.keep_running()

    def is_this_thread(self) -> bool:
        """Whether the caller runs in the drain's thread."""
        return threading.current_thread() is self._thread

    def has(self, ring: Ring) -> bool:
        return any(tap.ring is ring for tap in self._taps)

    def detach(self, rings: Iterable[Ring]) -> None:
        """Takes what is left in these rings, then lets go of them."""
        rings = list(rings)
        with self._lock:
            self.flush(rings)
            self._taps = [tap for tap in self._taps if not any(tap.ring is ring for ring in rings)]

    def before_next_rows(self, job: Callable[[], None]) -> None:
        """Has something done soon, and before any further row is taken, without waiting for it."""
        self._jobs.append(job)
        self._called.set()

    def flush(self, rings: Iterable[Ring] | None = None) -> float:
        """Takes all rows that have been written by now, on the caller's thread.

        Returns:
            How full the fullest ring was, from 0 to 1.
        """
        wanted = None if rings is None else list(rings)
        fullest = 0.0
        with self._lock:
            while self._jobs:
                with contained("what follows on an epoch's end", "a part of it is not recorded"):
                    self._jobs.popleft()()
            for tap in list(self._taps):
                if wanted is None or any(tap.ring is ring for ring in wanted):
                    fullest = max(fullest, self._take(tap))
        return fullest

    def _take(self, tap: _Tap) -> float:
        ring = tap.ring
        after, upto = ring.taken, ring.written()
        ring.seen = upto
        if upto <= after:
            return 0.0
        rows, lost = ring.read(after, upto)
        deep, histograms = ring.deep.read(upto), ring.histograms.read(upto)
        tap.sink(Reading(ring, rows, deep, histograms, after + 1, lost, time.time()))
        # If the sink failed, the rows are read again as long as they are in the ring.
        ring.taken, ring.deep.taken, ring.histograms.taken = upto, deep.taken, histograms.taken
        return max(
            min(1.0, (upto - after) / ring.capacity),
            len(deep.rows) / ring.deep.capacity,
            len(histograms.rows) / ring.histograms.capacity,
        )

    def stop(self) -> None:
        """Ends the thread (the interpreter must not go while it is inside TensorFlow)."""
        self._stopped = True
        self._called.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def forked(self) -> None:
        """In a forked child: nothing of its parent's is its own, neither rings nor the thread."""
        self.__init__(self._on_idle)  # type: ignore[misc]

    def keep_running(self) -> None:
        """Starts the thread unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="mlflow_tfmon-drain", daemon=True)
            with contained("starting a thread", "steps are taken at the ends of epochs and trainings alone"):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        wait = _FIRST
        while os.getpid() == self._pid:
            self._called.wait(wait)
            self._called.clear()
            if self._stopped:
                return
            with contained("looking after the trainings", "some of them may not be recorded"):
                self._on_idle()
            with contained("the drain", "some steps are not recorded"):
                fullest = self.flush()
                wait = min(max(wait * _FULL / fullest, _SOONEST) if fullest else _LATEST, 2 * wait, _LATEST)
