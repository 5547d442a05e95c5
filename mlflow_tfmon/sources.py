"""Sources of settings: the environment (`MLFLOW_TFMON_…`) and `[tool.mlflow_tfmon]` in pyproject.toml."""

from __future__ import annotations

import difflib
import functools
import json
import os
import stat
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlflow_tfmon.errors import SettingError, say_once

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "MLFLOW_TFMON_"
_MOST_BYTES = 2**20  # of a project's file
_INTERNAL = {"HOME", "RAISE_ERRORS"}  # further variables of ours
_TRUE_OR_FALSE = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def found(types: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The settings that the environment, or else the project, tells, each with where it comes from.

    Args:
        types: the type of each setting, as its annotation says it.

    Raises:
        SettingError: pyproject.toml has a setting that there isn't.
    """
    return _project(types) | _environment(types)


def variable(name: str) -> str:
    """The environment variable of a setting.

    Example:
        >>> variable("deep_every")
        'MLFLOW_TFMON_DEEP_EVERY'
    """
    return PREFIX + name.upper()


def parse(text: str, kind: str) -> Any:
    """A setting that was written as text, as a value of its type; what is none stays text, which the setting refuses.

    Args:
        text: such as "true", "5" or, for a dictionary, JSON.
        kind: the type, as the setting's annotation says it.

    Example:
        >>> parse("no", "bool"), parse("5", "str | int"), parse("5 epochs", "str | int")
        (False, 5, '5 epochs')
    """
    if kind == "bool":
        return _TRUE_OR_FALSE.get(text.lower(), text)
    if "None" in kind and text.lower() in ("", "none"):
        return None
    convert = [
        kind_of for name, kind_of in (("int", int), ("float", float), ("Mapping", json.loads)) if name in kind
    ]
    try:
        return convert[0](text) if convert else text
    except ValueError:
        return text


def unknown(name: str, known: Collection[str]) -> str:
    """What to say of a setting that there isn't."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown setting {name!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"known settings: {sorted(known)}."
    )


def _environment(types: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    settings = {}
    for key, text in os.environ.items():
        if not key.startswith(PREFIX) or key.removeprefix(PREFIX) in _INTERNAL:
            continue
        name = key.removeprefix(PREFIX).lower()
        if name in types:
            settings[name] = parse(text, types[name]), f"environment variable {key}"
        else:  # it may be meant for another version, in a training that nobody looks after
            say_once(key, f"mlflow_tfmon: environment variable {key}: {unknown(name, types)}")
    return settings


class _NotOursError(OSError):
    """A file is not read, and why."""


def _read(path: Path) -> str:
    """The text of a project's file, unless somebody has put it there for others: into a folder above theirs, say."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # it waits for no FIFO
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise _NotOursError("is not a regular file")
        # Who runs a script in somebody's folder trusts them: in a container, say, it may be another user's.
        if os.name == "posix" and about.st_uid not in (0, os.geteuid(), Path.cwd().stat().st_uid):
            raise _NotOursError(
                f"belongs to user {about.st_uid}; to use its settings, set {PREFIX}… variables"
            )
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return text.decode("utf-8")


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> dict[str, Any]:
    """A project's file as a dictionary, which is not to be changed: a script may fit a thousand times."""
    return tomllib.loads(text)


def _project(types: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        try:
            table = _parsed(_read(path)).get("tool", {}).get("mlflow_tfmon")
        except _NotOursError as error:
            say_once(str(path), f"mlflow_tfmon: {path} is not read, since it {error}.")
            continue
        except OSError:
            continue
        except (ValueError, AttributeError, RecursionError) as error:
            say_once(str(path), f"mlflow_tfmon: {path} is not read, since it is not valid TOML: {error}")
            continue
        if table is not None:
            for name in table:
                if name not in types:
                    raise SettingError(f"{path}, [tool.mlflow_tfmon]: {unknown(name, types)}")
            return {name: (value, f"{path}, [tool.mlflow_tfmon]") for name, value in table.items()}
    return {}
