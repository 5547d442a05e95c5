"""The series of a stream: what its blocks hold, and the MLflow key of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.signals.signal import Signal
from mlflow_tfmon.signals.steps import SECONDS
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import Paused, StreamOpened, Variable
from mlflow_tfmon.translation.state import State, StateError


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


def patterns_of(setting: str) -> list[str]:
    """The patterns in the setting `variables`.

    Example:
        >>> patterns_of("encoder.*, *.bias")
        ['encoder.*', '*.bias']
    """
    return [like.strip() for like in setting.split(",") if like.strip()]


def charted(variables: Sequence[Variable], most: int, patterns: Sequence[str] = ()) -> list[int]:
    """Positions of the variables that get series of their own, the largest of them where there are too many.

    Args:
        variables: all.
        most: how many there may be.
        patterns: of their names, as in the setting `variables`; without one the kernels, or all if none is a kernel.

    Example:
        >>> charted([Variable("a.kernel", (9, 9), True), Variable("a.bias", (9,), False)], 50)
        [0]
    """
    wanted = [at for at, one in enumerate(variables) if any(fnmatchcase(one.name, like) for like in patterns)]
    if not patterns:
        wanted = [at for at, one in enumerate(variables) if one.is_kernel] or list(range(len(variables)))
    return sorted(sorted(wanted, key=lambda at: (-variables[at].size, at))[:most])


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
        measures: names of what is computed from the rows (`signals.MEASURES`).
        step_keys: MLflow keys of the columns of `steps(...)`.
        deep_keys: MLflow keys of the columns of `deep(...)`.

    Args:
        layout: of the stream.
        clock: the stream's; it outlives a layout.
        most: how many variables get series of their own.
        patterns: which do, as in `charted`.
    """

    def __init__(
        self, layout: StreamOpened, clock: StepClock, *, most: int, patterns: Sequence[str] = ()
    ) -> None:
        self.layout = layout
        self._clock = clock
        self.measures = tuple(one.name for one in signals.measures(layout.columns))
        self._chosen = charted(layout.variables, most, patterns)
        self._scalars = [
            name
            for name in layout.columns
            if name != "step" and not name.endswith("_apart") and _is_curve(signals.of_step(name))
        ]
        self._quantities = _curves(layout.variable_columns)
        self._deep = _curves(layout.deep_columns)
        self.step_keys = (
            *(
                layout.prefix + (name if _is_of_worker(name) else f"batch/{name}")
                for name in (*self._scalars, *self.measures)
            ),
            *self._keys(self._quantities),
        )
        self.deep_keys = self._keys(self._deep)

    def _keys(self, quantities: Sequence[str]) -> tuple[str, ...]:
        names = [self.layout.variables[at].name for at in self._chosen]
        return tuple(f"{self.layout.prefix}{quantity}/{name}" for quantity in quantities for name in names)

    def measured(self, block: Block) -> np.ndarray:
        """The block's `measures` (shape (rows, measures)); each block must be asked once, in order."""
        clocked = next((name for name in ("time", "input_time") if name in block.names), None)
        if clocked is None:
            return np.zeros((len(block), 0))
        spans = self._clock.durations(block.step("step"), block.step(clocked), clocked)
        arrays = {name: block.step(name) for name in block.names} | {SECONDS: spans}
        with np.errstate(all="ignore"):
            return np.stack([one.finish(arrays) for one in signals.measures(block.names)], axis=1)

    def steps(self, block: Block, measures: np.ndarray) -> Rows:
        """The rows of the block's series; `measures` as `measured` gave them."""
        scalars = [block.step(name) for name in self._scalars]
        variables = [block.variables(name)[:, self._chosen] for name in self._quantities]
        values = np.column_stack([*scalars, measures, *variables])
        measured = np.ones(values.shape, bool)
        measured[:, len(scalars) : len(scalars) + measures.shape[1]] = False
        for at, name in enumerate(self._scalars):
            if name == "grad_norm_clipped" and "applied" in block.names:
                measured[:, at] = block.step("applied") > 0
            elif _is_of_worker(name):
                measured[:, at] = False
        return Rows(block.steps, block.times, values, measured)

    def deep(self, block: Block) -> Rows:
        """The rows of the block's per-variable series."""
        if not self._deep:
            values = np.zeros((len(block), 0))
            return Rows(block.steps, block.times, values, np.ones(values.shape, bool))
        values = np.column_stack([block.variables(name)[:, self._chosen] for name in self._deep])
        may_lack = np.repeat([_may_lack(name) for name in self._deep], len(self._chosen))
        return Rows(block.steps, block.times, values, ~(np.isnan(values) & may_lack[None, :]))


def _is_curve(signal: Signal | None) -> bool:
    return (
        signal is None or signal.curve
    )  # what has no declaration here comes from another version, or the user


def _curves(quantities: Sequence[str]) -> list[str]:
    return [name for name in quantities if _is_curve(signals.of_variable(name))]


def _may_lack(name: str) -> bool:
    """Whether a NaN of a signal says something else than that the training diverged."""
    signal = signals.of_variable(name)
    return signal is not None and bool(signal.undefined)


def _is_of_worker(name: str) -> bool:
    return name.startswith("worker_")
