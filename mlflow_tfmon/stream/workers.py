"""Several workers, one recording: each tells the chief its part of every step, and the chief records the whole.

The gradient is the same on all workers once it has been summed, and so are the weights. What differs by worker is the
loss of its own examples, how many they were, and how long they took. Each worker sends these from its drain's thread,
at deep steps with the checksums of its weights; the training waits for nothing. The chief takes what the others say of
a step only if they saw the same gradient norm at it, and records which of them did not, or have other weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable

import numpy as np

from mlflow_tfmon import cluster
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.signals.checksum import CHECKSUM
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.stream.rows import column, steps

_STEP, _SQUARES, _OWN_TIME, _LOSS, _EXAMPLES, _INPUT_WAIT, _BETWEEN = range(7)  # columns of a report
_WIDTH = 7
_SAME = 1e-6  # relative: of one sum, however it is rounded
_MAX_WAIT_S = 5.0  # s that the chief waits for a worker, once; a worker looks at its rings every 0.05 s
_UNREAD = 1000  # messages after which a worker takes it that the chief does not listen
# Steps between two at which a worker tells of its weights, counted from the first that its ring had. A power of two, as
# the chief's own number is, which is a setting that other workers need not have: then both are deep at these.
TELLS_EVERY = 16

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


def deep_every(ring: Ring, wanted: int) -> int:
    """Every how many steps a ring that is recorded measures everything.

    Args:
        ring: the ring.
        wanted: by the settings; of several workers it is at most that.
    """
    return wanted if ring.layout.workers == 1 else min(TELLS_EVERY, 1 << (wanted.bit_length() - 1))


def gathered(ring: Ring) -> Callable[[Reading], Reading]:
    """What makes a ring's blocks whole on the chief; where there is one worker, they are."""
    if ring not in _number_of:
        return lambda reading: reading
    if ring not in _gatherers:
        _gatherers[ring] = Gatherer(ring)
    return _gatherers[ring].whole


class _Reports:
    """Reads out of a ring's blocks what a worker has to tell."""

    def __init__(self) -> None:
        self._step, self._time = 0, np.nan

    def of(self, reading: Reading) -> np.ndarray:
        """Shape (steps, 7): step, half the squared norm of the gradient, own time, loss, examples, parts of that time.

        Times are in s. A worker's own time of a step goes from the end of the step before to its gradients being ready
        for the sum; the rest of the step is spent waiting for the other workers. The parts are the wait for the batch,
        and what is done between the step before and asking for it: callbacks, a loop's own code. NaN is what was not
        measured.
        """
        numbers, times, counts = steps(reading), column(reading, "time"), column(reading, "losses")
        before = np.concatenate([[self._time], times[:-1]])
        before[np.diff(numbers, prepend=self._step) != 1] = np.nan
        layout, begun = reading.ring.layout, column(reading, "input_time")
        begun = np.where(
            np.isnan(begun), np.nan, column(reading, "input_start")
        )  # which says no time by itself
        norms = [f"{layout.norms[0]}/{at}" for at in range(len(layout.variables))]
        out = np.column_stack(
            [
                numbers,
                np.sum([column(reading, norm) for norm in norms], axis=0),
                column(reading, "ready") - before,
                np.where(counts > 0, column(reading, "loss") / np.maximum(counts, 1), np.nan),
                column(reading, "examples"),
                column(reading, "input_time") - begun,
                np.maximum(begun - before, 0.0),  # it may have been asked for before
            ]
        )
        if len(numbers):
            self._step, self._time = int(numbers[-1]), float(times[-1])
        return out


def _checksums(reading: Reading) -> np.ndarray:
    """Shape (deep steps, 1 + variables): step, the checksum of each variable's weights after it."""
    first = 1 + INGREDIENTS.index(CHECKSUM) * (count := len(reading.ring.layout.variables))
    rows = reading.deep.rows
    return np.column_stack([rows[:, 0], rows[:, first : first + count]])


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
            told = np.concatenate([[len(report)], report.ravel(), _checksums(reading).ravel()])
            self._heard = cluster.send(f"{self._name}/{self._sent}", told.tobytes())
            self._sent += 1


