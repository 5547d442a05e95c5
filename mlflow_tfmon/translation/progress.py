"""The progress of a training in one line for people: the run's tag `tfmon.progress`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan
from typing import Any

import numpy as np

from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded
from mlflow_tfmon.translation.state import State, StateError

_SHOWN = ("loss", "learning_rate", "grad_norm")
_STREAMS = 4  # a line of more is none that is read
_FIRST_STEP, _FIRST_TIME, _TOTAL = (
    "first_step",
    "first_time",
    "total_steps",
)  # in a row, beside what was recorded


class Progress:
    """Keeps each stream's last row.

    Example:
        >>> progress.text()
        'step 12345 of 20000, 3 epochs done, loss 0.1234, learning_rate 0.001, grad_norm 1.2, 3.4 ms a step, 26 s left'
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[str, dict[str, float]]] = {}  # the stream that moved last comes last
        self.epochs: dict[str, int] = {}  # how many are done, by prefix
        self.stalled = ""  # since when it has, if it has
        self.over = False  # then no time is left

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        rows = [{"stream": of, "prefix": prefix, "row": row} for of, (prefix, row) in self._rows.items()]
        return {"rows": rows, "epochs": self.epochs, "stalled": self.stalled}

    def restore(self, state: State) -> None:
        """Goes on as that which wrote `state` would have.

        Raises:
            StateError: it is none.
        """
        self.epochs = state.integers("epochs")
        self.stalled = state.text("stalled") if state.has("stalled") else ""
        self._rows = {
            one.integer("stream", 0): (one.text("prefix"), one.numbers("row")) for one in state.parts("rows")
        }
        for _, row in self._rows.values():
            if not isfinite(row.get("step", nan)):
                raise StateError("a stream's last row has no step")

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        """Takes a block and the measures that were computed from it."""
        row = block.last | {name: float(values[-1]) for name, values in measures.items()}
        _, before = self._rows.pop(block.layout.stream, ("", {}))
        row[_TOTAL] = float(block.layout.total_steps or nan)
        if before.get(_TOTAL, nan) != row[_TOTAL]:  # a further fit: what was between them is no step's time
            before = {}
        row[_FIRST_STEP] = before.get(_FIRST_STEP, row["step"])
        row[_FIRST_TIME] = before.get(_FIRST_TIME, row.get("time", nan))
        self._rows[block.layout.stream] = block.layout.prefix, row

    def epoch(self, record: EpochEnded) -> None:
        """Takes an epoch's end."""
        self.epochs[record.prefix] = record.epoch + 1

    def step(self, stream: int) -> int:
        """The last step of a stream, 0 before the first."""
        return int(self._rows[stream][1]["step"]) if stream in self._rows else 0

    def text(self) -> str:
        """The last row of the stream, or of each of the few that moved last, without what is not finite."""
        lines = [self._line(*self._rows[stream]) for stream in sorted(list(self._rows)[-_STREAMS:])]
        return "; ".join([*lines, *([f"stalled {self.stalled}"] if self.stalled else [])])

    def _line(self, prefix: str, row: dict[str, float]) -> str:
        epochs = self.epochs.get(prefix, 0)
        step, total = int(row["step"]), row.get(_TOTAL, nan)
        found = [f"step {step}" + (f" of {total:.0f}" if total >= step else "")]
        if epochs:
            found.append("1 epoch done" if epochs == 1 else f"{epochs} epochs done")
        found += [f"{name} {row[name]:.4g}" for name in _SHOWN if isfinite(row.get(name, nan))]
        if isfinite(row.get("step_time_ms", nan)):
            found.append(f"{row['step_time_ms']:.4g} ms a step")
        steps, seconds = step - row.get(_FIRST_STEP, nan), row.get("time", nan) - row.get(_FIRST_TIME, nan)
        if total > step and steps > 0 and seconds > 0 and not self.over:  # validation is in that time
            found.append(f"{_span((total - step) * seconds / steps)} left")
        return (f"{prefix.rstrip('.')}: " if prefix else "") + ", ".join(found)


def _span(seconds: float) -> str:
    """Such as "26 s", "12 min" or "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
