"""The ops traced into the user's graph, and nearly everything that touches TensorFlow's and Keras's internals.

`install` puts the probes into Keras, TensorFlow's tape and its dataset iterator; `remove` takes them out again. What is
patched is listed in `probes.hooks`, a table a library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import batches, hooks
from mlflow_tfmon.probes.step import all_rings, names, rings_of
from mlflow_tfmon.stream.ring import Ring

__all__ = ["all_rings", "install", "names", "remove", "rings_of"]

_users: list[object] = []


def install(user: object, on_ring: Callable[[Ring, Any], None]) -> None:
    """Puts the probes in; what is traced from now on is watched.

    Args:
        user: who wants them in; they stay until each user has called `remove`.
        on_ring: told of each new ring and its optimizer, on the thread that trains.
    """
    _users.append(user)
    if len(_users) > 1:
        return
    from mlflow_tfmon import kerases
    from mlflow_tfmon.probes.hooks import keras2, keras3, tensorflow

    hooks.put_in(keras3.hooks(on_ring))
    hooks.put_in(tensorflow.HOOKS)

    def into_keras_2(_: Any) -> None:
        if _users:
            say_once(
                "Keras 2",
                "mlflow_tfmon: trainings with Keras 2 (tf_keras) are watched, too; not recorded of them: what a loss "
                "is made of (batch/<output>_loss, batch/regularization_loss), batch/loss_scale and batch/skipped.",
                logging.INFO,
            )
            hooks.put_in(keras2.hooks(on_ring))

    with contained("waiting for Keras 2", "trainings with it are not recorded"):
        kerases.when_keras_2(into_keras_2)


def remove(user: object) -> None:
    """Takes the probes out if nobody else wants them in; functions traced with them go on writing, unheard."""
    _users[:] = [other for other in _users if other is not user]
    if not _users:
        hooks.take_out()
        batches.forget()
