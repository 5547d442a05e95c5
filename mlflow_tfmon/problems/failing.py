"""Failure criterion of a diagnosis: the severities and kinds of `diagnose --fail-on`."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_tfmon.detectors import KINDS, Problem
from mlflow_tfmon.detectors.problem import SEVERITIES
from mlflow_tfmon.problems.plugins import others


@dataclass(frozen=True)
class Failing:
    """A failure criterion: the problems with which a training fails.

    Attributes:
        severities: "critical", or "warning" for any problem.
        kinds: kinds that fail whatever their severity.
    """

    severities: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    @classmethod
    def parsed(cls, text: str) -> Failing:
        """The problems that a text names, such as "critical,overfitting"; "" for none.

        Raises:
            ValueError: it names something else; the message says what there is.

        Example:
            >>> Failing.parsed("critical").fails(problem)
            True
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        unknown = [word for word in words if word not in (*SEVERITIES, *KINDS)]
        if unknown and not others():  # a detector of another package may find problems of any kind
            raise ValueError(
                f"{unknown[0]!r} is no severity and no kind of problem; give critical, warning, or some of: "
                f"{', '.join(KINDS)}"
            )
        return cls(frozenset(words) & frozenset(SEVERITIES), frozenset(words) - frozenset(SEVERITIES))

    def fails(self, problem: Problem) -> bool:
        """Whether a problem is one of them."""
        return (
            "warning" in self.severities or problem.severity in self.severities or problem.kind in self.kinds
        )
