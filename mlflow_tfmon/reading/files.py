"""Files of a run as they come from its store: limited in size, and named if they are invalid."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_tfmon.tracking.names import HISTOGRAMS, TELEMETRY

_METADATA_KEY = b"tfmon"
# Decoded, of one file: telemetry comes in parts of some 8 MB. A small file may say that it holds terabytes.
_MOST_BYTES = 512 * 2**20
_BATCH_ROWS = 16_384
_WIDTH = 8  # bytes of a number
_TEXT_BYTES = 64 * 2**20


class UnreadableError(ValueError):
    """A file of a run cannot be read; the message names it."""


def table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file.

    Args:
        path: the file.
        columns: their names; default all.

    Raises:
        UnreadableError: it is damaged, or larger than any that this package writes.
    """
    with named(path):
        file = pq.ParquetFile(path)
        names = list(columns if columns is not None else file.schema_arrow.names)
        _check_said(file.metadata)
        batches, size = [], 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
            size += batch.nbytes
            _check_size(size)
            batches.append(batch)
        found = pa.Table.from_batches(batches, batches[0].schema) if batches else file.read(names)
        return found.replace_schema_metadata(file.schema_arrow.metadata)


def names_of(path: Path) -> list[str]:
    """The names of the columns of a Parquet file.

    Raises:
        UnreadableError: it is damaged.
    """
    with named(path):
        return list(pq.read_schema(path).names)


def about(path: Path) -> dict[str, Any]:
    """What a telemetry file's metadata tell of it.

    Raises:
        UnreadableError: it is damaged, or tells something else.
    """
    with named(path):
        found = json.loads((pq.read_schema(path).metadata or {}).get(_METADATA_KEY, b"{}"))
        kinds = {"prefix": str, "stream": int, "variables": list, "recording": str, "after": dict}
        if not isinstance(found, dict) or not all(
            isinstance(found[name], kind) for name, kind in kinds.items() if found.get(name) is not None
        ):
            raise ValueError("it lacks the metadata of telemetry files")
        return found


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        UnreadableError: it is none, or longer than any that this package writes.
    """
    with named(path):
        if path.stat().st_size > _TEXT_BYTES:
            raise ValueError(f"it has more than {_TEXT_BYTES:,} bytes")
        return json.loads(path.read_text("utf-8"))


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Has an error name the artifact that a file is of: nobody knows where it was downloaded to.

    Raises:
        UnreadableError: in place of whatever was raised within.
    """
    try:
        yield
    except UnreadableError:
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        what = " ".join(str(error).replace(str(path), path.name).split())[:200]
        folder = (
            f"{path.parent.name}/"
            if path.parent.name in (Path(TELEMETRY).name, Path(HISTOGRAMS).name)
            else ""
        )
        raise UnreadableError(
            f"the run's artifact tfmon/{folder}{path.name} cannot be read ({type(error).__name__}: {what}): "
            "it is damaged, or was not written by mlflow_tfmon; move it out of that folder to read the rest."
        ) from error


def _check_said(metadata: pq.FileMetaData) -> None:
    """Refuses at once what says itself that it is too large."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    values = sum(max(one.num_values, 0) for one in columns)
    _check_size(max(values * _WIDTH, sum(one.total_uncompressed_size for one in columns)))


def _check_size(size: int) -> None:
    if size > _MOST_BYTES:
        raise ValueError(
            f"it has {size:,} bytes or more once decoded, but telemetry files have at most {_MOST_BYTES:,}"
        )
