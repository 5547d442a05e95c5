"""Telemetry files: everything that was recorded, every step, as Parquet.

The files of a recording, each cut into parts of bounded size that are numbered from 00000; `<stream>` and `<part>` have
the time between them at which the recording began (milliseconds since 1970, hexadecimal), so that several recordings of
one run do not meet, and are in order:

- `steps-<stream>-<part>.parquet`: a row a step: the scalars, the measures computed from them, and a list column for
  each per-variable quantity;
- `deep-<stream>-<part>.parquet`: a row every N steps, a list column for each quantity;
- `logged-<stream>-<part>.parquet`: the user's own figures, a row each (step, time, name, value);
- `epochs-<part>.parquet`: epoch metrics, a row each (epoch, step, time, prefix, name, value);
- `histograms-<stream>-<part>.parquet`, in a folder of their own: a row a step, variable and kind, with the bins from
  the first that is not empty to the last, by the number of the first (`stream.bins`);
- `system-<part>.parquet`: what the training took of the machine, a row each (step, time, name, value);
- `activations-<part>.parquet`: a row an epoch and layer, with the fields of `Activations` and `LayerActivations`.

The order of the lists is that of `variables` in the file's metadata (key "tfmon", JSON).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.stream.records import (
    Activations,
    EpochEnded,
    Histograms,
    Logged,
    StreamOpened,
    System,
)
from mlflow_tfmon.translation.parts import File, Part
from mlflow_tfmon.translation.state import State, StateError, by_number, number_of, of_batches

FORMAT = 1
METADATA_KEY = b"tfmon"
_ROWS = 10_000
_STEM = re.compile(r"(steps|deep|histograms|logged)-\d{1,9}|epochs|activations|system")
_LISTS = "variables."
_LOGGED = pa.schema(
    {
        "step": pa.int64(),
        "time": pa.float64(),
        "name": pa.dictionary(pa.int32(), pa.string()),
        "value": pa.float64(),
    }
)
_EPOCHS = pa.schema(
    {"epoch": pa.int64(), "step": pa.int64(), "time": pa.float64(), "prefix": pa.string(), "name": pa.string(),
     "value": pa.float64()}
)  # fmt: skip
_ACTIVATIONS = pa.schema(
    {"epoch": pa.int64(), "step": pa.int64(), "time": pa.float64(), "prefix": pa.string(), "examples": pa.int64(),
     "layer": pa.string(), "activation": pa.string(), "units": pa.int64(), "output": pa.bool_(), "mean": pa.float64(),
     "std": pa.float64(), "zero_fraction": pa.float64(), "dead_fraction": pa.float64(),
     "saturated_fraction": pa.float64()}
)  # fmt: skip
_SYSTEM = pa.schema(
    {
        "step": pa.int64(),
        "time": pa.float64(),
        "name": pa.dictionary(pa.int32(), pa.string()),
        "value": pa.float64(),
    }
)
_HISTOGRAMS = pa.schema(
    {"step": pa.int64(), "variable": pa.dictionary(pa.int32(), pa.string()),
     "kind": pa.dictionary(pa.int32(), pa.string()), "first_bin": pa.int32(), "counts": pa.list_(pa.int64()),
     "zeros": pa.int64(), "nonfinite": pa.int64(), "min": pa.float64(), "max": pa.float64()}
)  # fmt: skip


class Telemetry:
    """Makes the telemetry files of one recording.

    Attributes:
        begun: when the recording began, milliseconds since 1970.

    Args:
        folder: where they are to be written.
        begun: the same, Unix seconds.
        past: how far earlier ones of the run had come.
    """

    def __init__(self, folder: Path, begun: float, past: Past) -> None:
        self._folder = folder
        self.begun = int(begun * 1e3)
        self._about = {"recording": f"{self.begun:011x}", "after": past.steps}  # they are sorted as texts
        self._files: dict[str, File] = {}
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self._schemas: dict[str, pa.Schema] = {}
        self._prefixes: dict[int, str] = {}
        self._columns: dict[str, dict[str, bool]] = {}  # each file's columns, and whether they hold lists

    def opened(self, layout: StreamOpened) -> None:
        """Takes a stream's layout, before its first block."""
        self._prefixes[layout.stream] = layout.prefix

    def forget(self, stream: int) -> None:
        """Leaves out what a stream's open parts hold: it comes again."""
        for quantity in ("steps", "deep", "histograms", "logged"):
            self._rows.pop(f"{quantity}-{stream}", None)
            self._files.pop(f"{quantity}-{stream}", None)

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        """Adds a block of steps, and what was computed of it."""
        self._add_block("steps", block, measures)

    def deep(self, block: Block) -> None:
        """Adds a block of deep rows."""
        self._add_block("deep", block, {})

    def _add_block(self, quantity: str, block: Block, more: Mapping[str, np.ndarray]) -> None:
        arrays = {name: pa.array(np.ascontiguousarray(block.step(name))) for name in block.names}
        arrays |= {name: pa.array(np.ascontiguousarray(values)) for name, values in more.items()}
        arrays["step"] = pa.array(block.steps)
        # A scalar may have the name of a per-variable quantity ("grad_norm"): the lists are told by their prefix.
        arrays |= {_LISTS + name: _list(block.variables(name)) for name in block.quantities}
        self._write(f"{quantity}-{block.layout.stream}", arrays, block.layout)

    def histograms(self, layout: StreamOpened, block: Histograms) -> None:
        """Adds a block of histograms."""
        stem, count = f"histograms-{layout.stream}", len(layout.variables)
        about = {"stream": layout.stream, "prefix": layout.prefix}
        self._schemas[stem] = _HISTOGRAMS.with_metadata(self._metadata(about))
        for row in block.values:
            one = row[1:].reshape(len(block.kinds), count, bins.WIDTH)
            for kind, variables in zip(block.kinds, one, strict=True):
                for variable, values in zip(layout.variables, variables, strict=True):
                    first, end = bins.trimmed(values[: bins.COUNT])
                    nonfinite, zeros, least, most = values[bins.COUNT :].tolist()
                    counts = values[first:end].astype(np.int64)
                    figures = (first, counts, int(zeros), int(nonfinite), least, most)
                    self._add(stem, (int(row[0]), variable.name, kind, *figures))

    def logged(self, record: Logged) -> None:
        """Adds figures of the user's own."""
        stem = f"logged-{record.stream}"
        prefix = self._prefixes.get(record.stream, "")
        self._schemas[stem] = _LOGGED.with_metadata(
            self._metadata({"stream": record.stream, "prefix": prefix})
        )
        for name, value in record.values.items():
            self._add(stem, (record.step, record.time, name, value))

    def epoch(self, record: EpochEnded) -> None:
        """Adds an epoch's metrics."""
        self._schemas["epochs"] = _EPOCHS.with_metadata(self._metadata({}))
        for name, value in record.metrics.items():
            self._add("epochs", (record.epoch, record.step, record.time, record.prefix, name, value))

    def activations(self, record: Activations) -> None:
        """Adds what the layers gave at an epoch's end."""
        self._schemas["activations"] = _ACTIVATIONS.with_metadata(self._metadata({}))
        head = (record.epoch, record.step, record.time, record.prefix, record.examples)
        for layer in record.layers:
            self._add("activations", (*head, *dataclasses.astuple(layer)))

    def system(self, record: System) -> None:
        """Adds what the training took of the machine."""
        self._schemas["system"] = _SYSTEM.with_metadata(self._metadata({}))
        for name, value in record.values.items():
            self._add("system", (record.step, record.time, name, value))

    def rotate(self) -> None:
        """Closes the parts that are open, so that all that was added is in finished ones."""
        for stem in self._rows:
            self._settle(stem)
        for file in self._files.values():
            file.close()

    def finished(self) -> list[Part]:
        """The finished parts that were not asked for yet."""
        return [part for file in self._files.values() for part in file.take()]

    def unfinished(self) -> list[Part]:
        """The parts that are open, with the rows that they have by now."""
        parts = [file.so_far(self._batches(stem)) for stem, file in self._files.items()]
        return [part for part in parts if part.rows]

    def state(self) -> dict[str, Any]:
        """All that it goes on from, once the finished parts were taken."""
        return {
            "files": {stem: file.state() for stem, file in self._files.items()},
            "rows": {stem: of_batches(self._batches(stem)) for stem in self._rows},
            "columns": {
                stem: {name: int(is_list) for name, is_list in of.items()}
                for stem, of in self._columns.items()
            },
            "prefixes": by_number(self._prefixes),
        }

    def restore(self, state: State) -> None:
        """Goes on as that which wrote `state` would have.

        Raises:
            StateError: it is none.
        """
        self._prefixes = {number_of(name): prefix for name, prefix in state.texts("prefixes").items()}
        files, rows, columns = (state.part(name) for name in ("files", "rows", "columns"))
        for stem in files.names():
            if not _STEM.fullmatch(stem):
                raise StateError(f"there is no telemetry file {stem!r}")
            self._file(stem).restore(files.part(stem))
        for stem in rows.names():
            if stem not in self._files:
                raise StateError(f"there are rows of a file {stem!r} that there is not")
            self._rows[stem] = []
            for batch in rows.batches(stem):  # as they were added: they are still to be parted
                self._schemas[stem] = batch.schema
                self._rows[stem] += zip(*batch.to_pydict().values(), strict=True)
        self._columns = {stem: _flags(columns, stem) for stem in columns.names()}

    def _add(self, stem: str, row: tuple[Any, ...]) -> None:
        self._file(stem)
        rows = self._rows.setdefault(stem, [])
        rows.append(row)
        if len(rows) >= _ROWS:
            self._settle(stem)

    def _settle(self, stem: str) -> None:
        for batch in self._batches(stem):
            self._file(stem).write(batch)
        self._rows[stem] = []

    def _batches(self, stem: str) -> list[pa.RecordBatch]:
        """The rows that no batch was made of yet, as one."""
        rows = self._rows.get(stem)
        if not rows:
            return []
        schema, columns = self._schemas[stem], zip(*rows, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        return [pa.record_batch(arrays, schema=schema)]

    def _write(self, stem: str, arrays: dict[str, pa.Array], layout: StreamOpened) -> None:
        metadata = self._metadata(
            {
                "stream": layout.stream, "prefix": layout.prefix, "model": layout.model,
                "total_steps": layout.total_steps,
                "variables": [[one.name, list(one.shape), one.is_kernel] for one in layout.variables],
            }
        )  # fmt: skip
        # A column stays once it was there: layouts that take turns do not make a new part each time. What a layout
        # lacks is null, since a NaN is what the training computed.
        columns = self._columns.setdefault(stem, {})
        columns.update((name, name.startswith(_LISTS)) for name in arrays if name not in columns)
        rows, count = len(arrays["step"]), len(layout.variables)
        for name in columns.keys() - arrays.keys():
            nothing = pa.nulls(rows * count if columns[name] else rows, pa.float64())
            arrays[name] = _lists_of(nothing, rows) if columns[name] else nothing
        batch = pa.record_batch([arrays[name] for name in columns], names=list(columns))
        self._file(stem).write(batch.replace_schema_metadata(metadata))

    def _metadata(self, about: dict[str, Any]) -> dict[bytes, bytes]:
        return {METADATA_KEY: json.dumps({"format": FORMAT, **self._about, **about}).encode()}

    def _file(self, stem: str) -> File:
        if stem not in self._files:
            begun = self._about["recording"]
            self._files[stem] = File(self._folder, f"{stem}-{begun}")
        return self._files[stem]


def _flags(state: State, stem: str) -> dict[str, bool]:
    return {name: bool(flag) for name, flag in state.integers(stem).items()}


def _list(values: np.ndarray) -> pa.Array:
    return _lists_of(pa.array(np.ascontiguousarray(values).ravel()), len(values))


def _lists_of(elements: pa.Array, rows: int) -> pa.Array:
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * (len(elements) // max(rows, 1)))
    return pa.ListArray.from_arrays(offsets, elements)
