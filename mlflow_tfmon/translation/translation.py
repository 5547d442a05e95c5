"""Conversion of a recording's records to points for MLflow and rows for the telemetry files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow_tfmon.sinks.sink import Sink
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.continuation import Past, PastStream, mark
from mlflow_tfmon.stream.records import (
    BEGINNING,
    Activations,
    DeepSteps,
    EpochEnded,
    Facts,
    Histograms,
    LeftOut,
    Logged,
    Lost,
    Overwritten,
    Paused,
    Record,
    RunStarted,
    Steps,
    StreamOpened,
    System,
)
from mlflow_tfmon.tags import SEAMS_TAG, STALLED_TAG
from mlflow_tfmon.tracking.names import Names
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.translation.curves import Curves
from mlflow_tfmon.translation.progress import Progress
from mlflow_tfmon.translation.series import StepClock, StreamSeries, patterns_of
from mlflow_tfmon.translation.state import State, StateError, by_number, number_of, of_record
from mlflow_tfmon.translation.telemetry import Telemetry

_OF_STREAM = (Steps, DeepSteps, Histograms)


class UnopenedError(ValueError):
    """A block of a stream whose layout is not known."""


@dataclass
class _Beginning:
    """A stream's first records, and the prefix under which they were read last."""

    records: list[Record] = field(default_factory=list)
    steps: int = 0
    prefix: str | None = None


