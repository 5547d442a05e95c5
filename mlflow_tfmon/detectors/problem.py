"""A problem: what went wrong in a training, where, since when, and what to do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEVERITIES = ("warning", "critical")


@dataclass(frozen=True)
class Problem:
    """Something that went wrong in a training.

    Attributes:
        kind: what, such as "nan_or_inf".
        severity: "warning", or "critical": the training comes to nothing as it is.
        first_step: the optimizer step at which it began, as far as what was recorded tells.
        variables: the variables or layers concerned.
        evidence: what was seen, with numbers, steps and the threshold.
        advice: the change to make.
        last_step: the step up to which it was seen.
        confidence: 0 to 1.
        said_at: the step at which it was first said; 0 for one that nobody was told of yet.
    """

    kind: str
    severity: str
    first_step: int
    variables: tuple[str, ...]
    evidence: str
    advice: str
    last_step: int = 0
    confidence: float = 0.9
    said_at: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Problem:
        """A problem as `dataclasses.asdict` (or a JSON file) tells it; what is not known is left out.

        Raises:
            ValueError: it tells none.
        """
        try:
            known = {item.name for item in dataclasses.fields(cls)}
            found = {name: value for name, value in values.items() if name in known}
            one = cls(**{**found, "variables": tuple(found.get("variables", ()))})
            texts = (one.kind, one.severity, one.evidence, one.advice, *one.variables)
            numbers = (one.first_step, one.last_step, one.said_at, one.confidence)
            fits = all(isinstance(text, str) for text in texts) and all(
                abs(number) < 2**53 for number in numbers
            )
        except (TypeError, AttributeError) as error:
            raise ValueError(f"it tells no problem: {error}") from error
        if not fits:
            raise ValueError("it tells no problem")
        return one

    def line(self) -> str:
        """In a line for a terminal."""
        where = f" [{_few(self.variables)}]" if self.variables else ""
        return f"{self.kind}{where} since step {self.first_step}: {self.evidence} {self.advice}"


def _few(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
