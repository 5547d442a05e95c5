"""Parameters of an entry point: an invalid one ends with one line that says what is valid."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class Parameters(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr and exit status 2.

    Every entry point has the parameter `quick`: with it, what is left at its default gets the value for a quick run.

    Example:
        >>> parameters = Parameters("projects.dropout", "What dropout does.")
        >>> parameters.add("epochs", count, 60, quick=2)
        >>> parameters.read(["--quick=true"]).epochs
        2
    """

    def __init__(self, program: str, description: str | None = None) -> None:
        super().__init__(program, description=description)
        self._quick: dict[str, Any] = {}
        self.add("quick", flag, False)

    def add(
        self,
        name: str,
        read: Callable[[str], Any],
        default: Any,
        quick: Any = None,
        choices: Sequence[str] | None = None,
    ) -> None:
        """Adds a parameter.

        Args:
            name: as in MLproject; on the command line with "-" for "_".
            read: makes its value of a text, such as `count` or `rate`.
            default: its value where none is given.
            quick: the value of a quick run, if that is another.
            choices: the values that it can have; default: whatever `read` takes.
        """
        self.add_argument(f"--{name.replace('_', '-')}", type=read, default=default, choices=choices)
        if quick is not None:
            self._quick[name] = quick

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Reads the command line; a wrong value ends the process."""
        found = self.parse_args(arguments)
        if found.quick:
            for name, value in self._quick.items():
                if getattr(found, name) == self.get_default(name):
                    setattr(found, name, value)
        return found

    def error(self, message: str) -> NoReturn:
        """Ends the process with `message`; argparse itself would print the usage before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def count(text: str, least: int = 1) -> int:
    """Reads a whole number of at least `least`.

    Raises:
        argparse.ArgumentTypeError: `text` is no such number.
    """
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not '{text}'")
    return value


def rate(text: str) -> float:
    """Reads a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: `text` is no such number.
    """
    return _between(text, math.inf, "a finite number above 0")


def share(text: str) -> float:
    """Reads a number between 0 and 1, neither of them included.

    Raises:
        argparse.ArgumentTypeError: `text` is no such number.
    """
    return _between(text, 1, "a number between 0 and 1")


def _between(text: str, end: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < end:
        raise argparse.ArgumentTypeError(f"must be {what}, not '{text}'")
    return value


def flag(text: str) -> bool:
    """Reads "true" or "false".

    Raises:
        argparse.ArgumentTypeError: `text` is neither.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not '{text}'")
    return text.lower() == "true"
