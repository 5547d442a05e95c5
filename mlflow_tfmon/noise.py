"""Keeps what others say, and nobody can act on, from drowning what is said here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def hushed(name: str, below: int) -> Iterator[None]:
    """Leaves out what one logger of another package says meanwhile, below a level.

    Args:
        name: of the logger, whose own setting up (alembic's, by MLflow) does not undo it.
        below: the level from which on lines are still said.

    Example:
        >>> with hushed("alembic.runtime.migration", below=logging.WARNING):
        ...     client.search_experiments()
    """
    logger = logging.getLogger(name)

    def matters(record: logging.LogRecord) -> bool:
        return record.levelno >= below

    logger.addFilter(matters)
    try:
        yield
    finally:
        logger.removeFilter(matters)
