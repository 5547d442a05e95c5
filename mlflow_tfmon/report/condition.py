"""Condition on a metric of a run, such as "val_accuracy>=0.9", and whether it holds."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

_SIGNS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
# The name is as short as it can be, so that the first sign that leaves a number is the condition's.
_FORM = re.compile(
    r"\s*(?:best\((?P<best>.+?)\)|(?P<final>.*?[^\s<>=!]))\s*(?P<sign>>=|<=|==|>|<)\s*(?P<limit>[^\s<>=]+)\s*",
    re.DOTALL,
)

Series = Mapping[int, float]  # values of a metric by epoch (or step), in their order


@dataclass(frozen=True)
class Condition:
    """A condition on a metric of a run.

    Attributes:
        text: the condition as it was written, without spaces around it.
        metric: name of the metric.
        best: whether the best value is meant, not the final one.
        sign: ">=", "<=", ">", "<" or "==".
        limit: the number that the value is compared with.
    """

    text: str
    metric: str
    best: bool
    sign: str
    limit: float

    @classmethod
    def parsed(cls, text: str) -> Condition:
        """The condition that a text describes: "val_accuracy>=0.9" or "best(val_loss)<=0.3".

        Raises:
            ValueError: it describes none; the message says how to write one.

        Example:
            >>> Condition.parsed("best(val_loss) <= 0.3").metric
            'val_loss'
        """
        found = _FORM.fullmatch(text)
        try:
            limit = float(found["limit"]) if found else math.nan
        except ValueError:
            limit = math.nan
        if found is None or not math.isfinite(limit):
            raise ValueError(
                f"{text!r} is no condition; write a metric, one of >= <= > < == and a number, in quotes, such as "
                "'val_accuracy>=0.9', or 'best(val_loss)<=0.3' for the best value"
            )
        best = found["best"] is not None
        name = found["best"] if best else found["final"]
        return cls(text.strip(), name.strip(), best, found["sign"], limit)

    def outcome(self, series: Series) -> Outcome:
        """What a run has for this condition.

        The final value is that of the last epoch that has one, also if it is not finite. The best is, of those that
        are finite, the largest for >= and >, the smallest for <= and <, the nearest for ==: `best(…)` holds if the
        condition held at any epoch.

        Args:
            series: the metric's values; empty if the run does not have it.

        Example:
            >>> Condition.parsed("best(val_loss)<=0.3").outcome({0: 0.9, 1: 0.2, 2: 0.4}).value
            0.2
        """
        if not series:
            return Outcome(self, None, None)
        finite = {at: value for at, value in series.items() if math.isfinite(value)}
        if not self.best or not finite:
            at = list(series)[-1]
        elif self.sign == "==":
            at = min(finite, key=lambda at: abs(finite[at] - self.limit))
        else:
            at = (max if ">" in self.sign else min)(finite, key=finite.__getitem__)
        return Outcome(self, series[at], at)


@dataclass(frozen=True)
class Outcome:
    """A condition, and the value that a run has for it.

    Attributes:
        condition: the condition.
        value: the value; None if the run does not have the metric.
        at: the epoch (or step) that had it, None if there is none.
    """

    condition: Condition
    value: float | None
    at: int | None

    @property
    def holds(self) -> bool:
        """Whether the condition is met; a value that is not finite meets none."""
        if self.value is None or not math.isfinite(self.value):
            return False
        return bool(_SIGNS[self.condition.sign](self.value, self.condition.limit))
