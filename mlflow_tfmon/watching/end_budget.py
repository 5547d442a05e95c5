"""A limit on the time that the ends of trainings take within one run: a share of the trainings' own time.

A script may fit a model for a single step, a thousand times in one run (Q-learning). If each of these ended with saving
a model and waiting for MLflow, the script would do little else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from mlflow_tfmon.errors import contained

_FIRST_TRAININGS = 3  # trainings of a run that end with all there is, however short they are
_PAUSE_S = 60.0  # s between two summaries of those after them
_MAX_SHARE = 0.05  # of the time of the trainings, which the ends of those after them may take


class Thrift:
    """Tells the trainings of one run, at their ends, whether that may take its time; else it is done later.

    What is put off is done at the end of a later training that may take its time, or of the run.
    """

    def __init__(self) -> None:
        self._trainings = 0
        self._trained = self._spent = 0.0  # seconds
        self._said = 0.0  # monotonic time
        self._owed: dict[str, tuple[object, Callable[[], None]]] = {}

    def may_spend(self, seconds: float) -> bool:
        """Whether the end of a training may take its time.

        Args:
            seconds: that the training took.
        """
        self._trainings += 1
        self._trained += seconds
        return self._trainings <= _FIRST_TRAININGS or self._spent <= _MAX_SHARE * self._trained

    def may_say(self) -> bool:
        """Whether the end of a training may be summed up in the log."""
        due = self._trainings <= _FIRST_TRAININGS or time.monotonic() - self._said >= _PAUSE_S
        self._said = time.monotonic() if due else self._said
        return due

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Counts the time of what is done within."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - begun

    def owe(self, what: str, done: Callable[[], None], of: object) -> None:
        """Puts something off.

        Args:
            what: its name; what was put off under it before is replaced if it is of the same thing, else done now.
            done: does it.
            of: what it is of, such as a model.
        """
        before = self._owed.pop(what, None)
        self._owed[what] = of, done
        if before is not None and before[0] is not of:
            self._do(what, before[1])

    def forget(self, what: str, of: object) -> None:
        """What was put off under a name comes now: that of the same thing is done with, another's is done."""
        owed = self._owed.pop(what, None)
        if owed is not None and owed[0] is not of:
            self._do(what, owed[1])

    def pay(self) -> None:
        """Does what was put off."""
        owed, self._owed = self._owed, {}
        for what, (_, done) in owed.items():
            self._do(what, done)

    def _do(self, what: str, done: Callable[[], None]) -> None:
        with self.spending(), contained(what, "it is not recorded"):
            done()
