"""Text and tables for a terminal, safe for anything a store contains, such as terminal control sequences."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlflow_tfmon.uris import visible, without_secrets


def echo(text: str, err: bool = False) -> None:
    """Prints a text, on stderr if `err`, without secrets and with its control characters seen."""
    click.echo(visible(without_secrets(text)), err=err)


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
