"""Private names of other libraries: each is looked up when needed, since a new version may lack it."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from mlflow_tfmon.errors import say_once


def find(path: str) -> Any:
    """What a dotted path names, such as `tensorflow.python.eager.record.stop_recording`; its modules are imported.

    Raises:
        ImportError: one of its modules is not there.
        AttributeError: it is not in its module or class.
    """
    parts = path.split(".")
    found: Any = importlib.import_module(parts[0])
    for at, name in enumerate(parts[1:], 2):
        if isinstance(found, ModuleType) and not hasattr(found, name):  # `tensorflow` hides its own `python`
            found = _module(".".join(parts[:at])) or getattr(found, name)
        else:
            found = getattr(found, name)
    return found


def _module(path: str) -> ModuleType | None:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        return None


def internal(path: str, otherwise: Any, consequence: str) -> Any:
    """What a dotted path names, or something in its place, with one line that says what that costs.

    Args:
        path: as for `find`.
        otherwise: what is returned where it is not there.
        consequence: what is then not recorded, as a clause.

    Example:
        >>> in_save_context = internal("tensorflow.python.saved_model.save_context.in_save_context", bool, "...")
    """
    return _found(path) if _is_there(path) else _missing(path, otherwise, consequence)


@functools.cache
def _found(path: str) -> Any:
    return find(path)


def _is_there(path: str) -> bool:
    try:
        _found(path)
    except Exception:  # a private module may fail in any way while it is imported
        return False
    return True


def _missing(path: str, otherwise: Any, consequence: str) -> Any:
    say_once(
        f"internal {path}",
        f"mlflow_tfmon: {path} is missing from the installed version; training continues, but {consequence}.",
    )
    return otherwise
