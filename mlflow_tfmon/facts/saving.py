"""Saves a model in MLflow's format."""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow.tensorflow
import numpy as np
import tensorflow as tf

from mlflow_tfmon.facts import specs
from mlflow_tfmon.facts.arguments import FitArguments

_logger = logging.getLogger(__name__)
_REMEDY = (
    "To have all of it, decorate it with @keras.saving.register_keras_serializable(), and let a class have "
    "get_config() and a constructor that takes **kwargs."
)


def save_model(
    model: Any,
    folder: str | Path,
    arguments: FitArguments | None = None,
    *,
    log_input_examples: bool = False,
    log_model_signatures: bool = True,
    saved_model_kwargs: dict[str, Any] | None = None,
    keras_model_kwargs: dict[str, Any] | None = None,
) -> bool:
    """Saves a model into a folder that `mlflow.tensorflow.load_model` and `mlflow.pyfunc.load_model` can load.

    A model is saved in Keras's format. One that Keras could not load again, because a class of it is not registered
    or its constructor does not take its configuration, is saved as a SavedModel, which needs no code of the user's,
    with its weights beside it in `model.weights.h5`. Where only the loss, a metric or the optimizer cannot be loaded,
    the model is saved without them.

    Args:
        model: a built Keras model.
        folder: where to save it; must not exist yet.
        arguments: the call of fit, whose data tell the inputs' shapes and types; None for a training without fit.
        log_input_examples: whether to keep the first rows (5 at most) of the training data with the model.
        log_model_signatures: whether to write down the shapes and types of inputs and outputs.
        saved_model_kwargs: for `tf.saved_model.save`, where that is used.
        keras_model_kwargs: for `model.save`.

    Returns:
        Whether the folder now holds a model. What is lost is said in one warning.

    Example:
        >>> save_model(model, recording / "models" / "best", arguments)
        True
    """
    folder = Path(folder)
    spec = specs.input_spec(arguments, model)
    example = specs.input_example(arguments) if log_input_examples else None
    if log_input_examples and example is None:
        _logger.warning(
            "log_input_examples=True: no example was kept, since the training data cannot be read without an effect on "
            "the training. Pass arrays, or a tf.data pipeline of them that does not shuffle, to have one."
        )
    common: dict[str, Any] = {
        "signature": (specs.signature(spec, model) if log_model_signatures else None) or False,
        "input_example": example,
        "pip_requirements": pip_requirements(),
    }
    try:
        lost, compile_lost = unknown_to_keras(model)
        if not lost:
            if compile_lost:
                _warn(
                    model, f"without its compilation, since Keras cannot load {compile_lost} again", _REMEDY
                )
            with _hidden_compilation(model, hide=bool(compile_lost)):
                _save(model, folder, keras_model_kwargs=keras_model_kwargs, **common)
            return True
        reason = f"Keras cannot load {lost} again"
    except Exception as error:
        _logger.debug("Keras could not save the model.", exc_info=True)
        reason = f"Keras cannot save it ({_brief(error)})"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        _save(_Inference(model, spec), folder, saved_model_kwargs=saved_model_kwargs, **common)
        model.save_weights(str(folder / "model.weights.h5"))
    except Exception as error:
        _logger.debug("The model could not be saved as SavedModel.", exc_info=True)
        shutil.rmtree(folder, ignore_errors=True)
        _logger.warning(
            "The model %r (%s) is not logged: %s, and TensorFlow cannot save it either (%s). %s",
            model.name, type(model).__name__, reason, _brief(error), _REMEDY,
        )  # fmt: skip
        return False
    _warn(model, f"as a SavedModel (for inference) with its weights beside it, since {reason}")
    return True


def pip_requirements() -> list[str]:
    """What a saved model needs, pinned to what is installed.

    MLflow would find out in a process of its own that loads the model, which takes 7 to 25 s.
    """
    pickled = bool(keras.saving.get_custom_objects())
    requirements = list(mlflow.tensorflow.get_default_pip_requirements(include_cloudpickle=pickled))
    return [*requirements, f"keras=={keras.__version__}", f"numpy=={np.__version__}"]