class _Inbox:
    """What one worker has told of a ring's steps."""

    def __init__(self, ring: Ring, worker: int) -> None:
        self._name, self._worker = f"{_number_of[ring]}/{worker}", worker
        self._received = 0
        self._awaited = True
        # Kept for a block that comes again.
        self._rows = np.empty((0, _WIDTH))
        self._checksums = np.empty((0, 1 + len(ring.layout.variables)))

    def told(self, steps: np.ndarray, deep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the worker told of steps and of deep steps (consecutive or not); NaN where it told nothing."""
        self._rows = self._rows[self._rows[:, _STEP] >= steps[0]]
        self._checksums = self._checksums[self._checksums[:, 0] >= steps[0]]
        while self._awaited and (not len(self._rows) or self._rows[-1, _STEP] < steps[-1]):
            key = f"{self._name}/{self._received}"
            data = cluster.receive(key, _MAX_WAIT_S)
            if data is None:
                self._awaited = False
                what = (
                    f"no longer reports its steps (from step {steps[0]:.0f} on)"
                    if self._received
                    else "does not report its steps"
                )
                say_once(
                    f"worker {self._worker}",
                    f"mlflow_tfmon: worker {self._worker} {what}: the loss and the examples "
                    "of the whole batch are not recorded. Call mlflow_tfmon.autolog() on every worker.",
                )
                break
            cluster.forget(key)
            self._received += 1
            values = np.frombuffer(data)
            rows, checksums = np.split(values[1:], [int(values[0]) * _WIDTH])
            self._rows = np.concatenate([self._rows, rows.reshape(-1, _WIDTH)])
            width = self._checksums.shape[1]
            self._checksums = np.concatenate([self._checksums, checksums.reshape(-1, width)])
        return _at(steps, self._rows), _at(deep, self._checksums)


def _at(steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of steps, by their first column; NaN where there is none."""
    out = np.full((len(steps), rows.shape[1]), np.nan)
    _, at, of = np.intersect1d(steps, rows[:, 0], return_indices=True)
    out[at] = rows[of]
    return out


class Gatherer:
    """Adds to the chief's blocks what the other workers tell."""

    def __init__(self, ring: Ring) -> None:
        self._reports = _Reports()
        self._inboxes = [_Inbox(ring, worker) for worker in range(1, ring.layout.workers)]
        self._known: set[str] = set()  # the further columns, once there was something in them

    def whole(self, reading: Reading) -> Reading:
        """The block with loss and examples of all workers, the own times of each, and in what it is apart.

        Waits for the other workers; one that does not tell in time is waited for no more.

        Args:
            reading: the chief's.
        """
        if not len(reading.rows):
            return reading
        own, checksums = self._reports.of(reading), _checksums(reading)
        reading = dataclasses.replace(reading, rows=reading.rows.copy())
        everyone: list[np.ndarray] = [own]
        more: dict[str, np.ndarray] = {}
        for worker, inbox in enumerate(self._inboxes, 1):
            theirs, their_checksums = inbox.told(own[:, _STEP], checksums[:, 0])
            differs = _apart(own[:, _SQUARES], theirs[:, _SQUARES])
            differs[np.isnan(theirs[:, _STEP])] = np.nan
            more[f"worker_{worker}/gradient_apart"] = differs
            compared = np.column_stack([checksums[:, 0], _first_apart(checksums, their_checksums)])
            more[f"worker_{worker}/weights_apart"] = _at(own[:, _STEP], compared)[:, 1]
            theirs[differs != 0] = np.nan
            everyone.append(theirs)
        figures = np.stack(everyone)
        known = ~np.isnan(figures[:, :, _STEP]).any(axis=0)
        column(reading, "loss")[:] = figures[:, :, _LOSS].sum(axis=0)
        column(reading, "losses")[:] = known & (column(reading, "losses") > 0)
        column(reading, "examples")[:] = figures[:, :, _EXAMPLES].sum(axis=0)
        for name, of in (
            ("step_time_ms", _OWN_TIME),
            ("input_wait_ms", _INPUT_WAIT),
            ("between_steps_ms", _BETWEEN),
        ):
            more |= {f"worker_{worker}/{name}": 1e3 * one[:, of] for worker, one in enumerate(everyone)}
        self._known |= {name for name, values in more.items() if not np.isnan(values).all()}
        return dataclasses.replace(reading, more={name: more[name] for name in more if name in self._known})


def _apart(own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """By which part of the chief's gradient norm a worker's is another; 0 where it is the same sum."""
    same = np.isclose(theirs, own, rtol=_SAME, atol=0, equal_nan=True)
    with np.errstate(all="ignore"):
        part = np.abs(np.sqrt(theirs / own) - 1)
    return np.where(same, 0.0, np.where(np.isfinite(part), part, 1.0))


def _first_apart(own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which variable, from 1, is the first whose weights are not the chief's: 0 if none, NaN where that is not told."""
    differ = own[:, 1:] != theirs[:, 1:]
    first = np.where(differ.any(axis=1), 1.0 + differ.argmax(axis=1), 0.0)
    return np.where(np.isnan(theirs[:, 0]), np.nan, first)
