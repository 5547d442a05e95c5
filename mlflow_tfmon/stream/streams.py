"""One stream of a recording: an optimizer's steps, under one name, and how far they have come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.stream import records, rows
from mlflow_tfmon.stream.continuation import PastStream
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import Ring


@dataclass
class Stream:
    """One optimizer's steps within a recording: its number, what it trains, and how far it has come.

    Attributes:
        begins: whether a further optimizer would belong to the same training, and give names to both.
        named: whether the series are shown, under the names that they have now.
        since: when it was opened, monotonic seconds.
        variables: a mark of what it trains.
        carried: whether it has been taken over from a checkpoint, and has not gone on yet.
        last_histogram: the last step that has histograms.
        optimizer: gives the optimizer whose steps they are, while it lives.
        rings: into which it writes them.
        blocks: read of these rings, and not recorded yet.
    """

    number: int
    keys: frozenset[str]
    name: str
    prefix: str
    model: str
    total_steps: int | None
    steps: int = 0
    learning_rate: float | None = None
    opened: records.StreamOpened | None = None
    begins: bool = True
    named: bool = False
    since: float = field(default_factory=time.monotonic)
    variables: str = ""
    carried: bool = False
    last_histogram: int = 0
    optimizer: Callable[[], Any] = field(default=lambda: None, repr=False)
    rings: list[Ring] = field(default_factory=list, repr=False)
    readings: list[Reading] = field(default_factory=list, repr=False)

    @classmethod
    def carried_on(cls, past: PastStream, resumed: bool) -> Stream:
        """A stream of an earlier recording, which goes on once it is known who trains its variables."""
        return cls(
            past.number, frozenset(), past.name, past.prefix, past.model, None, past.steps,
            begins=False, named=True, variables=past.variables, carried=resumed,
        )  # fmt: skip

    def is_of(self, ring: Ring) -> bool:
        """Whether a ring's steps are those of this stream's optimizer."""
        optimizer = ring.optimizer()
        return optimizer is not None and optimizer is self.optimizer() and bool(self.keys & ring.reach)

    def goes_on_with(self, ring: Ring, compiled: bool) -> bool:
        """Whether a ring's optimizer takes the place of this stream's, which trained the same variables.

        Args:
            ring: of an optimizer that has no stream.
            compiled: whether the optimizer is the one that a model is compiled with: it takes the place of whatever
                trained the model before; any other that of one which is no more.
        """
        keys = ring.layout.keys
        nested = bool(self.keys) and (self.keys <= keys or keys <= self.keys)
        return nested and (self.optimizer() is None or (compiled and not self.begins))

    def in_order(self, reading: Reading, last: bool = False) -> tuple[list[Reading], list[Reading]]:
        """Puts rows in the order of the updates, whichever of the stream's rings they are in.

        Args:
            reading: that has been read; one that could not be recorded comes again.
            last: whether nothing is waited for.

        Returns:
            What is to be recorded now, and what has to wait for rows of another ring that may come before.
        """
        known = [one for one in self.readings if one.ring is not reading.ring or one.first != reading.first]
        readings = [*known, reading] if len(reading.rows) or reading.lost else known
        if len({id(one.ring) for one in readings} | {id(ring) for ring in self.rings}) < 2:
            return readings, []
        unread = [] if last else [ring for ring in self.rings if _has_more(ring, reading)]
        if any(all(one.ring is not ring for one in readings) for ring in unread):
            return [], readings
        if not all(rows.timed(one) for one in readings):
            return readings, []
        ends = [rows.times(one)[-1] for one in readings if any(one.ring is ring for ring in unread)]
        times = np.concatenate([rows.times(one) for one in readings])
        of = np.concatenate([np.full(len(one.rows), at) for at, one in enumerate(readings)])
        order = np.argsort(times, kind="stable")
        order = order[times[order] <= min(ends, default=np.inf)]
        done = [0] * len(readings)
        found = []
        for part in np.split(of[order], np.flatnonzero(np.diff(of[order])) + 1):
            if len(part):
                at, begin = int(part[0]), done[int(part[0])]
                done[at] += len(part)
                found.append(rows.piece(readings[at], begin, done[at]))
        left = [rows.piece(one, begin, len(one.rows)) for one, begin in zip(readings, done, strict=True)]
        return found, [one for one in left if len(one.rows)]

    def read(self, reading: Reading, part: slice, offset: int) -> tuple[records.StreamOpened, records.Steps]:
        """Some rows of a reading, and the layout that they have."""
        columns, norms = rows.columns_of(reading, part, offset)
        layout = reading.ring.layout
        opened = records.StreamOpened(
            self.number, self.prefix, layout.variables, tuple(columns), layout.norms,
            tuple(one.name for one in signals.DEEP), self.total_steps, self.model, self.named,
        )  # fmt: skip
        return opened, records.Steps(self.number, reading.seen, np.column_stack([*columns.values(), norms]))


def _has_more(ring: Ring, reading: Reading) -> bool:
    """Whether a ring has rows that were not read yet, now that a block has been."""
    read = reading.first + reading.lost + len(reading.rows) - 1 if ring is reading.ring else ring.taken
    return ring.written() > read
