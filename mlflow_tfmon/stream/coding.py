"""Records as the journal holds them: a kind, a JSON body and, for blocks of numbers, raw float64 bytes."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import PurePath
from typing import Any

import numpy as np

from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.records import (
    Activations,
    DeepSteps,
    Evidence,
    Facts,
    Histograms,
    LayerActivations,
    ModelSaved,
    Problems,
    Record,
    Steps,
    StreamOpened,
    Variable,
)

_MOST_BYTES = 2**30  # of a block, unpacked: a small one may say that it holds terabytes
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in Record.__args__}  # type: ignore[attr-defined]


def encode(record: Record) -> tuple[str, dict[str, Any], bytes | None]:
    """Splits a record into kind, JSON body and raw block.

    Example:
        >>> encode(Lost(stream=0, first=3, last=5))
        ('Lost', {'stream': 0, 'first': 3, 'last': 5}, None)
    """
    if isinstance(record, (Steps, DeepSteps, Histograms)):
        values = np.ascontiguousarray(record.values, dtype="<f8")
        block = values.tobytes()
        body: dict[str, Any] = {
            "stream": record.stream,
            "seen": record.seen,
            "width": int(values.shape[1]),
        }
        if isinstance(record, Histograms):  # mostly zeros
            body["kinds"], block = record.kinds, zlib.compress(block, 1)
        return type(record).__name__, body, block
    fields = {name: plain(value) for name, value in vars(record).items() if not isinstance(value, bytes)}
    return type(record).__name__, fields, record.batch if isinstance(record, Evidence) else None


def plain(value: Any) -> Any:
    """A value whose records are dictionaries; unlike `dataclasses.asdict` it copies nothing else, which takes long."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return tuple(plain(one) for one in value) if isinstance(value, tuple) else value


def decode(kind: str, body: dict[str, Any], block: bytes | None) -> Record:
    """Puts together again what `encode` split.

    Raises:
        AttributeError, LookupError, TypeError, ValueError, zlib.error: it is none of that.
    """
    cls = KINDS[kind]
    if "stream" in body and type(body["stream"]) is not int:  # it is part of the names of files
        raise ValueError("its stream has no number")
    if cls in (Steps, DeepSteps, Histograms):
        more = {}
        if cls is Histograms:
            more["kinds"], block = tuple(body.get("kinds", bins.KINDS)), _unpacked(block or b"")
        values = np.frombuffer(block or b"", dtype="<f8").reshape(-1, body["width"])
        result: Record = cls(stream=body["stream"], seen=body["seen"], values=values, **more)
        return result
    if cls is Evidence:
        kinds = {"step": int, "about": dict, "prefix": str}
        if not all(isinstance(body[name], kind) for name, kind in kinds.items()):
            raise ValueError("it does not say of which step it is")
        body = {**body, "batch": block or b""}
    if cls is StreamOpened:
        variables = tuple(Variable(v["name"], tuple(v["shape"]), v["is_kernel"]) for v in body["variables"])
        body = {**body, "variables": variables} | {
            key: tuple(body[key]) for key in ("columns", "variable_columns", "deep_columns")
        }
    if cls is Activations:
        body = {**body, "layers": tuple(LayerActivations(**layer) for layer in body["layers"])}
    if cls is Problems:
        body = {**body, "found": tuple(body["found"])}
    if cls is Facts:
        body = {**body, "metrics": tuple((key, value, step) for key, value, step in body["metrics"])}
    if cls is ModelSaved:
        path = PurePath(body["path"])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("its model is outside the recording")
        body = {**body, **{key: tuple(body[key]) for key in ("pointers", "drops") if key in body}}
        body["datasets"] = {context: tuple(one) for context, one in body.get("datasets", {}).items()}
    record: Record = cls(**body)
    return record


def _unpacked(block: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(block, _MOST_BYTES)
    if not unpacking.eof:
        raise ValueError(f"its block is cut off, or holds more than {_MOST_BYTES:,} bytes")
    return found
