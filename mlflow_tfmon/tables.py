"""Text, tables and JSON for a terminal, safe for anything a store contains, such as terminal control sequences."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlflow_tfmon.uris import visible, without_secrets, without_secrets_in


class WrongInputError(click.ClickException):
    """What a user named is not there, or cannot be written: wrong usage, as the exit status says it."""

    exit_code = 2


def echo(text: str, err: bool = False) -> None:
    """Prints a text, on stderr if `err`, without secrets and with its control characters seen."""
    click.echo(visible(without_secrets(text)), err=err)


def echo_written(text: str) -> None:
    """Prints a text that its writer has made safe: JSON, XML or Markdown, which `echo` could make invalid."""
    click.echo(text)


def write(option: str, path: Path, text: str) -> None:
    """Writes the file that an option names.

    Raises:
        WrongInputError: that cannot be done.
    """
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise WrongInputError(
            f"{option} {path}: {error.strerror}; name a file in a folder that is there."
        ) from error


def as_json(value: Any) -> str:
    """A value as JSON without secrets; a number that is not finite is a text, since JSON has none.

    Example:
        >>> as_json(float("nan"))
        '"nan"'
    """
    return json.dumps(_finite(without_secrets_in(value)), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text; the first one is the heading.

    Example:
        >>> print(table([("RUN", "STATE"), ("8f3a51", "done")]))
        RUN     STATE
        8f3a51  done
    """
    rows = [[visible(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
