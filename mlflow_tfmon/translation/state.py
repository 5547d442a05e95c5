"""State as it is written down and read again: JSON, with arrays, tables and records as text within it.

What is read may be anything, for anybody may have written it: each value has the type, the size and the bounds that it
must have, or a `StateError` says which has not. Nothing in here can run what it reads.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_tfmon.stream.coding import KINDS, decode, encode
from mlflow_tfmon.stream.records import Record

_MOST_ITEMS = 50_000_000  # of an array or a list
_LARGEST = 2**63 - 1


class StateError(ValueError):
    """What was written down is not what it must be."""


def of_array(values: np.ndarray) -> list[Any]:
    """An array of numbers, as `State.array` reads it."""
    kind = "<i8" if values.dtype.kind in "iu" else "<f8"
    data = np.ascontiguousarray(values, dtype=kind).tobytes()
    return [kind, len(values), base64.b64encode(zlib.compress(data, 1)).decode("ascii")]


def of_batches(batches: Sequence[pa.RecordBatch]) -> str:
    """Rows of a telemetry file, as `State.batches` reads them."""
    if not batches:
        return ""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return base64.b64encode(sink.getvalue()).decode("ascii")


def of_record(record: Record) -> list[Any]:
    """A record, as `State.record` reads it."""
    kind, body, block = encode(record)
    return [kind, body, None if block is None else base64.b64encode(block).decode("ascii")]


class State:
    """A part of what was written down.

    Args:
        values: as JSON gave it.
        name: what it is, for the error.

    Raises:
        StateError: it has no parts.

    Example:
        >>> State({"step": 7}, "the clock").integer("step")
        7
    """

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, dict):
            raise StateError(f"{name} is {_short(values)}, not an object")
        self._values: dict[str, Any] = values
        self._name = name

    def _get(self, name: str, kinds: type | tuple[type, ...], what: str) -> Any:
        value = self._values.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise StateError(f"{self._name}: {name} is {_short(value)}, not {what}")
        return value

    def integer(self, name: str, least: int = -_LARGEST - 1, most: int = _LARGEST) -> int:
        """A whole number between two bounds."""
        value = self._get(name, int, "a whole number")
        if not least <= value <= most:
            raise StateError(f"{self._name}: {name} is {_short(value)}, not between {least} and {most}")
        return int(value)

    def optional(self, name: str) -> int | None:
        """A whole number, or None."""
        return None if self._values.get(name) is None else self.integer(name)

    def number(self, name: str, finite: bool = False) -> float:
        """A number."""
        value = self._get(name, (int, float), "a number")
        if finite and not isfinite(value):
            raise StateError(f"{self._name}: {name} is {value}, not finite")
        return float(value)

    def text(self, name: str) -> str:
        """A text."""
        return str(self._get(name, str, "a text"))

    def part(self, name: str) -> State:
        """A part of it, which has parts itself."""
        return State(self._values.get(name), f"{self._name}: {name}")

    def has(self, name: str) -> bool:
        """Whether there is something by that name."""
        return self._values.get(name) is not None

    def items(self, name: str) -> list[Any]:
        """A list."""
        found: list[Any] = self._get(name, list, "a list")
        return found

    def parts(self, name: str) -> list[State]:
        """A list of parts which have parts themselves."""
        return [State(one, f"{self._name}: {name} {at}") for at, one in enumerate(self.items(name))]

    def names(self) -> list[str]:
        """The names of its parts."""
        return list(self._values)

    def integers(self, name: str) -> dict[str, int]:
        """A whole number by name."""
        part = self.part(name)
        return {key: part.integer(key) for key in part.names()}

    def numbers(self, name: str) -> dict[str, float]:
        """A number by name."""
        part = self.part(name)
        return {key: part.number(key) for key in part.names()}

    def texts(self, name: str) -> dict[str, str]:
        """A text by name."""
        part = self.part(name)
        return {key: part.text(key) for key in part.names()}

    def list_of_texts(self, name: str) -> list[str]:
        """A list of texts."""
        found = self.items(name)
        if not all(isinstance(one, str) for one in found):
            raise StateError(f"{self._name}: {name} has something that is no text")
        return found

    def array(self, name: str, kind: str, length: int | None = None) -> np.ndarray:
        """A row of numbers.

        Args:
            name: of the part.
            kind: "<i8" or "<f8".
            length: how many there are; None if that is not known.
        """
        value = self.items(name)
        if len(value) != 3 or value[0] != kind or not isinstance(value[2], str) or type(value[1]) is not int:
            raise StateError(f"{self._name}: {name} is no array of {kind}")
        count = value[1]
        if not 0 <= count <= _MOST_ITEMS or length not in (None, count):
            raise StateError(f"{self._name}: {name} has {count} numbers, not {length}")
        try:
            unpacked = zlib.decompressobj()
            data = unpacked.decompress(base64.b64decode(value[2], validate=True), 8 * count + 1)
        except (ValueError, zlib.error) as error:
            raise StateError(f"{self._name}: {name} cannot be read: {error}") from error
        if len(data) != 8 * count:
            raise StateError(f"{self._name}: {name} has {len(data)} bytes, not {8 * count}")
        return np.frombuffer(data, kind).copy()

    def batches(self, name: str) -> list[pa.RecordBatch]:
        """Rows of a telemetry file."""
        text = self.text(name)
        if not text:
            return []
        try:
            with pa.ipc.open_stream(base64.b64decode(text, validate=True)) as reader:
                found = list(reader)
            for batch in found:
                batch.validate(full=True)
        except (ValueError, pa.ArrowException, OSError) as error:
            raise StateError(f"{self._name}: {name} cannot be read: {error}") from error
        return found

    def record(self, name: str, kind: type | None = None) -> Any:
        """A record, of one kind or any."""
        return _record(self._values.get(name), f"{self._name}: {name}", kind)

    def records(self, name: str) -> list[Any]:
        """A list of records."""
        return [_record(one, f"{self._name}: {name}", None) for one in self.items(name)]


def _record(value: Any, name: str, kind: type | None) -> Record:
    try:
        called, body, block = value
        record = decode(called, body, None if block is None else base64.b64decode(block, validate=True))
        _check(record)
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise StateError(f"{name} is no record: {error!r}") from error
    if kind is not None and type(record) is not kind:
        raise StateError(f"{name} is {called}, not {kind.__name__}")
    return record


def _check(record: Record) -> None:
    """Looks whether the fields of a record have the types that are read most: texts, and lists of them."""
    from typing import get_type_hints

    for name, wanted in get_type_hints(KINDS[type(record).__name__]).items():
        value = getattr(record, name)
        plain = wanted if isinstance(wanted, type) else None
        if plain is float:
            plain = (int, float)  # type: ignore[assignment]
        if plain in (str, int, bool, (int, float)) and not isinstance(value, plain):  # type: ignore[arg-type]
            raise ValueError(f"{name} is {_short(value)}")
        if str(wanted).startswith("tuple[str") and not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} has something that is no text")


def integers(values: Iterable[Any], name: str, least: int = 0, most: int = _LARGEST) -> list[int]:
    """Whole numbers between two bounds.

    Raises:
        StateError: one is not.
    """
    found = list(values)
    for one in found:
        if type(one) is not int or not least <= one <= most:
            raise StateError(f"{name} has {_short(one)}")
    return found


def by_number(values: Mapping[int, Any]) -> dict[str, Any]:
    """What is kept by number, as JSON has it."""
    return {str(number): value for number, value in values.items()}


def number_of(name: str) -> int:
    """The number that a name in JSON stands for.

    Raises:
        StateError: it is none.
    """
    if not name.isdecimal() or len(name) > 9:
        raise StateError(f"{name!r} is no number of a stream")
    return int(name)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
