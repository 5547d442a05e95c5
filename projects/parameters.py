"""The parameters of an entry point: a wrong one ends with one line that says what would be right."""

import argparse
import math
from typing import NoReturn


class Parameters(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr and exit status 2.

    Example:
        >>> parser = Parameters("projects.main")
        >>> _ = parser.add_argument("--epochs", type=count, default=20)
        >>> parser.parse_args(["--epochs=3"]).epochs
        3
    """

    def error(self, message: str) -> NoReturn:
        """Ends the process with `message`; argparse itself would print the usage before it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def count(text: str) -> int:
    """Reads a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: `text` is no such number.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not '{text}'")
    return value


def rate(text: str) -> float:
    """Reads a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: `text` is no such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not '{text}'")
    return value
