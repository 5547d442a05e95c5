"""Containment of this package's own errors: each is logged once, in one line, and training continues."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from mlflow_tfmon.uris import in_a_line, visible, without_secrets

logger = logging.getLogger("mlflow_tfmon")
_said: set[str] = set()
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]  # Python 3.9 to 3.13


class NotThereError(ValueError):
    """What was asked for is not there, or not yet; the message says why, and what to do."""


class InputError(ValueError):
    """What a user named is of no use here, such as a run that was not monitored; the message says what is."""


class SettingError(InputError):
    """Invalid value of a setting; the message names setting, value and remedy.

    Attributes:
        setting: its name, if it is one of the settings.
    """

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(without_secrets(message))
        self.setting = setting


class ApartError(SettingError):
    """This worker would train otherwise than the others, which wait for it: the one error that is never contained."""


def raises() -> bool:
    """Whether our errors are raised instead of contained (environment `MLFLOW_TFMON_RAISE_ERRORS=1`, for tests)."""
    return os.environ.get("MLFLOW_TFMON_RAISE_ERRORS") == "1"


def say_once(key: str, message: str, level: int = logging.WARNING) -> None:
    """Logs a message, unless one with the same key was logged before in this process."""
    with _lock:
        if key in _said:
            return
        _said.add(key)
    logger.log(level, message)


@contextlib.contextmanager
def contained(part: str, consequence: str) -> Iterator[None]:
    """Keeps an error in one of our parts away from the user's training.

    Args:
        part: the part that failed, as the log line names it.
        consequence: what is no longer recorded, as a clause.

    Example:
        >>> with contained("the example", "nothing"):
        ...     pass
    """
    try:
        yield
    except Exception as error:
        if raises() or isinstance(error, ApartError):
            raise
        say_once(
            f"{part}: {consequence}",
            f"mlflow_tfmon: {part} failed ({type(error).__name__}: {in_a_line(error)[:300]}); "
            f"training continues, but {consequence}.",
        )


def quiet(silent: bool) -> None:
    """Turns the package's own log lines off or on (`silent=True` suppresses all)."""
    logger.setLevel(logging.CRITICAL + 1 if silent else logging.INFO)


class _ToStderr(logging.StreamHandler):
    """Handler that writes to the current stderr, which a progress bar or a notebook may replace."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Ignored: the base class sets it initially."""


class _Clean(logging.Filter):
    """Filter that removes secrets from log lines and escapes control characters, since some text comes from stores."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(without_secrets(record.getMessage())), None
        return True


def _set_up_handler() -> None:
    """Shows our log lines even if the application does not configure logging, as MLflow does with its own."""
    if not any(isinstance(one, _Clean) for one in logger.filters):
        logger.addFilter(_Clean())
    if logger.handlers:
        return
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y/%m/%d %H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


_set_up_handler()
