"""Several workers, one recording: each tells the chief its part of every step, and the chief records the whole.

The gradient is the same on all workers once it has been summed. What differs by worker is the loss of its own examples,
how many they were, and how long they took. Each worker sends these from its drain's thread; the training waits for
nothing. The chief takes what the others say of a step only if they saw the same gradient norm at it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable

import numpy as np

from mlflow_tfmon import cluster
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.stream.rows import column, steps

_STEP, _SQUARES, _OWN_TIME, _LOSS, _EXAMPLES = range(5)  # columns of a report
_SAME, _APART = 1e-6, 1e-3  # relative: of one sum, however it is rounded; of what is no rounding any more
_MAX_WAIT_S = 5.0  # s that the chief waits for a worker, once; a worker looks at its rings every 0.05 s
_UNREAD = 1000  # messages after which a worker takes it that the chief does not listen

_numbers = itertools.count()
_number_of: weakref.WeakKeyDictionary[Ring, int] = weakref.WeakKeyDictionary()
_gatherers: weakref.WeakKeyDictionary[Ring, Gatherer] = weakref.WeakKeyDictionary()


def number(ring: Ring) -> None:
    """Numbers a new ring: all workers run one script, so a ring has the same number on each."""
    if ring.layout.workers > 1:
        _number_of[ring] = next(_numbers)


def reports(ring: Ring) -> bool:
    """Whether this process is to tell a ring's steps to the chief instead of recording them."""
    place = cluster.place()
    return ring.layout.workers > 1 and place is not None and place.index > 0


def gathered(ring: Ring, differs: Callable[[str], None]) -> Callable[[Reading], Reading]:
    """What makes a ring's blocks whole on the chief; where there is one worker, they are.

    Args:
        ring: the ring.
        differs: is told of the workers whose gradients are not the chief's.
    """
    if ring not in _number_of:
        return lambda reading: reading
    if ring not in _gatherers:
        _gatherers[ring] = Gatherer(ring)
    return functools.partial(_gatherers[ring].whole, differs)


class _Reports:
    """Reads out of a ring's blocks what a worker has to tell."""

    def __init__(self) -> None:
        self._step, self._time = 0, np.nan

    def of(self, reading: Reading) -> np.ndarray:
        """Shape (steps, 5): step, half the squared norm of the gradient, own time in s, loss, examples.

        A worker's own time of a step goes from the end of the step before to its gradients being ready for the sum;
        the rest of the step is spent waiting for the other workers. NaN is what was not measured.
        """
        numbers, times, counts = steps(reading), column(reading, "time"), column(reading, "losses")
        before = np.concatenate([[self._time], times[:-1]])
        before[np.diff(numbers, prepend=self._step) != 1] = np.nan
        layout = reading.ring.layout
        norms = [f"{layout.norms[0]}/{at}" for at in range(len(layout.variables))]
        out = np.column_stack(
            [
                numbers,
                np.sum([column(reading, norm) for norm in norms], axis=0),
                column(reading, "ready") - before,
                np.where(counts > 0, column(reading, "loss") / np.maximum(counts, 1), np.nan),
                column(reading, "examples"),
            ]
        )
        if len(numbers):
            self._step, self._time = int(numbers[-1]), float(times[-1])
        return out


class Reporter:
    """Tells the chief of a ring's steps, on a worker that is not the chief."""

    def __init__(self, ring: Ring, worker: int) -> None:
        self._name = f"{_number_of[ring]}/{worker}"
        self._reports = _Reports()
        self._sent = 0
        self._heard = True

    def take(self, reading: Reading) -> None:
        """Sends what is to be told of a reading."""
        report = self._reports.of(reading)
        if self._sent >= _UNREAD and cluster.receive(f"{self._name}/{self._sent - _UNREAD}", 0.001):
            self._heard = False
        if self._heard and len(report):
            self._heard = cluster.send(f"{self._name}/{self._sent}", report.tobytes())
            self._sent += 1


