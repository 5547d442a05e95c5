"""Differences under a `tf.distribute` strategy: the replica that writes the row, and where its variables are.

Keras clips the gradients of each replica, then sums them over all replicas and applies the sum (Keras 3.7 to 3.15).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import say_once

_KINDS = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
_USER = "_mlflow_tfmon_user"


def count() -> int:
    """Over how many replicas, on all workers, gradients are summed."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def index() -> int:
    """Number of the replica that is being traced among those of this process; 0 outside of replicas."""
    return int(getattr(threading.current_thread(), "replica_id", 0))  # of TensorFlow's thread (2.16 to 2.21)


def writes() -> bool:
    """Whether what is being traced is to write the step's row: the last replica of the process, or no replica at all.

    The last, since replicas are traced in turn: by then, the losses of all have been noted.
    """
    return tf.distribute.get_replica_context() is None or index() == _here() - 1


def _here() -> int:
    """How many replicas this process has."""
    return len(tf.distribute.get_strategy().extended.worker_devices) if count() > 1 else 1


def workers() -> int:
    """Over how many workers gradients are summed."""
    return count() // _here()


def supported() -> bool:
    """Whether the strategy is one that can be watched; says once if it is not."""
    strategy = tf.distribute.get_strategy()
    if count() == 1 or isinstance(strategy, _KINDS):
        return True
    name = type(strategy).__name__
    say_once(f"strategy {name}", f"mlflow_tfmon: a training under {name} is not watched step by step.")
    return False


def local(variable: tf.Variable) -> tf.Variable:
    """The copy of a variable that the writing replica has; all copies are equal."""
    component: tf.Variable = tf.distribute.get_strategy().experimental_local_results(variable)[-1]
    return component


def at(variable: tf.Variable) -> contextlib.AbstractContextManager[Any]:
    """For ops on a variable that may be on another replica's device."""
    return tf.device(variable.device) if count() > 1 else contextlib.nullcontext()


def rows(element: Any) -> list[tf.Tensor]:
    """The first tensor of a batch, for each replica of this process; [] if it has no rows that can be counted."""
    first = element
    while isinstance(first, (tuple, list, dict)) and first:
        first = next(iter(first.values() if isinstance(first, dict) else first))
    parts: Sequence[Any] = first.values if isinstance(first, tf.distribute.DistributedValues) else [first]
    known = []
    for part in parts:
        if tf.is_tensor(part) and part.shape.rank:
            known.append(part)
    return known


def user_thread() -> int:
    """The thread that called `strategy.run` (each replica is traced in one of its own), or this one."""
    return int(getattr(threading.current_thread(), _USER, threading.get_ident()))


def watch_thread(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps the making of a replica's thread: it remembers who made it."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        setattr(self, _USER, user_thread())

    return __init__
