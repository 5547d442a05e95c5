"""Problem of a training: what went wrong, where, since when, and what to do about it."""

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
        kind: name of the kind, such as "nan_or_inf".
        severity: "warning", or "critical" if the training will fail unless something is changed.
        first_step: the optimizer step at which it began, as far as the recording shows; 0 if before the first one.
        variables: the variables or layers concerned.
        evidence: what was observed, with numbers, steps and the threshold.
        advice: the change to make; "" if another problem explains this one.
        last_step: the last step at which it was observed.
        confidence: 0 to 1.
        said_at: the step at which it was first reported; 0 if it has not been reported yet.
        consequence_of: kind of the problem that explains this one, or "".
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
    consequence_of: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Problem:
        """Returns the problem in a dict made by `dataclasses.asdict` (or read from JSON); unknown keys are ignored.

        Raises:
            ValueError: the values do not describe a problem.
        """
        try:
            known = {item.name for item in dataclasses.fields(cls)}
            found = {name: value for name, value in values.items() if name in known}
            one = cls(**{**found, "variables": tuple(found.get("variables", ()))})
            texts = (one.kind, one.severity, one.evidence, one.advice, one.consequence_of, *one.variables)
            numbers = (one.first_step, one.last_step, one.said_at, one.confidence)
            fits = all(isinstance(text, str) for text in texts) and all(
                abs(number) < 2**53 for number in numbers
            )
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a problem: {error}") from error
        if not fits:
            raise ValueError("not a problem: a value has the wrong type or size")
        return one

    def line(self) -> str:
        """Returns the problem as a line for a terminal."""
        where = f" [{_few(self.variables)}]" if self.variables else ""
        since = f"since step {self.first_step}" if self.first_step else "from the start"
        return f"{self.kind}{where} {since}: {self.evidence} {self.remedy()}"

    def seen_from(self, step: int) -> bool:
        """Whether it was seen at a step or after it."""
        return max(self.first_step, self.last_step) >= step

    def remedy(self) -> str:
        """Returns what to do, or what to mend first."""
        return f"A consequence of {self.consequence_of}." if self.consequence_of else self.advice


def _few(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