def custom_parts(model: Any) -> tuple[dict[str, bool], dict[str, bool]]:
    """The classes and functions of a model that are not Keras's own.

    Args:
        model: a Keras model.

    Returns:
        Those of the model itself, and those of its compilation (loss, metrics, optimizer): for each, by the name under
        which it is registered or else its own, whether Keras could find and make it again when it loads the model.

    Raises:
        Exception: the model has no configuration.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lambdas, which are named here
        config = keras.saving.serialize_keras_object(model)
    compilation = config.pop("compile_config", None)
    return dict(_walk(config)), dict(_walk(compilation))


def _walk(config: Any) -> Iterator[tuple[str, bool]]:
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _walk(part)
    elif isinstance(config, dict):
        if config.get("class_name") == "__lambda__":
            yield "lambda", False
        if {"class_name", "config", "module", "registered_name"} <= config.keys():
            yield from _part(config)
        for part in config.values():
            yield from _walk(part)


def _part(config: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """One serialized object: itself, if it is not Keras's own."""
    name, package = str(config["class_name"]), str(config["module"]).split(".")[0]
    function = name == "function"
    if function:
        name = str(config["config"])
    for registered_name in (config["registered_name"], name if function else None):
        found = keras.saving.get_registered_object(registered_name)
        if found is not None:
            yield registered_name, function or _takes(found, config["config"])
            return
    own = package in ("keras", "keras_hub") or name.startswith("__")  # "__tensor__" and the like
    if not own and not (package == "builtins" and _is_builtin(name, function)):
        yield name, False


def _is_builtin(name: str, function: bool) -> bool:
    return not function or any(hasattr(group, name) for group in _BUILTIN_FUNCTIONS)


# Where Keras looks for a function of which it keeps the name only.
_BUILTIN_FUNCTIONS = (keras.activations, keras.initializers, keras.losses, keras.metrics, keras.regularizers)


def _takes(cls: Any, config: Any) -> bool:
    """Whether a class's constructor takes its configuration (Keras's default one holds "trainable" and "dtype")."""
    own = not getattr(cls.from_config, "__module__", "keras").startswith("keras")
    if own or not isinstance(config, dict) or "layers" in config:
        return True
    try:
        inspect.signature(cls).bind(**config)
    except TypeError:
        return False
    return True


def _names(parts: dict[str, bool], *, kept: bool) -> set[str]:
    return {name for name, found in parts.items() if found is kept}


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


@contextmanager
def _registered(names: set[str]) -> Iterator[None]:
    """Leaves only these objects registered with Keras.

    MLflow pickles all of the process's registered objects into every model, and unpickles them before it loads it: a
    model could not be loaded where any of them, its own or not, cannot be imported.
    """
    registry = keras.saving.get_custom_objects()
    everything = dict(registry)
    for name in everything.keys() - names:
        del registry[name]
    try:
        yield
    finally:
        registry.update(everything)


@contextmanager
def _hidden_compilation(model: Any, hide: bool) -> Iterator[None]:
    """Lets Keras save the model as if it had not been compiled."""
    if not hide:
        yield
        return
    model.compiled = False
    try:
        yield
    finally:
        model.compiled = True


class _Inference(tf.Module):
    """The model's inference as TensorFlow saves it: the variables and one function of the input."""

    def __init__(self, model: Any, spec: Any) -> None:
        super().__init__()
        if spec is None:
            raise ValueError("the shape and type of its input are not known")
        self._weights = [getattr(variable, "value", variable) for variable in model.variables]

        def infer(x: Any) -> Any:
            # State that inference moves (random numbers) is kept aside.
            with keras.StatelessScope():
                return model(x, training=False)

        self.__call__ = tf.function(infer, input_signature=[spec])


def _save(model: Any, folder: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.tensorflow.save_model(model, path=str(folder), **options)


def _warn(model: Any, how: str) -> None:
    _logger.warning("The model %r (%s) is logged %s. %s", model.name, type(model).__name__, how, _REMEDY)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
