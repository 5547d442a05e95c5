"""Whose a credential is: it goes only to the store that it was configured for.

MLflow sends what MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and the like say to whatever server it is told to
call. A recording names its server, without credentials; those of whoever delivers it may be for another.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from mlflow_tfmon.uris import address

_DATABASES = ("postgresql", "mysql", "mssql", "oracle")
_OF_DATABASES = ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "MYSQL_PWD")
_OWN = ("databricks", "databricks-uc", "uc")  # the address names the profile that has address and credential
_FIELDS = ("username", "password", "token", "aws_sigv4", "auth", "client_cert_path")


class WithheldError(Exception):
    """A store is not called, since credentials would go there that are configured for another; says the remedy."""


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
            f"it is of {shown}, and {setting} is {address(mine)}: the credentials that are set ({found}) are "
            f"not sent to another store; if they are for this one, set {setting}={shown}"
            + (", or give --tracking-uri" if setting == "MLFLOW_TRACKING_URI" else "")
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
