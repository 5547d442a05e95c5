"""Saving of a model in MLflow's format."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow.tensorflow
import numpy as np
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.facts import parts, specs
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.noise import hushed, no_warnings
from mlflow_tfmon.probes import graph
from mlflow_tfmon.probes.alone import alone
from mlflow_tfmon.random_state import same_random_numbers

_logger = logging.getLogger(__name__)
_REMEDY = (
    "To save the whole model, decorate it with @keras.saving.register_keras_serializable(), and give a class "
    "get_config() and a constructor that takes **kwargs."
)
_REMEDY_OF_KERAS = {
    name: f"To save the whole model, set the environment variable TF_USE_LEGACY_KERAS={value} before starting."
    for name, value in (("keras", 0), ("tf_keras", 1))
}


@alone()
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
    the model is saved without them. Nor does MLflow save a model of a Keras that is not `tf.keras`.

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
    common: dict[str, Any] = {
        "signature": (specs.signature(spec, model) if log_model_signatures else None) or False,
        "input_example": input_example(arguments) if log_input_examples else None,
    }
    home, remedy = kerases.of(model), _REMEDY
    try:
        if not isinstance(model, tf.keras.Model):
            remedy = _REMEDY_OF_KERAS[home.__name__]
            raise TypeError(f"tf.keras is not {home.__name__}, and MLflow supports no other Keras")
        own, compilation = parts.custom_parts(model)
        if not own.unknown:
            if compilation.unknown:
                reason = f"Keras cannot load {_listed(compilation.unknown)} again"
                _warn(model, f"without its compilation, since {reason}")
            used = own.known if compilation.unknown else own.known | compilation.known
            with (
                parts.registered_only(used),
                parts.compilation_hidden(model, bool(compilation.unknown)),
            ):
                _save(model, home, folder, used, keras_model_kwargs=keras_model_kwargs, **common)
            return True
        reason = f"Keras cannot load {_listed(own.unknown)} again"
    except Exception as error:
        _logger.debug("Keras could not save the model.", exc_info=True)
        reason = f"Keras cannot save it ({_brief(error)})"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        _save(
            _Inference(model, spec),
            home,
            folder,
            frozenset(),
            saved_model_kwargs=saved_model_kwargs,
            **common,
        )
        model.save_weights(str(folder / "model.weights.h5"))
    except Exception as error:
        _logger.debug("The model could not be saved as SavedModel.", exc_info=True)
        shutil.rmtree(folder, ignore_errors=True)
        _logger.warning(
            "The model %r (%s) is not logged: %s, and TensorFlow cannot save it either (%s). %s",
            model.name, type(model).__name__, reason, _brief(error), remedy,
        )  # fmt: skip
        return False
    _warn(model, f"as a SavedModel (for inference) with its weights beside it, since {reason}", remedy)
    return True


def input_example(arguments: FitArguments | None) -> Any:
    """The first rows of the training data, or None with a warning that says why there are none."""
    example = specs.input_example(arguments)
    if example is None:
        _logger.warning(
            "log_input_examples=True: no example was logged, since reading the training data would affect "
            "the training. Pass arrays, or an unshuffled tf.data pipeline of them, to get one."
        )
    return example


def save_form(
    folder: Path, home: Any, own: frozenset[str], signature: Any, example: Any, **options: Any
) -> None:
    """Saves all that MLflow wants around a model: what is in it is nobody's.

    Args:
        folder: where to; must not exist yet.
        home: the Keras that the model is of.
        own: registered names of the user's own parts of the model.
        signature: of the model, or None.
        example: of its input, or None.
        **options: `keras_model_kwargs`.

    Raises:
        TypeError: MLflow saves no model of that Keras.
    """
    with same_random_numbers():
        nobody = home.Sequential([home.Input((1,))])
    if not isinstance(nobody, tf.keras.Model):
        raise TypeError(f"tf.keras is not {home.__name__}, and MLflow supports no other Keras")
    with parts.registered_only(own):
        _save(nobody, home, folder, own, signature=signature or False, input_example=example, **options)


def pip_requirements(home: Any, *, pickled: bool) -> list[str]:
    """What a saved model needs, pinned to what is installed.

    MLflow would find out in a process of its own that loads the model, which takes 7 to 25 s.

    Args:
        home: the Keras that the model is of.
        pickled: whether the model comes with pickled classes.
    """
    requirements = list(mlflow.tensorflow.get_default_pip_requirements(include_cloudpickle=pickled))
    return [*requirements, f"{home.__name__}=={home.__version__}", f"numpy=={np.__version__}"]


class _Inference(tf.Module):
    """The model's inference as TensorFlow saves it: the variables and one function of the input."""

    def __init__(self, model: Any, spec: Any) -> None:
        super().__init__()
        if spec is None:
            raise ValueError("the shape and type of its input are not known")
        self._weights = [graph.raw(variable) for variable in model.variables]
        aside = getattr(kerases.of(model), "StatelessScope", contextlib.nullcontext)  # not in Keras 2

        def infer(x: Any) -> Any:
            # State that inference moves (random numbers) is kept aside.
            with aside():
                return model(x, training=False)

        self.__call__ = tf.function(infer, input_signature=[spec])


def _save(model: Any, home: Any, folder: Path, pickled: frozenset[str], **options: Any) -> None:
    requirements = pip_requirements(home, pickled=bool(pickled))
    with (
        same_random_numbers(),
        no_warnings(),
        hushed("mlflow.utils.environment", below=logging.ERROR),
    ):  # that pip is not there
        mlflow.tensorflow.save_model(model, path=str(folder), pip_requirements=requirements, **options)


def _warn(model: Any, how: str, remedy: str = _REMEDY) -> None:
    _logger.warning("The model %r (%s) is logged %s. %s", model.name, type(model).__name__, how, remedy)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
