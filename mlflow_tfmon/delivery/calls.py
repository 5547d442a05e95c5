"""Pending calls to the store, and the handling of those that fail.

A call that fails is made again, whatever the reason: it does nothing twice. It holds up others only as far as they
need it. Rows and facts go in order, for what comes later may take the place of what came before; files in any order,
for a store that refuses one may take the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow_tfmon.tracking.store import AwayError
from mlflow_tfmon.tracking.texts import sayable
from mlflow_tfmon.uris import in_a_line

_TRIES = 5  # of a call that a store does not take, though it takes others
_FAILING_SECONDS = 2.0  # that calls which fail may take, one after the other


@dataclass(eq=False)
class Call:
    """A call to be made.

    Attributes:
        make: makes it.
        name: what it is about.
        needs: it follows those before it whose names begin so; None: it needs none of them.
        parts: gives smaller calls that do the same together, none if it cannot be parted.
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
            AwayError: it is to be made again.
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
    """Calls that are made one after the other.

    Attributes:
        sent: when a call last succeeded (monotonic seconds).
        failed: what was left out, since the store takes other calls and not this one: name -> why.

    Args:
        takes_others: asks the store whether it takes a call that it has taken before.
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
            AwayError: the store does not answer; those that are left still wait.
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
    """Calls of which one that fails holds up only those that need it.

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
        """Makes them, those that failed before at last.

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
