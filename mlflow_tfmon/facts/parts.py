"""Custom classes and functions in a model, as far as they matter for saving it with Keras."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow.tensorflow

from mlflow_tfmon import kerases
from mlflow_tfmon.noise import no_warnings

_one_at_a_time = threading.RLock()
# Where Keras looks for a function of which it keeps the name only.
_BUILTIN_FUNCTIONS = ("activations", "initializers", "losses", "metrics", "regularizers")
_KERAS = ("keras", "keras_hub", "tf_keras")


@dataclass(frozen=True)
class Parts:
    """Classes and functions that are not Keras's own.

    Attributes:
        known: registered names of those that Keras can find and make again when it loads the model.
        unknown: names of those that it cannot.
    """

    known: frozenset[str]
    unknown: frozenset[str]


def custom_parts(model: Any) -> tuple[Parts, Parts]:
    """What of a model is the user's own.

    Args:
        model: a Keras model.

    Returns:
        The parts of the model itself, and those of its compilation (loss, metrics, optimizer).

    Raises:
        Exception: the model has no configuration.
    """
    with no_warnings():  # of lambdas, which are unknown parts here
        config = kerases.of(model).saving.serialize_keras_object(model)
    compilation = config.pop("compile_config", None)
    return _parts(config, kerases.of(model)), _parts(compilation, kerases.of(model))


def _parts(config: Any, home: Any) -> Parts:
    found = set(_walk(config, home))
    unknown = frozenset(name for name, loadable in found if not loadable)
    return Parts(frozenset(name for name, _ in found) - unknown, unknown)


def _walk(config: Any, home: Any) -> Iterator[tuple[str, bool]]:
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _walk(part, home)
    elif isinstance(config, dict):
        if config.get("class_name") == "__lambda__":
            yield "lambda", False
        if {"class_name", "config", "module", "registered_name"} <= config.keys():
            yield from _part(config, home)
        for part in config.values():
            yield from _walk(part, home)


def _part(config: dict[str, Any], home: Any) -> Iterator[tuple[str, bool]]:
    """Names one serialized object and says whether it can be found and made again, if it is not Keras's own."""
    name, package = str(config["class_name"]), str(config["module"]).split(".")[0]
    function = name == "function"
    if function:
        name = str(config["config"])
    for registered_name in (config["registered_name"], name if function else None):
        found = home.saving.get_registered_object(registered_name)
        if found is not None:
            yield str(registered_name), function or _takes(found, config["config"])
            return
    own = package in _KERAS or name.startswith("__")  # "__tensor__" and the like
    if not own and not (package == "builtins" and _is_builtin(name, function, home)):
        yield name, False


def _is_builtin(name: str, function: bool, home: Any) -> bool:
    return not function or any(hasattr(getattr(home, group), name) for group in _BUILTIN_FUNCTIONS)


def _takes(cls: Any, config: Any) -> bool:
    """Whether a class's constructor takes its configuration (Keras's default one holds "trainable" and "dtype")."""
    own = not getattr(cls.from_config, "__module__", "keras").startswith(_KERAS)
    if own or not isinstance(config, dict) or "layers" in config:
        return True
    try:
        inspect.signature(cls).bind(**config)
    except TypeError:
        return False
    return True


@contextmanager
def registered_only(names: frozenset[str]) -> Iterator[None]:
    """Has MLflow find, on this thread, only these objects registered with Keras.

    MLflow pickles all of the process's registered objects into every model, and unpickles them before it loads it: a
    model could not be loaded where any of them, its own or not, cannot be imported. Keras's registry itself stays as it
    is, for the training may look into it on another thread (MLflow 3.1 to 3.17).
    """
    with _one_at_a_time:
        find, thread = mlflow.tensorflow.get_global_custom_objects, threading.get_ident()

        def found() -> Any:
            everything = find() or {}
            if threading.get_ident() != thread:
                return everything
            return {name: one for name, one in everything.items() if name in names}

        mlflow.tensorflow.get_global_custom_objects = found
        try:
            yield
        finally:
            mlflow.tensorflow.get_global_custom_objects = find


@contextmanager
def compilation_hidden(model: Any, hidden: bool) -> Iterator[None]:
    """Lets Keras save the model on this thread as if it had not been compiled, if `hidden`."""
    thread = threading.get_ident()

    def config() -> Any:
        return None if threading.get_ident() == thread else type(model).get_compile_config(model)

    attributes = vars(model)  # past Keras's own way of setting one, which is the training's
    if hidden:
        attributes["get_compile_config"] = config
    try:
        yield
    finally:
        if hidden:
            attributes.pop("get_compile_config", None)
