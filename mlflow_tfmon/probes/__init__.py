"""What is traced into the user's graph, and with it nearly all that touches TensorFlow's and Keras's internals.

`install` puts the probes into Keras, TensorFlow's tape and its dataset iterator; `remove` takes them out again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import batches
from mlflow_tfmon.probes.step import all_rings, names, rings_of
from mlflow_tfmon.stream.ring import Ring

__all__ = ["all_rings", "also", "install", "names", "remove", "rings_of"]

_originals: list[tuple[Any, str, Any]] = []
_users: list[object] = []


def install(user: object, on_ring: Callable[[Ring, Any], None]) -> None:
    """Puts the probes in; what is traced from now on is watched.

    Args:
        user: who wants them in; they stay until each user has called `remove`.
        on_ring: told of each new ring and its optimizer, on the thread that trains.
    """
    _users.append(user)
    if _originals:
        return
    import tensorflow as tf
    from keras.optimizers import LossScaleOptimizer
    from keras.src.backend.tensorflow.optimizer import TFOptimizer
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
    from keras.src.layers.layer import Layer
    from keras.src.optimizers.base_optimizer import BaseOptimizer
    from keras.src.trainers.compile_utils import CompileLoss
    from keras.src.trainers.trainer import Trainer
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator
    from tensorflow.python.distribute.input_lib import DistributedIteratorBase
    from tensorflow.python.distribute.mirrored_run import _MirroredReplicaThread
    from tensorflow.python.framework.auto_control_deps import AutomaticControlDependencies

    from mlflow_tfmon import kerases
    from mlflow_tfmon.probes import compiled, inputs, keras2, losses, optimizer, replicas, tape

    watch_gradients = functools.partial(optimizer.watch_gradients, on_ring=on_ring)
    watch_scaled = functools.partial(optimizer.watch_scaled, on_ring=on_ring)
    parts = "what the loss is made of is not recorded"
    for owner, name, wrap, loss in (
        (BaseOptimizer, "apply", optimizer.watch_apply, "no step is recorded"),
        (BaseOptimizer, "_backend_apply_gradients", watch_gradients, "no step is recorded"),
        (LossScaleOptimizer, "_common_apply", watch_scaled, "no step with loss scaling is recorded"),
        (
            LossScaleOptimizer,
            "_tf_apply",
            optimizer.watch_left_out,
            "losses on several replicas may be wrong",
        ),
        (TFOptimizer, "_backend_update_step", optimizer.watch_update, "clipped gradients are not recorded"),
        (
            TFOptimizer,
            "_all_reduce_sum_gradients",
            optimizer.watch_reduction,
            "clipped gradients are not recorded",
        ),
        (
            _MirroredReplicaThread,
            "__init__",
            replicas.watch_thread,
            "steps on several replicas may be nobody's",
        ),
        (BaseOptimizer, "scale_loss", tape.watch_scaling, "the loss of each step is the scaled one"),
        (LossScaleOptimizer, "scale_loss", tape.watch_scaling, "the loss of each step is the scaled one"),
        (tf.GradientTape, "gradient", tape.watch_gradient, "the loss of each step is not recorded"),
        (
            AutomaticControlDependencies,
            "__exit__",
            tape.watch_end,
            "the loss of each step may not be recorded",
        ),
        (TensorFlowTrainer, "make_train_function", compiled.watch_making, "no step may be recorded"),
        (Trainer, "_compute_loss", losses.watch_total, parts),
        (Trainer, "compute_loss", losses.watch_sum, parts),
        (CompileLoss, "build", losses.watch_build, parts),
        (CompileLoss, "call", losses.watch_compiled, parts),
        (Layer, "_get_own_losses", losses.watch_additional, parts),
        (Layer, "_get_regularization_losses", losses.watch_additional, parts),
        (OwnedIterator, "_next_internal", inputs.watch_next, "the wait for input is not recorded"),
        (DistributedIteratorBase, "get_next", inputs.watch_next, "the wait for input is not recorded"),
    ):
        also(owner, name, wrap, loss)

    def into_keras_2(_: Any) -> None:
        if _users:
            say_once(
                "Keras 2",
                "mlflow_tfmon: trainings with Keras 2 (tf_keras) are watched, too; not recorded of them: what a loss "
                "is made of (batch/<output>_loss, batch/regularization_loss), batch/loss_scale and batch/skipped.",
                logging.INFO,
            )
            for owner, name, wrap, loss in keras2.methods(on_ring):
                also(owner, name, wrap, loss)

    kerases.when_keras_2(into_keras_2)


def also(owner: Any, name: str, wrap: Callable[[Any], Any], loss: str) -> None:
    """Wraps one more method for as long as the probes are in.

    Args:
        owner: class that has the method.
        name: the method's name.
        wrap: makes the wrapper, given the original.
        loss: what is no longer watched if that fails, as a clause.
    """
    if any((owner, name) == (known, method) for known, method, _ in _originals):
        return
    with contained(f"putting a probe into {owner.__name__}.{name}", loss):
        original = getattr(owner, name)
        wrapped = functools.wraps(original)(wrap(original))
        # As if it were TensorFlow's own: autograph must neither convert it nor change its state (TF 2.16 to 2.21).
        wrapped.autograph_info__ = {}  # type: ignore[attr-defined]
        _originals.append((owner, name, original))
        setattr(owner, name, wrapped)


def remove(user: object) -> None:
    """Takes the probes out if nobody else wants them in; functions traced with them go on writing, unheard."""
    _users[:] = [other for other in _users if other is not user]
    while _originals and not _users:
        owner, name, original = _originals.pop()
        setattr(owner, name, original)
    if not _users:
        batches.forget()
