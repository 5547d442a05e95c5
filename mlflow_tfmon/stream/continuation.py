"""The state that a recording continues from: how far the earlier recordings of its run had come."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_COUNT = 2**53  # what counts are below


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
        begun: when the latest of them began, milliseconds since 1970: the next one's time is later, whatever the clock
            says, for recordings are in the order of their times.
    """

    streams: tuple[PastStream, ...] = ()
    epochs: Mapping[str, int] = field(default_factory=dict)
    seams: tuple[str, ...] = ()
    resumed: bool = False
    begun: int = 0

    @property
    def steps(self) -> dict[str, int]:
        """How many steps each stream had made, by prefix."""
        return {stream.prefix: stream.steps for stream in self.streams}

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Past:
        """Puts together what `as_dict` gave; nothing gives an empty past.

        Raises:
            ValueError: it gave no such thing; so do `TypeError` and `AttributeError`.
        """
        streams = tuple(PastStream(**one) for one in values.get("streams", ()))
        epochs, seams = dict(values.get("epochs", {})), tuple(values.get("seams", ()))
        begun = values.get("begun", 0)
        texts = [
            *epochs,
            *seams,
            *(text for s in streams for text in (s.prefix, s.name, s.model, s.variables)),
        ]
        counts = [*epochs.values(), *(count for s in streams for count in (s.number, s.steps))]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name is no text")
        if not all(type(count) is int and abs(count) < _MAX_COUNT for count in (*counts, begun)):
            raise ValueError("a count is none")
        return cls(streams, epochs, seams, bool(values.get("resumed", False)), begun)

    @classmethod
    def from_text(cls, text: str | None) -> Past:
        """Reads the run's tag; one that is missing, or that somebody has changed, gives an empty past."""
        try:
            return cls.from_dict(json.loads(text or "{}"))
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
