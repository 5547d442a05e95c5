"""Telemetry files: everything that was recorded, every step, as Parquet.

The files of a recording, each cut into parts of bounded size that are numbered from 00000:

- `steps-<stream>-<part>.parquet`: a row a step: the scalars, the measures computed from them, and a list column for
  each per-variable quantity;
- `deep-<stream>-<part>.parquet`: a row every N steps, a list column for each quantity;
- `logged-<stream>-<part>.parquet`: the user's own figures, a row each (step, time, name, value);
- `epochs-<part>.parquet`: epoch metrics, a row each (epoch, step, time, prefix, name, value).

The order of the lists is that of `variables` in the file's metadata (key "tfmon", JSON).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_tfmon.stream.records import DeepSteps, EpochEnded, Logged, Steps, StreamOpened
from mlflow_tfmon.tracking.series import StreamSeries

FORMAT = 1
METADATA_KEY = b"tfmon"
_GROUP_BYTES = 8 * 2**20
_PART_BYTES = 64 * 2**20
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


class Telemetry:
    """Writes the telemetry files of one recording.

    Args:
        folder: where to write; must exist and be empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _Parts] = {}
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self._schemas: dict[str, pa.Schema] = {}
        self._prefixes: dict[int, str] = {}
        self._columns: dict[str, dict[str, bool]] = {}  # each file's columns, and whether they hold lists

    def opened(self, layout: StreamOpened) -> None:
        """Takes a stream's layout, before its first block."""
        self._prefixes[layout.stream] = layout.prefix

    def steps(self, series: StreamSeries, block: Steps, measures: np.ndarray) -> None:
        """Adds a block and the measures that were computed from it."""
        layout = series.layout
        arrays: dict[str, pa.Array] = {}
        for at, name in enumerate(layout.columns):
            column = block.values[:, at]
            arrays[name] = pa.array(
                column.astype(np.int64) if name == "step" else np.ascontiguousarray(column)
            )
        for at, name in enumerate(series.measures):
            arrays[name] = pa.array(np.ascontiguousarray(measures[:, at]))
        arrays |= _lists(block.values, len(layout.columns), layout.variable_columns, len(layout.variables))
        self._write(f"steps-{layout.stream}", arrays, layout)

    def deep(self, layout: StreamOpened, block: DeepSteps) -> None:
        """Adds a block of deep rows."""
        arrays = {"step": pa.array(block.values[:, 0].astype(np.int64))}
        arrays |= _lists(block.values, 1, layout.deep_columns, len(layout.variables))
        self._write(f"deep-{layout.stream}", arrays, layout)

    def logged(self, record: Logged) -> None:
        """Adds figures of the user's own."""
        stem = f"logged-{record.stream}"
        prefix = self._prefixes.get(record.stream, "")
        self._schemas[stem] = _LOGGED.with_metadata(_metadata({"stream": record.stream, "prefix": prefix}))
        for name, value in record.values.items():
            self._add(stem, (record.step, record.time, name, value))

    def epoch(self, record: EpochEnded) -> None:
        """Adds an epoch's metrics."""
        self._schemas["epochs"] = _EPOCHS.with_metadata(_metadata({}))
        for name, value in record.metrics.items():
            self._add("epochs", (record.epoch, record.step, record.time, record.prefix, name, value))

    def rotate(self) -> None:
        """Closes the parts that are open, so that all that was added is in finished files."""
        for stem in self._rows:
            self._settle(stem)
        for parts in self._files.values():
            parts.close()

    def finished(self) -> list[Path]:
        """The finished parts that were not asked for yet."""
        return [path for parts in self._files.values() for path in parts.take()]

    def _add(self, stem: str, row: tuple[Any, ...]) -> None:
        rows = self._rows.setdefault(stem, [])
        rows.append(row)
        if len(rows) >= 10_000:
            self._settle(stem)

    def _settle(self, stem: str) -> None:
        rows, self._rows[stem] = self._rows[stem], []
        if rows:
            schema = self._schemas[stem]
            columns = zip(*rows, strict=True)
            arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            self._parts(stem).write(pa.record_batch(arrays, schema=schema))

    def _write(self, stem: str, arrays: dict[str, pa.Array], layout: StreamOpened) -> None:
        metadata = _metadata(
            {
                "stream": layout.stream, "prefix": layout.prefix, "model": layout.model,
                "variables": [[one.name, list(one.shape), one.is_kernel] for one in layout.variables],
            }
        )  # fmt: skip
        # A column stays once it was there: layouts that take turns do not make a new part each time.
        columns = self._columns.setdefault(stem, {})
        columns.update((name, name.startswith(_LISTS)) for name in arrays if name not in columns)
        missing = np.full((len(arrays["step"]), len(layout.variables)), np.nan)
        for name in columns.keys() - arrays.keys():
            arrays[name] = _list(missing) if columns[name] else pa.array(np.full(len(missing), np.nan))
        batch = pa.record_batch([arrays[name] for name in columns], names=list(columns))
        self._parts(stem).write(batch.replace_schema_metadata(metadata))

    def _parts(self, stem: str) -> _Parts:
        if stem not in self._files:
            self._files[stem] = _Parts(lambda number: self._folder / f"{stem}-{number:05d}.parquet")
        return self._files[stem]


class _Parts:
    """One file in parts; where a part ends follows from the rows and the closings alone."""

    def __init__(self, path: Callable[[int], Path]) -> None:
        self._path = path
        self._number = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._part_bytes = 0
        self._schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | None = None
        self._finished: list[Path] = []

    def write(self, batch: pa.RecordBatch) -> None:
        if self._schema is not None and not batch.schema.equals(self._schema, check_metadata=True):
            self.close()
        self._schema = batch.schema
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_bytes >= _GROUP_BYTES:
            self._write_group()
            if self._part_bytes >= _PART_BYTES:
                self.close()

    def close(self) -> None:
        self._write_group()
        if self._writer is not None:
            self._writer.close()
            self._finished.append(self._path(self._number))
            self._number += 1
            self._writer, self._schema, self._part_bytes = None, None, 0

    def take(self) -> list[Path]:
        finished, self._finished = self._finished, []
        return finished

    def _write_group(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path(self._number), self._schema, compression="zstd", use_dictionary=["name", "prefix"]
            )
        table = pa.Table.from_batches(self._waiting)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._part_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0


def _lists(values: np.ndarray, begin: int, quantities: tuple[str, ...], count: int) -> dict[str, pa.Array]:
    # A scalar may have the name of a per-variable quantity ("grad_norm"): the lists are told by their prefix.
    parts = {name: slice(begin + at * count, begin + (at + 1) * count) for at, name in enumerate(quantities)}
    return {_LISTS + name: _list(values[:, part]) for name, part in parts.items()}


def _list(values: np.ndarray) -> pa.Array:
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).ravel()))


def _metadata(about: dict[str, Any]) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps({"format": FORMAT, **about}).encode()}
