"""Texts and store addresses made safe to write down or show: without secrets and control characters.

Whatever goes to a disk, a log, a tag or a terminal passes here. Where a text can be read in two ways, what may be a
secret is left out.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from urllib.request import url2pathname

# A word of an address ends at white space, at the quote before the next part of JSON or Python, or at another address.
_CHARACTER = r"(?![\"'](?:[,;:)\]}]|$))[^\s]"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://"
_ADDRESS = re.compile(rf"(?<![A-Za-z0-9])({_SCHEME})((?:(?!{_SCHEME}){_CHARACTER})+)", re.MULTILINE)
# What is left of one with white space in its password: SQLAlchemy takes it.
_PORT = r"\d*(?:[/?#\s\"'<>)\]},;.]|$)"
_SPACED = re.compile(
    rf"({_SCHEME})[^\s:/?#@\[]*:(?!{_PORT})[^@\n]{{0,200}}@(?:{_CHARACTER}*@)?", re.MULTILINE
)
_WEB = frozenset(
    ("http", "https", "ws", "wss", "ftp", "git+http", "git+https", "mlflow-artifacts", "s3", "gs")
)
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:@\[\]]*)(?::\d*)?")

_PASSWORD = r"password|passwd|passphrase|pwd|secret|(?:access|account|api|private)[_\-]?key"
_WORD = r"[^=&;#?\s]{0,64}"  # bounded, as all that repeats: a text may be made to take for ever
_VIEW = r"viewStateShareKey=tfmon(?!\w)"  # which names the chart view, in links of ours
_QUERY = re.compile(
    rf"([?&;#](?!{_VIEW})(?:{_WORD}(?:{_PASSWORD}|token|key|auth|signature|credential){_WORD}|sig|code|jwt|pass)=)"
    rf"(?:(?!&){_CHARACTER})*",
    re.IGNORECASE | re.MULTILINE,
)
# Of other texts: `password: …`, `api_key=…`, `"token": "…"`, `--token …`; but people write of a token: and of a key=.
_NAME = rf"(?:{_PASSWORD}|sharedaccesssignature"
_NAMED = re.compile(
    rf"({_NAME}|token|credential)[\"']?\s*=\s*|{_NAME})\s*:\s+|[\"'][\w.\-]{{0,64}}{_NAME}|token|credential)[\"']\s*:\s*"
    rf"|(?<![\w\-])--?[\w\-]{{0,64}}{_NAME}|token)\s+)(?:\"[^\"]*\"|'[^']*'|(?!\*\*\*|[=:]){_CHARACTER}+)",
    re.IGNORECASE | re.MULTILINE,
)
_KINDS = r"(?:bearer|basic|digest|token|negotiate|apikey|aws4-hmac-sha256) +"
_HEADER = re.compile(
    rf"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:{_KINDS})?|\bbearer\s+){_CHARACTER}+",
    re.IGNORECASE | re.MULTILINE,
)
_BASIC = re.compile(r"(\bbasic\s+)([A-Za-z0-9+/_\-]{4,}={0,2})", re.IGNORECASE)
_AWS = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}")
# What the environment says that is secret, should some library quote it.
_ENVIRONMENT = (
    "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING", "PGPASSWORD", "MYSQL_PWD",
)  # fmt: skip
_SHORTEST = 12  # characters of one that is looked for: shorter ones are words

# C0 but line breaks and tabs, DEL, C1, what turns the direction of writing, further line breaks, halves of characters.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?):///(.*)$", re.DOTALL)

# What MLflow makes of what requests makes of what urllib3 says (MLflow 3.1 to 3.17).
_NO_ANSWER = re.compile(r"API request to (\w+://[^/\s]+)\S* failed with exception (.*)", re.DOTALL)
_CAUSE = re.compile(r".*\(Caused by \w+\((.*)\)\)", re.DOTALL)
_LONGEST = 20_000  # characters of an error that are looked at
_CONNECTION = re.compile(r"^[\"']?(?:(?:<[^>]*>|HTTPS?Connection(?:Pool)?\([^)]*\)):)?\s*[\"']?")


def without_secrets(text: str) -> str:
    """A text without the user names, passwords, tokens and keys that it names.

    Example:
        >>> without_secrets("https://ann:secret@example.org/mlflow")
        'https://example.org/mlflow'
        >>> without_secrets("Authorization: Bearer abc")
        'Authorization: ***'
    """
    text = _ADDRESS.sub(lambda found: apart(found[0])[0], text)
    text = _SPACED.sub(r"\1", text)
    for name in _ENVIRONMENT:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return _without_named(text)


def address(uri: str) -> str:
    """The address of a store, without secrets, absolute: as `absolute`, and as a whole, with white space in it."""
    return _without_named(apart(absolute(uri))[0])


def apart(uri: str) -> tuple[str, str]:
    """An address without its user name and password, and these.

    SQLAlchemy takes any password that has no `@`, and people write those that have one; of servers the user name ends
    with the first `/`, `?` or `#`, unless what comes before is no host and port.

    Example:
        >>> apart("postgresql://ann:s/ecret@db/mlflow")
        ('postgresql://db/mlflow', 'ann:s/ecret')
    """
    scheme, mark, rest = uri.partition("://")
    authority = _AUTHORITY.match(rest)[0]  # type: ignore[index]
    user, at, host = authority.rpartition("@")
    if not (at and ":" not in user.split("@")[0] and _HOST.fullmatch(host)):
        is_host = _HOST.fullmatch(authority) and (":" not in authority or scheme.lower() in _WEB)
        user, at, _ = ("", "", "") if is_host else rest.rpartition("@")
    return scheme + mark + rest[len(user) + len(at) :], user


def _without_named(text: str) -> str:
    text = _QUERY.sub(r"\1***", text)
    text = _HEADER.sub(r"\1***", text)
    text = _NAMED.sub(r"\1***", text)
    text = _BASIC.sub(lambda found: found[1] + "***" if _is_user(found[2]) else found[0], text)
    text = _AWS.sub("***", text)
    return text


def _is_user(encoded: str) -> bool:
    try:
        return b":" in base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False


def visible(text: str) -> str:
    r"""A text whose control characters are seen, and do nothing: what a terminal shows may come from anybody.

    Example:
        >>> visible("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def without_secrets_in(value: object) -> object:
    """JSON without a secret in any of its texts; names are left."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {name: without_secrets_in(one) for name, one in value.items()}
    return [without_secrets_in(one) for one in value] if isinstance(value, (list, tuple)) else value


def in_a_line(error: Exception) -> str:
    r"""What a store's error says, in one line without a secret: which server, and why, if that does not answer.

    Example:
        >>> in_a_line(OSError("no space left\\non the device"))
        'no space left on the device'
    """
    text = str(error)
    if len(text) > _LONGEST:  # a server's answer may be made to take for ever
        text = text[:_LONGEST].rpartition(" ")[0]
    found = _NO_ANSWER.match(text)
    if found:
        inner = _CAUSE.match(found[2])
        text = f"no answer from {found[1]}: {_CONNECTION.sub('', inner[1] if inner else found[2])}".rstrip(
            "\"'"
        )
    return " ".join(visible(without_secrets(text)).split())[:400] or type(error).__name__


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
