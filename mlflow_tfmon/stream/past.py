"""What a recording goes on from: how far the recordings before it, within the same run, had come."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SEAMS_TAG = "tfmon.seams"


@dataclass(frozen=True)
class PastStream:
    """One optimizer's steps, as far as they had come; attributes as in `records.StreamOpened`.

    Attributes:
        steps: how many.
        variables: a mark of what it trains (`mark`).
    """

    number: int
    prefix: str
    name: str
    model: str
    steps: int
    variables: str


@dataclass(frozen=True)
class Past:
    """How far a run's recordings had come.

    Attributes:
        streams: in the order of their numbers.
        epochs: how many epochs were done, by prefix.
        seams: first steps of further fits.
        resumed: whether a training goes on from a checkpoint, rather than another one begins.
    """

    streams: tuple[PastStream, ...] = ()
    epochs: Mapping[str, int] = field(default_factory=dict)
    seams: tuple[str, ...] = ()
    resumed: bool = False

    @property
    def steps(self) -> dict[str, int]:
        """How many steps each stream had made, by prefix."""
        return {stream.prefix: stream.steps for stream in self.streams}

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Past:
        """Puts together what `as_dict` gave; nothing gives an empty past."""
        streams = tuple(PastStream(**one) for one in values.get("streams", ()))
        seams = tuple(values.get("seams", ()))
        return cls(streams, dict(values.get("epochs", {})), seams, bool(values.get("resumed", False)))

    @classmethod
    def from_text(cls, text: str | None) -> Past:
        """Reads the run's tag; one that is missing, or that somebody has changed, gives an empty past."""
        try:
            found = cls.from_dict(json.loads(text or "{}"))
            whole = [*found.epochs.values(), *(n for one in found.streams for n in (one.number, one.steps))]
            texts = [
                *found.seams,
                *(t for one in found.streams for t in (one.prefix, one.name, one.model, one.variables)),
            ]
            right = all(type(one) is int for one in whole) and all(isinstance(one, str) for one in texts)
            return found if right else cls()
        except (ValueError, TypeError, AttributeError, RecursionError):
            return cls()


NOTHING = Past()


def mark(names: Iterable[str]) -> str:
    """A mark of a set of variables, by their names, that is the same in every process.

    Example:
        >>> mark(["dense.kernel", "dense.bias"]) == mark(["dense.bias", "dense.kernel"])
        True
    """
    return hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
