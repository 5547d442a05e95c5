"""One stream of a recording: an optimizer's steps, under one name, and how far they have come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from mlflow_tfmon.stream import records, rows
from mlflow_tfmon.stream.drain import Block
from mlflow_tfmon.stream.past import PastStream


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

    @classmethod
    def carried_on(cls, past: PastStream, resumed: bool) -> Stream:
        """A stream of an earlier recording, which goes on once it is known who trains its variables."""
        return cls(
            past.number, frozenset(), past.name, past.prefix, past.model, None, past.steps,
            begins=False, named=True, variables=past.variables, carried=resumed,
        )  # fmt: skip

    def read(self, block: Block, part: slice, offset: int) -> tuple[records.StreamOpened, records.Steps]:
        """Some rows of a block, and the layout that they have."""
        columns, norms = rows.columns_of(block, part, offset)
        layout = block.ring.layout
        opened = records.StreamOpened(
            self.number, self.prefix, layout.variables, tuple(columns), layout.norms, rows.DEEP_QUANTITIES,
            self.total_steps, self.model, self.named,
        )  # fmt: skip
        return opened, records.Steps(self.number, block.seen, np.column_stack([*columns.values(), norms]))
