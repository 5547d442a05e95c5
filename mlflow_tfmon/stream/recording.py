"""A recording: all that is measured within one MLflow run, numbered, named and put into the journal in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.drain import Block
from mlflow_tfmon.stream.ring import DEEP, HEAD, INPUT, TIME, Ring

_HEAD = {name: index for index, name in enumerate(HEAD)}


@dataclass
class _Stream:
    """One optimizer's steps within a recording: its number, what it trains, and how far it has come."""

    number: int
    keys: frozenset[str]
    name: str
    prefix: str
    model: str
    total_steps: int | None
    steps: int = 0
    learning_rate: float | None = None
    opened: records.StreamOpened | None = None


class Recording:
    """Puts what rings and callbacks tell into the journal of one run.

    Args:
        append: takes records in order (the journal's).
        batches: tells which batches a thread's eager code took from datasets until a time.
    """

    def __init__(
        self,
        append: Callable[[Sequence[records.Record]], None],
        batches: Callable[[int, float], list[tuple[float, float, float]]],
    ) -> None:
        self._append = append
        self._batches = batches
        self._streams: list[_Stream] = []
        self._epochs: dict[str, int] = {}
        self._lock = threading.RLock()

    # -- streams ---------------------------------------------------------------------------------------------------
    def open_stream(self, ring: Ring, name: str, model: str, total_steps: int | None) -> None:
        """Makes a ring's steps part of the recording.

        A ring over variables that a stream already trains goes on with that stream (the model was compiled anew, or
        layers were frozen); any other gets one of its own, with names of its own.
        """
        with self._lock:
            stream = self._of(ring)
            if stream is not None:
                stream.keys |= ring.layout.keys
                if total_steps is not None:
                    stream.total_steps = stream.steps + total_steps
                    stream.opened = None
                return
            if len(self._streams) == 1 and self._streams[0].steps == 0:
                self._streams[0].prefix = f"{self._streams[0].name}."
            known = {s.prefix for s in self._streams}
            prefixes = [f"{name}.", *(f"{name}_{n}." for n in range(2, 2 + len(known)))]
            prefix = next(p for p in prefixes if p not in known) if self._streams else ""
            self._streams.append(
                _Stream(len(self._streams), ring.layout.keys, name, prefix, model, total_steps)
            )  # fmt: skip

    def _of(self, ring: Ring) -> _Stream | None:
        keys = ring.layout.keys
        # Two optimizers that share a trunk are two streams; layers frozen or set free are one.
        return next((s for s in self._streams if s.keys <= keys or keys <= s.keys), None)

    def steps_of(self, keys: frozenset[str]) -> int:
        """How many steps the stream that trains these variables has made (drained so far)."""
        return next((s.steps for s in self._streams if s.keys & keys), 0)

    def prefix_of(self, keys: frozenset[str], model: str) -> str:
        """What precedes the names of the epoch metrics of a model that has these variables."""
        with self._lock:
            own = next((s for s in self._streams if s.keys & keys), None)
            if own is not None:
                return own.prefix
            return f"{model}." if self._streams else ""

    # -- from the drain --------------------------------------------------------------------------------------------
    def take(self, block: Block) -> None:
        """Records a block of rows."""
        with self._lock:
            stream = self._of(block.ring)
            if stream is None:
                return
            out: list[records.Record] = []
            if block.lost:
                out.append(records.Lost(stream.number, stream.steps + 1, stream.steps + block.lost))
            offset = stream.steps + 1 - block.first
            opened = stream.opened
            for rows in _runs(block.rows):
                layout, steps = self._steps(stream, block, rows, offset)
                out += [steps] if layout == opened else [layout, steps]
                opened = layout
            if len(block.deep_rows):
                deep = block.deep_rows.copy()
                deep[:, 0] += offset
                out.append(records.DeepSteps(stream.number, block.seen, deep))
            self._append(out)
            # Only now: a block that could not be written down comes again.
            stream.opened = opened
            stream.steps += len(block.rows) + block.lost
            if len(block.rows):
                stream.learning_rate = float(block.rows[-1, _HEAD["learning_rate"]])

    def _steps(
        self, stream: _Stream, block: Block, rows: np.ndarray, offset: int
    ) -> tuple[records.StreamOpened, records.Steps]:
        layout, measured = block.ring.layout, int(rows[0, _HEAD["measured"]])
        count = len(layout.variables)
        columns = {"step": rows[:, _HEAD["step"]] + offset}
        if measured & TIME:
            columns["time"] = rows[:, _HEAD["time"]]
        if measured & INPUT:
            for name in ("input_time", "input_wait", "examples"):
                columns[name] = rows[:, _HEAD[name]]
        elif measured & TIME:
            columns |= self._taken(block.ring.thread, rows[:, _HEAD["time"]])
        if rows[0, _HEAD["losses"]]:
            columns["loss"] = rows[:, _HEAD["loss"]] / rows[:, _HEAD["losses"]]
        columns["learning_rate"] = rows[:, _HEAD["learning_rate"]]
        squares = 2 * rows[:, len(HEAD) :]  # the ring holds halves
        columns["grad_norm"] = np.sqrt(squares[:, :count].sum(axis=1))
        variable_columns = ["grad_norm"]
        if layout.clipped:
            columns["grad_norm_clipped"] = np.sqrt(squares[:, count:].sum(axis=1))
            variable_columns.append("grad_norm_clipped")
        opened = records.StreamOpened(
            stream.number, stream.prefix, layout.variables, tuple(columns), tuple(variable_columns), DEEP,
            stream.total_steps, stream.model,
        )  # fmt: skip
        values = np.column_stack([*columns.values(), np.sqrt(squares)])
        return opened, records.Steps(stream.number, block.seen, values)

    def _taken(self, thread: int, times: np.ndarray) -> dict[str, np.ndarray]:
        """For each step, the last batch that the thread's eager code had taken from a dataset before its end."""
        taken = self._batches(thread, float(times[-1]))
        if not taken:
            return {}
        batches = np.array(taken)
        last = np.searchsorted(batches[:, 0], times, side="right") - 1
        fresh = (
            np.diff(last, prepend=-1) > 0
        )  # a step that took no batch of its own has no figures of its own
        chosen = np.where(fresh[:, None], batches[np.maximum(last, 0)], np.nan)
        return {"input_time": chosen[:, 0], "input_wait": chosen[:, 1], "examples": chosen[:, 2]}

    # -- from callbacks and from the user --------------------------------------------------------------------------
    def epoch_ended(self, epoch: int, metrics: dict[str, float], keys: frozenset[str], prefix: str) -> None:
        """Records an epoch's metrics, with the learning rate of its last step."""
        with self._lock:
            stream = next((s for s in self._streams if s.keys & keys), None)
            if stream is not None and stream.learning_rate is not None:
                metrics = {"learning_rate": stream.learning_rate} | metrics
            self._epochs[prefix] = epoch + 1
            steps = stream.steps if stream is not None else 0
            self._append([records.EpochEnded(epoch, steps, time.time(), metrics, prefix)])

    def epochs_done(self, prefix: str) -> int:
        """How many epochs a model has made within the run."""
        return self._epochs.get(prefix, 0)

    def logged(self, values: dict[str, float], keys: frozenset[str]) -> None:
        """Records figures of the user's own at the current step."""
        with self._lock:
            stream = next(
                (s for s in self._streams if s.keys & keys), self._streams[0] if self._streams else None
            )
            number, step = (stream.number, stream.steps) if stream is not None else (0, 0)
            self._append([records.Logged(number, step, time.time(), values)])

    def append(self, *out: records.Record) -> None:
        """Records anything else."""
        with self._lock:
            self._append(list(out))


def _runs(rows: np.ndarray) -> list[np.ndarray]:
    """Splits rows where what they measure changes (another trace of the same training)."""
    if not len(rows):
        return []
    measured = np.stack([rows[:, _HEAD["measured"]], rows[:, _HEAD["losses"]] > 0], axis=1)
    edges = np.flatnonzero(np.diff(measured, axis=0).any(axis=1)) + 1
    return [part for part in np.split(rows, edges) if len(part)]
