r"""Texts and numbers that every store accepts: others are changed or left out, and named.

Python's texts can hold what no other program reads: halves of characters, as `os.fsdecode` makes them of file names
that are not UTF-8, and NULs. A figure can be a text, or an integer that no float holds. One of them would keep all that
follows waiting: no store takes it, nor does Parquet. So all that is read from a journal passes through `said`, and all
that goes to MLflow through `sayable`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeVar

from mlflow_tfmon.stream.records import (
    DeepSteps,
    EpochEnded,
    Facts,
    Histograms,
    Logged,
    ModelSaved,
    Record,
    Steps,
    System,
)

T = TypeVar("T")
_UNSAYABLE = re.compile("[\x00\ud800-\udfff]")
_BLOCKS = (Steps, DeepSteps, Histograms)
_AS_THEY_ARE = frozenset({"tracking_uri", "registry_uri"})  # addresses, which other characters would change
_LARGEST = 2**63 - 1  # of the integers that a store has
_CHANGED = "has characters that no store accepts; they are written as escapes"


def sayable(text: str) -> str:
    r"""A text without what is no character, and without NULs: both are written as escapes.

    Example:
        >>> print(sayable("caf\udce9.jpg"))
        caf\xe9.jpg
    """
    if text.isascii() and "\0" not in text:
        return text
    return _UNSAYABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code else "\\x00"


def cut(text: str, length: int) -> str:
    """A text of at most so many characters; one that is longer ends in "…"."""
    return text if len(text) <= length else text[: length - 1] + "…"


def milliseconds(time: float) -> int:
    """Unix seconds as MLflow has them; 0 for what is no time."""
    return int(time * 1e3) if isfinite(time) and abs(time) < _LARGEST / 1e6 else 0


def said(record: Record) -> tuple[Record, dict[str, str]]:
    """A record as every store takes it.

    Args:
        record: as it was read.

    Returns:
        The record, and what had to be changed or left out of it: name -> how.
    """
    if isinstance(record, _BLOCKS):
        return record, {}
    told: dict[str, str] = {}
    record = _figures(record, told)
    return _with_texts(record, type(record).__name__, told), told


def _with_texts(value: T, name: str, told: dict[str, str]) -> T:
    """A value with all texts in it as they can be said; unchanged it is the same object.

    Args:
        value: the value.
        name: of what it belongs to.
        told: gets what was changed.
    """
    changed: Any = value
    if isinstance(value, str):
        changed = sayable(value)
        if changed != value:
            told[sayable(name)] = _CHANGED
    elif isinstance(value, Mapping):
        found: dict[Any, Any] = {}
        for key, one in value.items():
            called = _with_texts(key, key, told) if isinstance(key, str) else key
            while called in found:  # two that become the same stay two
                called += "_"
            found[called] = _with_texts(one, str(key), told)
        changed = found if found != value else value
    elif isinstance(value, (list, tuple)):
        found_all = [_with_texts(one, name, told) for one in value]
        if any(one is not before for one, before in zip(found_all, value, strict=True)):
            changed = type(value)(found_all)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _with_texts(getattr(value, field.name), field.name, told)
            for field in dataclasses.fields(value)
            if field.name not in _AS_THEY_ARE
        }
        if any(one is not getattr(value, key) for key, one in fields.items()):
            changed = dataclasses.replace(value, **fields)
    result: T = changed
    return result


def _figures(record: Record, told: dict[str, str]) -> Record:
    """A record with those of its figures that are numbers."""
    if isinstance(record, Facts):
        kept = tuple(
            one for one in record.metrics if _is_figure(*one[:2], told) and _is_step(*one[::2], told)
        )
        return record if len(kept) == len(record.metrics) else dataclasses.replace(record, metrics=kept)
    name = (
        "metrics"
        if isinstance(record, (EpochEnded, ModelSaved))
        else "values"
        if isinstance(record, (Logged, System))
        else None
    )
    if name is None:
        return record
    figures: Mapping[str, Any] = getattr(record, name)
    step = record.epoch if isinstance(record, EpochEnded) else record.step  # type: ignore[union-attr]
    if figures and not _is_step(next(iter(figures)), step, told):
        figures = dict.fromkeys(figures)  # none of them has a place
    found = {key: value for key, value in figures.items() if _is_figure(key, value, told)}
    return record if found == getattr(record, name) else dataclasses.replace(record, **{name: found})  # type: ignore[arg-type]


def _is_figure(name: str, value: Any, told: dict[str, str]) -> bool:
    with_value = isinstance(value, (int, float))
    if with_value and isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            with_value = False
    if not with_value:
        told.setdefault(sayable(str(name)), "has a value that is not a number; it is left out")
    return with_value


def _is_step(name: str, step: Any, told: dict[str, str]) -> bool:
    there = isinstance(step, int) and abs(step) <= _LARGEST
    if not there:
        told[sayable(str(name))] = "has a step that no store accepts; it is left out"
    return there
