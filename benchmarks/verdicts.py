"""Outcomes and diagnoses of trainings: kept in a file, and summarized."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of the zoo's paper and its reproduction package: (flagged of the faulty, flagged of the healthy).
_PUBLISHED = {
    "DeepDiagnosis, all": ("138 of 203", "68 of 188"),
    "DeepLocalize, all": ("191 of 203", "133 of 186"),
    "DeepDiagnosis, Blob": ("34 of 48", "8 of 39"),
    "DeepLocalize, Blob": ("44 of 48", "16 of 39"),
    "AutoTrainer's rules under Keras 3, Blob": ("143 of 155", "2 of 73"),
}


@dataclass(frozen=True)
class Job:
    """A training to be.

    Attributes:
        name: of the configuration.
        seed: of it.
        kinds: that would be right; none if unknown or healthy.
        make: the compiled model and the arguments of fit.
        score: of what fit returned, given its arguments: an accuracy, or the share of the variance explained; minus
            infinity if the loss is not finite.
        good: the least score of a training that went well.
    """

    name: str
    seed: int
    kinds: tuple[str, ...]
    make: Callable[[], tuple[Any, dict[str, Any]]]
    score: Callable[[dict[str, list[float]], dict[str, Any]], float]
    good: float

    def went_well(self, history: dict[str, list[float]], fit: dict[str, Any]) -> bool:
        """Judges what fit returned, given its arguments."""
        return self.score(history, fit) >= self.good


@dataclass(frozen=True)
class Result:
    """What became of a training, and what was said of it.

    Attributes:
        name: of the configuration.
        seed: of it.
        right: the kinds that would be right to name.
        well: whether it went well.
        kinds: that were said, and stand.
        first: share of the training that was over when the first of them was said; None where none was.
        seconds: that fit took.
        run_id: of its run; "" where it was not watched.
        score: as in `Job`; minus infinity if an error ended it.
    """

    name: str
    seed: int
    right: tuple[str, ...]
    well: bool
    kinds: tuple[str, ...]
    first: float | None
    seconds: float
    run_id: str = ""
    score: float = float("nan")

    def line(self) -> str:
        """In a line."""
        outcome = "well  " if self.well else "failed"
        return f"{self.seconds:6.1f} s  {outcome}  {self.name} {self.seed}: {', '.join(self.kinds) or 'none'}"


def read(path: Path) -> list[Result]:
    """The results that were kept; none where there is no such file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else ()
    found = [json.loads(line) for line in lines]
    return [Result(**{**one, "right": tuple(one["right"]), "kinds": tuple(one["kinds"])}) for one in found]


def add(path: Path, result: Result) -> None:
    """Keeps a result."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")


def report(results: Iterable[Result]) -> str:
    """The figures, and each training of which something was missed or wrongly said."""
    results = list(results)
    failed, well = [one for one in results if not one.well], [one for one in results if one.well]
    found = [one for one in failed if one.kinds]
    wrong = [one for one in well if one.kinds]
    named = [one for one in failed if one.right]
    right = [one for one in named if set(one.kinds) & set(one.right)]
    causes = [one for one in found if one.kinds[0] in one.right]
    known = [one for one in found if one.right]
    firsts = [one.first for one in found if one.first is not None]
    lines = [
        f"{'tool':42} {'flagged of the failed':>22} {'flagged of the healthy':>22}",
        f"{'mlflow_tfmon':42} {_of(found, failed):>22} {_of(wrong, well):>22}",
        *(f"{name:42} {a:>22} {b:>22}" for name, (a, b) in _PUBLISHED.items()),
        "",
        f"right kind named: {_of(right, named)} of those whose kind is known",
        f"first cause right: {_of(causes, known)} of those that were flagged and whose kind is known",
        f"first said after {statistics.median(firsts):.1%} of the training, in the median" if firsts else "",
        f"{sum(one.seconds for one in results):.0f} s of training in all",
        "",
    ]
    for one in results:
        if bool(one.kinds) == one.well:
            what = "healthy, but said:" if one.well else "failed, but nothing said"
            lines.append(f"{one.name} (seed {one.seed}): {what} {', '.join(one.kinds)}")
        elif one in named and one not in right:
            lines.append(
                f"{one.name} (seed {one.seed}): said {', '.join(one.kinds)}, not {' or '.join(one.right)}"
            )
        elif one in known and one not in causes:
            lines.append(
                f"{one.name} (seed {one.seed}): first of {', '.join(one.kinds)}, not {' or '.join(one.right)}"
            )
    return "\n".join(lines)


def gate(found: Iterable[tuple[str, list[int], list[int]]]) -> str:
    """A table of exit statuses: by command those for the trainings that failed, and for those that went well."""
    lines = [f"{'':42} {'fails of the failed':>22} {'fails of the healthy':>22} {'undecided':>10}"]
    for name, *both in found:
        failed, well = (f"{one.count(1)} of {len(one)}" for one in both)
        lines.append(f"{name:42} {failed:>22} {well:>22} {sum(one.count(2) for one in both):>10}")
    return "\n".join(lines)


def _of(some: list[Result], all_of_them: list[Result]) -> str:
    share = f" ({len(some) / len(all_of_them):.1%})" if all_of_them else ""
    return f"{len(some)} of {len(all_of_them)}{share}"