class Translation:
    """Reads the data records of one recording, in order; the same records always give the same points and files.

    Attributes:
        telemetry: the files.
        progress: how far it has come.
        last_step: the last optimizer step that was seen, of any stream.
        lost: how many steps, deep steps and histograms were lost, by these names.
        left_out: kind of record -> how many rows were measured and not kept.
        why: they were not.
        names: gives each metric the name that MLflow has for it.
        sinks: where else what is read goes; nowhere, unless it is set.

    Args:
        started: the recording's first record.
        folder: where to write telemetry files.
    """

    def __init__(self, started: RunStarted, folder: Path) -> None:
        self._past = Past.from_dict(started.past)
        self.telemetry = Telemetry(folder, started.start_time, self._past)
        self.progress = Progress()
        self.last_step = 0
        self.lost = Counter[str]()
        self.left_out: dict[str, int] = {}
        self.why = ""
        self.names = Names()
        self.sinks = Sink()
        self._most = started.max_variables
        self._patterns = patterns_of(started.variables)
        self._curves = Curves(started.max_points, self.names)
        self._seams = self._past.seams
        self._streams: dict[int, StreamSeries] = {}
        self._clocks: dict[int, StepClock] = {}
        self._pause: Paused | None = None
        self._beginnings: dict[int, _Beginning] = {}
        self._readers: dict[type, Callable[..., list[Point]]] = {
            StreamOpened: self._opened, Steps: self._steps, DeepSteps: self._deep, Logged: self._logged,
            EpochEnded: self._epoch, Activations: self._activations, Paused: self._paused, Facts: self._facts,
            Lost: self._lost, Overwritten: self._overwritten, LeftOut: self._left_out,
            Histograms: self._histograms, System: self._system,
        }  # fmt: skip

    def take(self, record: Record) -> list[Point]:
        """The points that a record gives; none if it holds no data, or its stream has no name yet.

        Raises:
            UnopenedError: nothing tells what its numbers are; it changes nothing.
        """
        if isinstance(record, StreamOpened) and record.stream not in self._streams:
            self._beginnings.setdefault(record.stream, _Beginning())
        beginning = self._beginnings.get(getattr(record, "stream", -1))
        if isinstance(record, _OF_STREAM) and beginning is None and record.stream not in self._streams:
            raise UnopenedError(f"stream {record.stream} was never opened")
        if beginning is None:
            return self._read(record)
        beginning.records.append(record)
        if isinstance(record, StreamOpened) and record.named and record.prefix != beginning.prefix:
            return self._name(record.stream, record.prefix)
        if isinstance(record, Steps):
            beginning.steps += len(record.values)
        if beginning.prefix is None:
            return []
        if beginning.steps > BEGINNING:
            del self._beginnings[record.stream]  # type: ignore[union-attr]
        return self._read(record)

    def state(self) -> dict[str, Any]:
        """All that it goes on from, between two batches of records."""
        return {
            "telemetry": self.telemetry.state(), "progress": self.progress.state(), "curves": self._curves.state(),
            "names": self.names.given, "last_step": self.last_step, "lost": dict(self.lost),
            "left_out": self.left_out, "why": self.why, "seams": list(self._seams),
            "layouts": [of_record(series.layout) for series in self._streams.values()],
            "clocks": by_number({stream: clock.state() for stream, clock in self._clocks.items()}),
            "pause": of_record(self._pause) if self._pause else None,
            "beginnings": by_number({stream: {
                "records": [of_record(record) for record in one.records], "steps": one.steps, "prefix": one.prefix,
            } for stream, one in self._beginnings.items()}),
        }  # fmt: skip

    @classmethod
    def restored(cls, started: RunStarted, folder: Path, state: State) -> Translation:
        """One that goes on as that which wrote `state` would have.

        Args:
            started: the recording's first record.
            folder: where to write telemetry files.
            state: what was written down.

        Raises:
            StateError: it is none.
        """
        made = cls(started, folder)
        made.names.restore(state.texts("names"))
        made.telemetry.restore(state.part("telemetry"))
        made.progress.restore(state.part("progress"))
        made._curves.restore(state.part("curves"))
        made.last_step, made.why = state.integer("last_step", 0), state.text("why")
        made.lost = Counter(state.integers("lost"))
        made.left_out = state.integers("left_out")
        made._seams = tuple(state.list_of_texts("seams"))
        if state.has("pause"):
            made._pause = state.record("pause", Paused)
        clocks, beginnings = state.part("clocks"), state.part("beginnings")
        for name in clocks.names():
            made._clocks[number_of(name)] = clock = StepClock()
            clock.restore(clocks.part(name))
        for layout in state.records("layouts"):
            if not isinstance(layout, StreamOpened) or layout.stream not in made._clocks:
                raise StateError("a stream has no layout or no clock")
            clock = made._clocks[layout.stream]
            made._streams[layout.stream] = StreamSeries(
                layout, clock, most=made._most, patterns=made._patterns
            )
        for name in beginnings.names():
            one = beginnings.part(name)
            prefix = one.text("prefix") if one.has("prefix") else None
            made._beginnings[number_of(name)] = _Beginning(
                one.records("records"), one.integer("steps", 0), prefix
            )
        return made

    def _read(self, record: Record) -> list[Point]:
        reader = self._readers.get(type(record))
        return reader(record) if reader else []

    def _name(self, stream: int, prefix: str) -> list[Point]:
        """Reads a stream's beginning under its name; what was shown under another one stays where it is."""
        beginning = self._beginnings[stream]
        beginning.prefix = prefix
        self._clocks.pop(stream, None)
        self.telemetry.forget(stream)
        self._curves.forget(("steps", stream), ("deep", stream))
        found: list[Point] = []
        for record in beginning.records:
            if isinstance(record, StreamOpened):
                record = replace(record, prefix=prefix)
            found += self._read(record)
        return found

    def reached(self) -> Past:
        """How far the run's recordings have come, this one included."""
        streams = {stream.number: stream for stream in self._past.streams}
        for number, series in self._streams.items():
            layout = series.layout
            name = streams[number].name if number in streams else layout.model
            variables = mark(variable.name for variable in layout.variables)
            steps = self.progress.step(number)
            streams[number] = PastStream(number, layout.prefix, name, layout.model, steps, variables)
        epochs = {**self._past.epochs, **self.progress.epochs}
        return Past(tuple(streams.values()), epochs, self._seams, begun=self.telemetry.begun)

    def settle(self) -> list[Point]:
        """Points that were held back to be made in one go; to be asked for after each batch of records."""
        return self._curves.settle()

    def flush(self, final: bool) -> list[Point]:
        """Brings curves and files up to the last record."""
        found: list[Point] = []
        for stream, beginning in self._beginnings.items():
            if final and beginning.prefix is None:  # the trainer is gone
                found += self._name(stream, "")
        self.telemetry.rotate()
        return found + self._curves.flush(final)

    def _opened(self, layout: StreamOpened) -> list[Point]:
        clock = self._clocks.get(layout.stream)
        if clock is None:
            clock = self._clocks[layout.stream] = StepClock()
            if self._pause:
                clock.paused(self._pause)
        series = self._streams[layout.stream] = StreamSeries(
            layout, clock, most=self._most, patterns=self._patterns
        )
        self.telemetry.opened(layout)
        self._curves.open(("steps", layout.stream), series.step_keys, layout.total_steps)
        self._curves.open(("deep", layout.stream), series.deep_keys, layout.total_steps)
        return []

    def _steps(self, record: Steps) -> list[Point]:
        if not len(record.values):
            return []
        series = self._streams[record.stream]
        block = Block.of(series.layout, record)
        measures = series.measured(block)
        by_name = dict(zip(series.measures, measures.T, strict=True))
        self.telemetry.steps(block, by_name)
        self.progress.steps(block, by_name)
        self.sinks.steps(block, by_name)
        rows = series.steps(block, measures)
        self.last_step = max(self.last_step, int(rows.steps[-1]))
        return self._curves.rows(("steps", record.stream), rows)

    def _deep(self, record: DeepSteps) -> list[Point]:
        series = self._streams[record.stream]
        block = Block.of(series.layout, record)
        self.telemetry.deep(block)
        self.sinks.deep_steps(block)
        return self._curves.rows(("deep", record.stream), series.deep(block))

    def _histograms(self, block: Histograms) -> list[Point]:
        layout = self._streams[block.stream].layout
        self.telemetry.histograms(layout, block)
        self.sinks.histograms(layout, block)
        return []

    def _logged(self, record: Logged) -> list[Point]:
        self.telemetry.logged(record)
        series = self._streams.get(record.stream)
        prefix, total = (series.layout.prefix, series.layout.total_steps) if series else ("", None)
        self.sinks.logged(prefix, record)
        for name, value in record.values.items():
            key = f"{prefix}batch/{name}"
            if series and key in series.step_keys:  # our curves are never mixed with the user's
                key = f"{prefix}batch/logged.{name}"
            self._curves.value(key, float(value), record.step, record.time, total)
        return []

    def _epoch(self, record: EpochEnded) -> list[Point]:
        self.telemetry.epoch(record)
        self.progress.epoch(record)
        self.sinks.epoch(record)
        found: list[Point] = []
        for name, value in record.metrics.items():
            found += self._curves.exact(record.prefix + name, value, record.epoch, record.time)
        return found

    def _activations(self, record: Activations) -> list[Point]:
        self.telemetry.activations(record)
        return []

    def _system(self, record: System) -> list[Point]:
        self.telemetry.system(record)
        self.sinks.system(record)
        for name, value in record.values.items():
            self._curves.value(name, float(value), record.step, record.time, None)
        return []

    def _facts(self, record: Facts) -> list[Point]:
        found: list[Point] = []
        for key, value, step in record.metrics:
            found += self._curves.exact(key, value, step, record.time)
        if SEAMS_TAG in record.tags:
            self._seams = tuple(record.tags[SEAMS_TAG].split(", "))
        if STALLED_TAG in record.tags:
            since = record.tags[STALLED_TAG]
            self.progress.stalled = since if since.startswith("since ") else ""
        return found

    def _paused(self, record: Paused) -> list[Point]:
        self._pause = record
        for clock in self._clocks.values():
            clock.paused(record)
        return []

    def _lost(self, record: Lost) -> list[Point]:
        self.lost["steps"] += record.last - record.first + 1
        return []

    def _overwritten(self, record: Overwritten) -> list[Point]:
        self.lost.update(deep_steps=record.deep_steps, histograms=record.histograms)
        return []

    def _left_out(self, record: LeftOut) -> list[Point]:
        for kind, rows in record.rows.items():
            self.left_out[kind] = self.left_out.get(kind, 0) + rows
        self.lost["steps"] += record.rows.get("Steps", 0)
        self.why = record.why
        return []
