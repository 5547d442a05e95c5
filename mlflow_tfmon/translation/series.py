"""Which series a stream's blocks hold, and under which key each of them goes to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_tfmon.stream.records import DeepSteps, Paused, Steps, StreamOpened, Variable
from mlflow_tfmon.translation.state import State, StateError

MEASURES = ("step_time_ms", "examples_per_second", "input_wait_share")
_NO_SERIES = frozenset({"step", "time", "input_time", "input_wait", "examples", "applied", "traces"})
_NO_VARIABLE_SERIES = frozenset({"grad_norm_clipped"})


@dataclass(frozen=True)
class Rows:
    """Rows of the series of one block: `values` has shape (rows, series); NaN is absent where `measured` is False.

    Attributes:
        steps: optimizer steps, int64.
        times: Unix time of each row, seconds.
        values: one column a series.
        measured: whether a NaN (or an infinity) is there because the training computed it: shape of `values`.
    """

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray
    measured: np.ndarray


def charted(variables: Sequence[Variable], max_variables: int) -> list[int]:
    """Positions of the variables that get series of their own: all, or where there are too many, the largest kernels.

    Example:
        >>> charted([Variable("a.kernel", (9, 9), True), Variable("a.bias", (9,), False)], max_variables=1)
        [0]
    """
    if len(variables) <= max_variables:
        return list(range(len(variables)))
    kernels = [at for at, variable in enumerate(variables) if variable.is_kernel] or list(
        range(len(variables))
    )
    largest = sorted(kernels, key=lambda at: (-variables[at].size, at))[:max_variables]
    return sorted(largest)


class StepClock:
    """Step times of one stream: the time from one row to the next, without the pauses between them."""

    def __init__(self) -> None:
        self._ends: list[float] = []  # ends of the pauses
        self._time = -np.inf  # of the last row
        self._step = 0  # of the last row
        self._column = ""  # where the times come from

    def paused(self, pause: Paused) -> None:
        """Takes a pause; it may come before or after the rows that precede it."""
        if pause.end > self._time:
            self._ends = sorted([*self._ends, pause.end])

    def durations(self, steps: np.ndarray, times: np.ndarray, column: str = "time") -> np.ndarray:
        """Seconds that each step took; NaN where that is not known.

        That is the first row, one after a gap, and one whose times come from another column than those before.
        """
        if column != self._column:
            self._time, self._column = -np.inf, column
        before = np.concatenate([[self._time], times[:-1]])
        follows = np.diff(steps, prepend=self._step) == 1
        ends = np.array([-np.inf, *self._ends])
        resumed = ends[np.searchsorted(ends, times, side="right") - 1]
        # The pause before a first row may be long over: that of a fit before.
        begun = np.where((resumed > before) & np.isfinite(before), resumed, np.where(follows, before, np.nan))
        with np.errstate(invalid="ignore"):
            spans = times - begun
        if len(times):
            self._time, self._step = float(times[-1]), int(steps[-1])
            self._ends = [end for end in self._ends if end > self._time]
        return np.where(np.isfinite(spans) & (spans > 0), spans, np.nan)

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        return {"ends": self._ends, "time": self._time, "step": self._step, "column": self._column}

    def restore(self, state: State) -> None:
        """Goes on as that which wrote `state` would have.

        Raises:
            StateError: it is none.
        """
        ends = state.items("ends")
        if not all(isinstance(end, (int, float)) for end in ends):
            raise StateError("a clock has a pause without an end")
        self._ends = sorted(map(float, ends))
        self._time, self._step = state.number("time"), state.integer("step")
        self._column = state.text("column")


class StreamSeries:
    """Reads the blocks of one layout.

    Attributes:
        measures: what is computed from the rows, of `MEASURES`.
        step_keys: MLflow keys of the columns of `steps(...)`.
        deep_keys: MLflow keys of the columns of `deep(...)`.

    Args:
        layout: of the stream.
        max_variables: how many variables get series of their own.
        clock: the stream's; it outlives a layout.
    """

    def __init__(self, layout: StreamOpened, max_variables: int, clock: StepClock) -> None:
        self.layout = layout
        self._clock = clock
        columns = layout.columns
        self._at = {name: at for at, name in enumerate(columns)}
        self._clocked = "time" if "time" in self._at else "input_time" if "input_time" in self._at else None
        self.measures = tuple(
            name
            for name, needs in zip(MEASURES, (None, "examples", "input_wait"), strict=True)
            if self._clocked and (needs is None or needs in self._at)
        )
        chosen = charted(layout.variables, max_variables)
        names = [layout.variables[at].name for at in chosen]
        count = len(layout.variables)
        scalars = [name for name in columns if name not in _NO_SERIES]
        quantities = [
            (at, name) for at, name in enumerate(layout.variable_columns) if name not in _NO_VARIABLE_SERIES
        ]
        self.step_keys = (
            *(
                layout.prefix + (name if name.startswith("worker_") else f"batch/{name}")
                for name in (*scalars, *self.measures)
            ),
            *(f"{layout.prefix}{quantity}/{name}" for _, quantity in quantities for name in names),
        )
        self.deep_keys = tuple(
            f"{layout.prefix}{quantity}/{name}" for quantity in layout.deep_columns for name in names
        )
        self._clipped = scalars.index("grad_norm_clipped") if "grad_norm_clipped" in scalars else None
        self._by_worker = [at for at, name in enumerate(scalars) if name.startswith("worker_")]
        self._step_columns = [self._at[name] for name in scalars]
        self._variable_columns = [len(columns) + at * count + one for at, _ in quantities for one in chosen]
        self._deep_columns = [
            1 + at * count + one for at in range(len(layout.deep_columns)) for one in chosen
        ]
        self._undefined = [name == "update_ratio" for name in layout.deep_columns for _ in chosen]

    def column(self, block: Steps, name: str) -> np.ndarray:
        """A scalar column of a block."""
        values: np.ndarray = block.values[:, self._at[name]]
        return values

    def times(self, block: Steps) -> np.ndarray:
        """Unix time of each row, seconds."""
        return self.column(block, "time") if "time" in self._at else np.full(len(block.values), block.seen)

    def measured(self, block: Steps) -> np.ndarray:
        """The block's `measures` (shape (rows, measures)); each block must be asked once, in order."""
        if self._clocked is None:
            return np.zeros((len(block.values), 0))
        spans = self._clock.durations(
            self.column(block, "step"), self.column(block, self._clocked), self._clocked
        )
        found = [spans * 1e3]
        if "examples_per_second" in self.measures:
            found.append(self.column(block, "examples") / spans)
        if "input_wait_share" in self.measures:
            found.append(np.clip(self.column(block, "input_wait") / spans, 0.0, 1.0))
        return np.stack(found, axis=1)

    def steps(self, block: Steps, measures: np.ndarray) -> Rows:
        """The rows of the block's series; `measures` as `measured` gave them."""
        scalars, variables = block.values[:, self._step_columns], block.values[:, self._variable_columns]
        values = np.concatenate([scalars, measures, variables], axis=1)
        measured = np.ones(values.shape, bool)
        measured[:, scalars.shape[1] : scalars.shape[1] + measures.shape[1]] = False
        if self._clipped is not None and "applied" in self._at:
            measured[:, self._clipped] = self.column(block, "applied") > 0
        measured[:, self._by_worker] = False
        return Rows(self.column(block, "step").astype(np.int64), self.times(block), values, measured)

    def deep(self, block: DeepSteps) -> Rows:
        """The rows of the block's per-variable series."""
        values = block.values[:, self._deep_columns]
        measured = ~(np.isnan(values) & np.array(self._undefined, bool)[None, :])
        return Rows(block.values[:, 0].astype(np.int64), np.full(len(values), block.seen), values, measured)