class _Inbox:
    """What one worker has told of a ring's steps."""

    def __init__(self, ring: Ring, worker: int) -> None:
        self._name, self._worker = f"{_number_of[ring]}/{worker}", worker
        self._received = 0
        self._awaited = True
        self._rows = np.empty((0, 5))

    def rows(self, steps: np.ndarray) -> np.ndarray:
        """What the worker told of steps (consecutive or not); NaN where it told nothing."""
        rows = self._rows[self._rows[:, _STEP] >= steps[0]]
        while self._awaited and (not len(rows) or rows[-1, _STEP] < steps[-1]):
            key = f"{self._name}/{self._received}"
            data = cluster.receive(key, _MAX_WAIT_S)
            if data is None:
                self._awaited = False
                say_once(
                    f"worker {self._worker}",
                    f"mlflow_tfmon: worker {self._worker} does not tell of its steps: the loss and the examples of the "
                    "whole batch are not recorded. Call mlflow_tfmon.autolog() on every worker.",
                )
                break
            cluster.forget(key)
            self._received += 1
            rows = np.concatenate([rows, np.frombuffer(data).reshape(-1, 5)])
        self._rows = rows  # kept for a block that comes again
        out = np.full((len(steps), 5), np.nan)
        _, at, of = np.intersect1d(steps, rows[:, _STEP], return_indices=True)
        out[at] = rows[of]
        return out


class Gatherer:
    """Adds to the chief's blocks what the other workers tell."""

    def __init__(self, ring: Ring) -> None:
        self._differ: dict[int, str] = {}
        self._reports = _Reports()
        self._inboxes = [_Inbox(ring, worker) for worker in range(1, ring.layout.workers)]

    def whole(self, differs: Callable[[str], None], reading: Reading) -> Reading:
        """The block with loss and examples of all workers, and the own step time of each of them.

        Waits for the other workers; one that does not tell in time is waited for no more.

        Args:
            differs: as for `gathered`.
            reading: the chief's.
        """
        if not len(reading.rows):
            return reading
        own = self._reports.of(reading)
        reading = dataclasses.replace(reading, rows=reading.rows.copy())
        told = [inbox.rows(own[:, _STEP]) for inbox in self._inboxes]
        for worker, theirs in enumerate(told, 1):
            self._compare(worker, own, theirs, differs)
            same = np.isclose(theirs[:, _SQUARES], own[:, _SQUARES], rtol=_SAME, equal_nan=True)
            theirs[~same | np.isnan(theirs[:, _STEP])] = np.nan
        everyone = np.stack([own, *told])
        known = ~np.isnan(everyone[:, :, _STEP]).any(axis=0)
        column(reading, "loss")[:] = everyone[:, :, _LOSS].sum(axis=0)
        column(reading, "losses")[:] = known & (column(reading, "losses") > 0)
        column(reading, "examples")[:] = everyone[:, :, _EXAMPLES].sum(axis=0)
        times = {
            f"worker_{worker}/step_time_ms": 1e3 * figures[:, _OWN_TIME]
            for worker, figures in enumerate(everyone)
            if not np.isnan(figures[:, _OWN_TIME]).all()
        }
        return dataclasses.replace(reading, more=times)

    def _compare(
        self, worker: int, own: np.ndarray, theirs: np.ndarray, differs: Callable[[str], None]
    ) -> None:
        """Tells of a worker whose gradient, once it had been summed, was another than the chief's."""
        apart = ~np.isclose(theirs[:, _SQUARES], own[:, _SQUARES], rtol=_APART, atol=0, equal_nan=True)
        at = np.flatnonzero(apart & ~np.isnan(theirs[:, _STEP]))
        if not len(at) or worker in self._differ:
            return
        step = int(own[at[0], _STEP])
        mine, its = (np.sqrt(2 * figures[at[0], _SQUARES]) for figures in (own, theirs))
        self._differ[worker] = (
            f"worker {worker} at step {step} (gradient norm {its:.6g}; the chief's {mine:.6g})"
        )
        text = "; ".join(self._differ.values())
        say_once(
            f"differs {text}",
            f"mlflow_tfmon: not all workers have the same gradient: {text}; the loss of such steps is not recorded. "
            "Call mlflow_tfmon.autolog(), or start the Monitor, at the same place of the script on every worker; if "
            "that is so, they do not train the same model any more.",
        )
        differs(text)
