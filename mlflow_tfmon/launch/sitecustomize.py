"""Startup hook that monitors an unchanged script as soon as it has imported Keras.

Python imports a module of this name at its start, before the script. `mlflow-tfmon run` puts this one's folder on
PYTHONPATH and becomes `python SCRIPT`: so arguments, `__main__`, tracebacks, signals and the exit status are Python's
own. Only the standard library is imported until Keras is there.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

_KERASES = {"keras", "tf_keras"}
_IMPORTS = _KERASES | {"tensorflow"}  # which imports Keras in the middle of its own import (2.16 to 2.21)


def step_aside() -> None:
    """Undoes what brought this module here, for the script and what it starts; runs the user's own sitecustomize."""
    here = os.path.dirname(os.path.abspath(__file__))
    rest = os.environ.pop("PYTHONPATH", "").removeprefix(here).removeprefix(os.pathsep)
    if rest:
        os.environ["PYTHONPATH"] = rest
    sys.path[:] = [folder for folder in sys.path if folder != here]
    spec = importlib.machinery.PathFinder.find_spec(__name__)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


class KerasFinder:
    """Begins to watch when a Keras has been imported, and TensorFlow with it."""

    def __init__(self) -> None:
        self._loading: set[str] = set()
        self._loaded: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds a module as the other finders do; when it has been loaded, this one is told."""
        if name not in _IMPORTS:
            return None
        found = (one.find_spec(name, path, target) for one in sys.meta_path if one is not self)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            self._tell(name, spec.loader)
        return spec

    def _tell(self, name: str, loader: object) -> None:
        execute = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # type: ignore[attr-defined]
            self._loading.add(name)
            try:
                execute(module)
                self._loaded.add(name)
            finally:
                self._loading.discard(name)
            if not self._loading and self._loaded & _KERASES and _trains_with_tensorflow(self._loaded):
                sys.meta_path[:] = [one for one in sys.meta_path if one is not self]
                _begin()

        loader.exec_module = exec_module  # type: ignore[attr-defined]


def _trains_with_tensorflow(loaded: set[str]) -> bool:
    return "tf_keras" in loaded or sys.modules["keras"].backend.backend() == "tensorflow"


def _begin() -> None:
    import mlflow_tfmon
    from mlflow_tfmon.errors import contained

    with contained("monitoring the script", "its trainings are not recorded"):
        mlflow_tfmon.autolog()


if __name__ == "sitecustomize":
    step_aside()
    sys.meta_path.insert(0, KerasFinder())
