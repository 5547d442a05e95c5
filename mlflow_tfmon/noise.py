"""Filter for messages of other libraries that nobody can act on."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast


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


class _OnThread:
    """Stands in a warnings filter for a message's pattern: matches all that is said on one thread, and no other."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def match(self, _: str) -> bool:
        return threading.get_ident() == self._thread


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Leaves out what is warned of on this thread meanwhile.

    `warnings.catch_warnings` puts another list of filters in place for the whole process: within one of another thread
    it would leave the wrong one behind, and drop the user's own warnings meanwhile (Python 3.10 to 3.13).

    Example:
        >>> with no_warnings():
        ...     model.save("model.h5")
    """
    ours = ("ignore", _OnThread(), Warning, None, 0)
    cast("list[Any]", warnings.filters).insert(0, ours)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user has put other filters in place meanwhile
            cast("list[Any]", warnings.filters).remove(ours)
