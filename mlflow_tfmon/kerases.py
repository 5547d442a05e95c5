"""The Kerases of a process: Keras 3, and beside it Keras 2 (`tf_keras`) where the user has imported that.

`TF_USE_LEGACY_KERAS=1` makes `tf.keras` be Keras 2, while `import keras` is still Keras 3: a process may train with
both. Keras 2 is never imported for the user.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import keras
from mlflow.utils.import_hooks import register_post_import_hook

from mlflow_tfmon.errors import contained

_KERAS_2 = "tf_keras"
_waiting: list[Callable[[Any], None]] = []


def imported() -> list[Any]:
    """The modules of the Kerases that are imported."""
    return [keras, *(module for name, module in sys.modules.items() if name == _KERAS_2)]


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
    if tell not in _waiting:
        _waiting.append(tell)
    register_post_import_hook(_keras_2_is_imported, _KERAS_2)  # which calls at once what is imported already


def _keras_2_is_imported(module: Any) -> None:
    while _waiting:
        with contained("watching Keras 2", "trainings with it are not recorded"):
            _waiting.pop(0)(module)
