"""Versions of TensorFlow, Keras and MLflow that this package is tested with."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import mlflow
import tensorflow as tf
from packaging.version import InvalidVersion, Version

OLDEST = {"tensorflow": "2.16.1", "keras": "3.7.0", "mlflow": "3.1.3"}
NEWEST = {"tensorflow": "2.21", "keras": "3.15", "mlflow": "3.17"}  # with their later patches


def installed() -> dict[str, str]:
    return {"tensorflow": tf.__version__, "keras": keras.__version__, "mlflow": mlflow.__version__}


def older(versions: Mapping[str, str]) -> list[str]:
    """Those of some versions by name that are older than supported, as "name version"."""
    return [
        f"{name} {found}"
        for name, found in versions.items()
        if (version := _parsed(found)) is not None and version < Version(OLDEST[name])
    ]


def untested(versions: Mapping[str, str]) -> list[str]:
    """Those that are older, newer than what was tested, or no releases."""
    newer = [
        f"{name} {found}"
        for name, found in versions.items()
        if (version := _parsed(found)) is None
        or version.release[:2] > Version(NEWEST[name]).release
        or version.is_prerelease
    ]
    return list(dict.fromkeys(older(versions) + newer))


def _parsed(version: str) -> Version | None:
    """None for what is no version as PEP 440 has it, such as that of a build of one's own."""
    try:
        return Version(version)
    except InvalidVersion:
        return None
