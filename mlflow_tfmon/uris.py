"""Store addresses as they may be written down: absolute, and without a secret in them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.request import url2pathname

_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_SECRET_QUERY = re.compile(
    r"(?<=[?&])([^=&#\s]*(?:password|passwd|secret|token|key)[^=&#\s]*)=[^&#\s]*", re.IGNORECASE
)
_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?):///(.*)$", re.DOTALL)

# What MLflow makes of what requests makes of what urllib3 says (MLflow 3.1 to 3.17).
_NO_ANSWER = re.compile(r"API request to (\w+://[^/\s]+)\S* failed with exception (.*)", re.DOTALL)
_CAUSE = re.compile(r".*\(Caused by \w+\((.*)\)\)", re.DOTALL)
_CONNECTION = re.compile(r"^[\"']?(?:(?:<[^>]*>|HTTPS?Connection(?:Pool)?\([^)]*\)):)?\s*[\"']?")


def without_secrets(text: str) -> str:
    """Removes user names, passwords and tokens from the addresses in a text.

    Example:
        >>> without_secrets("https://ann:secret@example.org/mlflow")
        'https://example.org/mlflow'
    """
    return _SECRET_QUERY.sub(r"\1=", _USERINFO.sub("", text))


def in_a_line(error: Exception) -> str:
    r"""What a store's error says, in one line without a secret: which server, and why, if that does not answer.

    Example:
        >>> in_a_line(OSError("no space left\\non the device"))
        'no space left on the device'
    """
    text = str(error)
    found = _NO_ANSWER.match(text)
    if found:
        inner = _CAUSE.match(found[2])
        text = f"no answer from {found[1]}: {_CONNECTION.sub('', inner[1] if inner else found[2])}".rstrip(
            "\"'"
        )
    return " ".join(without_secrets(text).split())[:400] or type(error).__name__


def sqlite_path(uri: str) -> str | None:
    """The absolute path of the database file that a store address names, or None if it names none."""
    match = _SQLITE.match(uri)
    path = match.group(2).split("?")[0] if match else ""
    return os.path.abspath(path) if path and path != ":memory:" else None


def absolute(uri: str) -> str:
    """The same store, whatever the working directory: local paths are made absolute.

    Example:
        >>> absolute("http://localhost:5000")
        'http://localhost:5000'
    """
    match = _SQLITE.match(uri)
    path = sqlite_path(uri)
    if match and path:
        query = "?" + match.group(2).split("?", 1)[1] if "?" in match.group(2) else ""
        return f"{match.group(1)}:///{path.replace(os.sep, '/')}{query}"
    if uri.startswith("file:") and not uri.startswith("file:/"):
        return Path(url2pathname(uri.removeprefix("file:"))).absolute().as_uri()
    is_path = "://" not in uri and not uri.startswith(("file:", "databricks", "uc"))
    return os.path.abspath(uri) if uri and is_path else uri
