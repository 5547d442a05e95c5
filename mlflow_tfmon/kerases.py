"""The Keras versions of a process: Keras 3, and also Keras 2 (`tf_keras`) if the user has imported it.

`TF_USE_LEGACY_KERAS=1` makes `tf.keras` be Keras 2, while `import keras` is still Keras 3: a process may train with
both. Keras 2 is never imported for the user.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import keras

from mlflow_tfmon.errors import contained
from mlflow_tfmon.internals import internal

_KERAS_2 = "tf_keras"
# By name, so that what is asked for again takes the place of what was.
_waiting: dict[str, Callable[[Any], None]] = {}


def imported() -> list[Any]:
    """The modules of the Kerases that are imported."""
    keras_2 = sys.modules.get(_KERAS_2)
    return [keras] if keras_2 is None else [keras, keras_2]


def of(model: Any) -> Any:
    """The Keras (its module) that a model belongs to."""
    return next((module for module in imported() if isinstance(model, module.Model)), keras)


def every(name: str) -> tuple[Any, ...]:
    """A public class or module in each Keras, for `isinstance` and the like.

    Example:
        >>> isinstance(callback, kerases.every("callbacks.EarlyStopping"))
        True
    """
    return tuple(operator.attrgetter(name)(module) for module in imported())


def when_keras_2(tell: Callable[[Any], None]) -> None:
    """Has a function called with Keras 2's module: now if it is imported, else as soon as it is."""
    _waiting[tell.__qualname__] = tell
    tell_of_import = internal(
        "mlflow.utils.import_hooks.register_post_import_hook",  # which calls at once what is imported already
        _if_imported,
        "trainings with Keras 2 (tf_keras) are recorded only if it is imported before autolog() is called",
    )
    tell_of_import(_keras_2_is_imported, _KERAS_2)


def _if_imported(tell: Callable[[Any], None], name: str) -> None:
    if name in sys.modules:
        tell(sys.modules[name])


def _keras_2_is_imported(module: Any) -> None:
    while _waiting:
        with contained("watching Keras 2", "trainings with it are not recorded"):
            _waiting.popitem()[1](module)
