"""Ownership of credentials: each is sent only to the store that it was configured for.

MLflow sends what MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and the like say to whatever server it is told to
call. A recording names its server, without credentials; those of whoever delivers it may be for another.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any
from urllib.parse import urlsplit

from mlflow_tfmon.uris import address, apart

_DATABASES = ("postgresql", "mysql", "mssql", "oracle")
_OF_DATABASES = ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "MYSQL_PWD")
_OWN = ("databricks", "databricks-uc", "uc")  # the address names the profile that has address and credential
_PORTS = {"http": 80, "https": 443}
_FIRST = "0"  # the experiment that a store is made with
_FIELDS = ("username", "password", "token", "aws_sigv4", "auth", "client_cert_path")


class WithheldError(ValueError):
    """A store is not called, since it would get credentials for another; the message names the remedy."""


def addresses(store: str, registry: str, given: str | None = None) -> tuple[str | None, str | None]:
    """The addresses, with their credentials, under which the store and the registry of a recording are called.

    Args:
        store: tracking URI that the recording names, without credentials.
        registry: the same for the registry; "" if it is the same.
        given: tracking URI that the user has given for it, or None.

    Returns:
        Of each None if it is called as the recording says.

    Raises:
        WithheldError: one of them is not the user's, and there are credentials that it would get.
    """
    import mlflow

    tracking_uri = given or _configured(store, mlflow.get_tracking_uri(), "MLFLOW_TRACKING_URI")
    if registry in ("", store):
        return tracking_uri, tracking_uri
    return tracking_uri, _configured(registry, mlflow.get_registry_uri(), "MLFLOW_REGISTRY_URI")


def check_artifacts(client: Any, uri: str) -> None:
    """Checks that what is read of a run or a model is not read from a server that credentials are not for.

    MLflow (3.1 to 3.17) sends those of the tracking server to whatever server an experiment, which anybody may have
    made, names for its artifacts. It may be the tracking server itself, or the one whose address the tracking server
    has given its first experiment: that is configured by whoever runs it.

    Args:
        client: of the store.
        uri: of the artifacts.

    Raises:
        WithheldError: it is another server, and there are credentials that it would get.
    """
    tracking = urlsplit(apart(client.tracking_uri)[0])

    def server(of: str) -> str | None:
        """How it is called; None if it is none, or the tracking server itself."""
        parts = urlsplit(apart(of)[0])
        scheme = tracking.scheme if parts.scheme == "mlflow-artifacts" else parts.scheme
        if scheme not in _PORTS or not parts.hostname:
            return None
        return f"{scheme}://{parts.hostname}:{parts.port or _PORTS[scheme]}"

    there = server(uri)
    if there is None or there == server(client.tracking_uri):
        return
    found = _sent_to(there)
    if not found:
        return
    with contextlib.suppress(Exception):  # it may not be this user's to see
        if server(client.get_experiment(_FIRST).artifact_location) == there:
            return
    raise WithheldError(
        f"its files are on {there}, but the credentials that are set ({found}) are for "
        f"{address(client.tracking_uri)}: they are not sent to another server; ask the owner of the experiment, or "
        "unset them"
    )


def same(one: str, other: str) -> bool:
    """Whether two addresses are of one store, whatever credentials they have.

    Example:
        >>> same("https://ann:pw@Example.org/", "https://example.org")
        True
    """
    return _plain(one) == _plain(other)


def _configured(uri: str, mine: str, setting: str) -> str | None:
    if same(uri, mine):
        return mine
    found = _sent_to(uri)
    if found:
        shown = address(uri)
        raise WithheldError(
            f"it belongs to {shown}, but {setting} is {address(mine)}: the credentials that are set ({found}) are "
            f"not sent to another store; if they are for this one, set {setting}={shown}"
            + (", or pass --tracking-uri" if setting == "MLFLOW_TRACKING_URI" else "")
        )
    return None


def _plain(uri: str) -> str:
    uri = address(uri).rstrip("/")
    scheme, mark, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}{mark}{host.lower()}{slash}{path}" if mark else uri


def _sent_to(uri: str) -> str:
    """Which credentials would be sent to a store that does not have them in its address; "" if none."""
    scheme = urlsplit(uri).scheme.split("+")[0].lower()
    if scheme in ("", "file", "sqlite", *_OWN):
        return ""
    if scheme in _DATABASES:
        return ", ".join(name for name in _OF_DATABASES if os.environ.get(name))
    if scheme not in ("http", "https"):
        return f"those of {scheme}"  # of a plugin: whatever it takes
    from mlflow.utils.credentials import get_default_host_creds

    found = get_default_host_creds(uri)  # the environment's, and those of MLflow's own file
    return ", ".join(name for name in _FIELDS if getattr(found, name, None))
