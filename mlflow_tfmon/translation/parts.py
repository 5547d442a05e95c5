"""Parts of telemetry files: rows that are held in memory until they are enough for a Parquet file.

A part is held until it is full or a flush comes. So it can be written as it stands at any time, for those who want to
see a training that goes on, and later again, whole, under the same name. Where a part ends follows from the rows and
the flushes alone: who replays a recording gets the same parts, however often they were looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_tfmon.tracking.names import HISTOGRAMS, TELEMETRY
from mlflow_tfmon.translation.state import State, of_batches

_PART_BYTES = 8 * 2**20  # of rows in memory; written in some 50 ms, as half of that


class Part:
    """A part of a telemetry file.

    Attributes:
        path: where it is to be written.
        folder: of the run's artifacts, where it belongs.
        rows: how many it has.
    """

    def __init__(self, path: Path, batches: Sequence[pa.RecordBatch]) -> None:
        self.path = path
        self.folder = HISTOGRAMS if path.name.startswith("histograms-") else TELEMETRY
        self.rows = sum(batch.num_rows for batch in batches)
        self._batches = batches

    @property
    def artifact(self) -> str:
        """Its path among the run's artifacts."""
        return f"{self.folder}/{self.path.name}"

    def save(self) -> Path:
        """Writes it, unless that is done.

        Raises:
            OSError: it could not be written; its rows are kept.
        """
        if self._batches:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # who deletes it deletes no row
            self.write(self.path)
            self._batches = ()
        return self.path

    def write(self, path: Path) -> None:
        """Writes its rows to a file, and keeps them."""
        table = pa.Table.from_batches(self._batches).combine_chunks()
        # Doubles that were singles: their bytes taken apart need a quarter less space and half the time.
        split = [
            f"{one.name}.list.element" if pa.types.is_list(one.type) else one.name
            for one in table.schema
            if one.type == pa.list_(pa.float64()) or pa.types.is_float64(one.type)
        ]
        pq.write_table(
            table, path, row_group_size=table.num_rows, compression="zstd", compression_level=1,
            use_dictionary=["name", "prefix", "variable", "kind", "layer"], use_byte_stream_split=split,
        )  # fmt: skip


class File:
    """One telemetry file, in parts.

    Attributes:
        folder: where they are to be written.

    Args:
        folder: where they are to be written.
        stem: what their names begin with; their numbers follow.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder = folder
        self._stem = stem
        self._number = 0
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._finished: list[Part] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows; those of another schema begin another part."""
        if self._batches and not batch.schema.equals(self._batches[0].schema, check_metadata=True):
            self.close()
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= _PART_BYTES:
            self.close()

    def close(self) -> None:
        """Finishes the part that is open."""
        if self._batches:
            self._finished.append(Part(self._path(), self._batches))
            self._number += 1
            self._batches, self._bytes = [], 0

    def take(self) -> list[Part]:
        """The finished parts that were not asked for yet."""
        finished, self._finished = self._finished, []
        return finished

    def so_far(self, rows: list[pa.RecordBatch]) -> Part:
        """The part that is open, with these rows after those that it has."""
        return Part(self._path(), [*self._batches, *rows])

    def state(self) -> dict[str, Any]:
        """All that it goes on from, once the finished parts were taken."""
        return {"number": self._number, "bytes": self._bytes, "batches": of_batches(self._batches)}

    def restore(self, state: State) -> None:
        """Goes on as that which wrote `state` would have.

        Raises:
            StateError: it is none.
        """
        self._number, self._bytes = state.integer("number", 0, 10**6), state.integer("bytes", 0)
        self._batches = state.batches("batches")

    def _path(self) -> Path:
        return self.folder / f"{self._stem}-{self._number:05d}.parquet"
