"""Current problems: each is reported once, kept up to date, and withdrawn if the training recovers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from mlflow_tfmon.detectors import Detect, History, Problem, judge
from mlflow_tfmon.detectors.causes import explained
from mlflow_tfmon.detectors.learning import LITTLE, MUCH, diverged, learning
from mlflow_tfmon.detectors.thresholds import Chosen


class Standing:
    """The current problems of a recording.

    A problem that is no longer found stays as long as the training does not learn: that a detector no longer sees it
    does not mean that it is fixed. One that lasted for more than half of the training stays until much is learned.

    Args:
        further: third-party detectors.
        chosen: as in the setting `detectors`.

    Example:
        >>> standing = Standing()
        >>> new = standing.judge(replay.histories())
        >>> [problem.kind for problem in standing.problems]
        ['nan_or_inf']
    """

    def __init__(self, further: Iterable[Detect] = (), chosen: Chosen | None = None) -> None:
        self._further = tuple(further)
        self._chosen = chosen or {}
        self._past: list[Problem] = []
        self._found: dict[tuple[str, str], Problem] = {}
        self._said: dict[tuple[str, str], Problem] = {}  # as they were when they were said last
        self.learned: dict[str, float] = {}  # by prefix: see `Learning`
        self.histories: dict[str, History] = {}  # by prefix: as they were judged last
        self._turning: set[str] = set()  # the prefixes of those that are not alone

    @property
    def found(self) -> dict[tuple[str, str], Problem]:
        """What is the matter now, by prefix and kind: not what was before a restart."""
        return dict(self._found)

    @property
    def problems(self) -> list[Problem]:
        """Those that stand: of each training the causes first, and what follows from them."""
        kinds = {problem.kind for problem in self._found.values()}
        found = [problem for prefix in self._prefixes() for problem in self._explained(prefix)]
        found += [problem for problem in self._past if problem.kind not in kinds]
        return sorted(found, key=lambda one: (bool(one.consequence_of), one.severity != "critical"))

    def _prefixes(self) -> list[str]:
        return list(dict.fromkeys(prefix for prefix, _ in self._found))

    def _explained(self, prefix: str) -> list[Problem]:
        found = [problem for (of, _), problem in self._found.items() if of == prefix]
        return explained(sorted(found, key=lambda one: one.said_at))

    def restart(self, prefix: str) -> None:
        """The training begins anew from an earlier state: what is found from here on is new."""
        for key in [key for key in self._found if key[0] == prefix]:
            problem = self._found.pop(key)
            self._said.pop(key, None)
            self._past = [one for one in self._past if one.kind != problem.kind] + [problem]

    def judge(self, histories: Mapping[str, History]) -> list[Problem]:
        """Diagnoses the histories of all streams (by prefix) again.

        Returns:
            What is to be said: the problems that were not known before, and those that have become critical. One that
            was taken back and is found again was said.
        """
        new: set[tuple[str, str]] = set()
        for prefix, history in histories.items():
            found: dict[str, Problem] = {}
            for problem in judge(history, self._further, self._chosen):
                found.setdefault(problem.kind, problem)  # of one kind, that which matters most comes first
            for kind, problem in found.items():
                said = self._said.get((prefix, kind))
                known = self._found.get((prefix, kind))
                first = min(problem.first_step, known.first_step if known else problem.first_step)
                at = said.said_at if said else max(1, history.step)
                problem = _named(dataclasses.replace(problem, first_step=first, said_at=at), prefix)
                self._found[prefix, kind] = problem
                if said is None or (problem.severity == "critical" != said.severity):
                    self._said[prefix, kind] = problem
                    new.add((prefix, kind))
            # Whether its loss has to fall was judged too early: what was found by that never was.
            mistaken = not history.alone and prefix not in self._turning
            if mistaken:
                self._turning.add(prefix)
            self.histories[prefix] = history
            state = learning(history)
            self.learned[prefix] = state.learned
            for key in [key for key in self._found if key[0] == prefix and key[1] not in found]:
                lasted = (history.step - self._found[key].said_at) / max(1, history.step - history.start)
                enough = MUCH if lasted * state.share > 0.5 else LITTLE
                if mistaken or (state.learned >= enough and not diverged(history)):
                    del self._found[key]
        standing = {(prefix, one.kind): one for prefix in self._prefixes() for one in self._explained(prefix)}
        return [problem for key, problem in standing.items() if key in new]


def _named(problem: Problem, prefix: str) -> Problem:
    if not prefix:
        return problem
    variables = tuple(prefix + name for name in problem.variables)
    return dataclasses.replace(
        problem, variables=variables, evidence=f"{prefix.rstrip('.')}: {problem.evidence}"
    )
