"""Pending calls to the store, and the handling of those that fail.

A failed call is repeated, whatever the reason, since calls are idempotent. It blocks only calls that depend on it. Rows
and facts go in order, since later ones may replace earlier ones; files in any order, since a store that rejects one may
accept the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow_tfmon.tracking.store import AwayError
from mlflow_tfmon.tracking.texts import sayable
from mlflow_tfmon.uris import in_a_line

_TRIES = 5  # attempts of a call that a store rejects though it accepts others
_FAILING_SECONDS = 2.0  # limit for consecutive failing calls


@dataclass(eq=False)
class Call:
    """A pending call to the store.

    Attributes:
        make: makes it.
        name: what it is about.
        needs: it follows earlier calls whose names begin so; None: it depends on none.
        parts: returns smaller calls that together do the same, none if it cannot be split.
        tries: how often it has failed.
    """

    make: Callable[[], None]
    name: str
    needs: str | None = None
    parts: Callable[[], Sequence[Call]] = tuple
    tries: int = 0

    def attempt(self) -> None:
        """Makes it.

        Raises:
            AwayError: to be repeated.
        """
        try:
            self.make()
        except AwayError:
            self.tries += 1
            raise
        except Exception as error:  # a fault of ours or of a library's: the store has not taken it
            self.tries += 1
            raise AwayError(f"{type(error).__name__}: {sayable(in_a_line(error))}") from error


class InOrder:
    """Queue of calls that are made one after the other.

    Attributes:
        sent: when a call last succeeded (monotonic seconds).
        failed: what was left out because the store accepts other calls but not this one: name -> reason.

    Args:
        takes_others: tests whether the store accepts a call that it has accepted before.
    """

    def __init__(self, takes_others: Callable[[], bool]) -> None:
        self.sent = 0.0
        self.failed: dict[str, str] = {}
        self._waiting: deque[Call] = deque()
        self._takes_others = takes_others

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: Call) -> None:
        """Adds one at the end."""
        self._waiting.append(call)

    def make(self) -> None:
        """Makes them.

        Raises:
            AwayError: the store does not answer; the remaining calls stay pending.
        """
        while self._waiting:
            call = self._waiting[0]
            try:
                call.attempt()
            except AwayError as away:
                if call.tries < _TRIES or not self._takes_others():
                    raise
                self._waiting.popleft()
                parts = call.parts()
                for part in reversed(parts):
                    part.tries = _TRIES - 1
                    self._waiting.appendleft(part)
                if not parts:
                    self.failed[call.name] = str(away)
            else:
                self._waiting.popleft()
                self.sent = time.monotonic()


class AnyOrder:
    """Queue of calls in which a failing one blocks only those that depend on it.

    Attributes:
        sent: when a call last succeeded (monotonic seconds).
        errors: why those that failed last time did: name -> reason.
    """

    def __init__(self) -> None:
        self.sent = 0.0
        self.errors: dict[str, str] = {}
        self._waiting: list[Call] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: Call) -> None:
        """Adds one at the end."""
        self._waiting.append(call)

    def has(self, name: str) -> bool:
        """Whether one of a name waits."""
        return any(call.name == name for call in self._waiting)

    def make(self) -> None:
        """Makes them, those that failed before last.

        Raises:
            AwayError: why the first that failed did; those that are left still wait.
        """
        first: AwayError | None = None
        until = time.monotonic() + _FAILING_SECONDS
        tried: set[Call] = set()
        while call := self._next(tried):
            tried.add(call)
            try:
                call.attempt()
            except AwayError as away:
                self.errors[call.name] = str(away)
                first = first or AwayError(f"{call.name}: {away}")
                if time.monotonic() > until:
                    break
            else:
                self._waiting.remove(call)
                self.errors.pop(call.name, None)
                self.sent = time.monotonic()
        if first is not None:
            raise first

    def _next(self, tried: set[Call]) -> Call | None:
        ready = (call for call in self._waiting if call not in tried and not self._is_held(call))
        return min(ready, key=lambda one: one.tries, default=None)

    def _is_held(self, call: Call) -> bool:
        if call.needs is None:
            return False
        before = self._waiting[: self._waiting.index(call)]
        return any(one.name.startswith(call.needs) for one in before)
