"""Reads by one process of several, without a collective operation that the others would have to join.

Under a strategy a variable whose replicas differ until it is read (the state of metrics; of Keras 2 also the averages
of batch normalization) is summed over all processes by reading it, and a new variable is sent from the chief to all
others. Where the others do not do the same at the same place, that ends the training.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from mlflow_tfmon.internals import internal

_here = threading.local()
_lock = threading.Lock()
_inside = 0  # threads that are within `alone`
# Through which all reads of such a variable go, those of a SavedModel too (TF 2.16 to 2.21).
_CLASS, _READ = "tensorflow.python.distribute.values.SyncOnReadVariable", "_get_cross_replica"
_CREATOR = "tensorflow.python.ops.resource_variable_ops.default_variable_creator_v2"
_WAITS = "where several processes train, what one of them reads or makes by itself may wait for the others"
_original: Callable[[Any], Any] | None = None  # while `_read` is in its place


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Has this thread, and no other, read what this process's replicas hold, and make variables that are its own.

    A sum or a mean over replicas is then that over the replicas of this process.
    """
    global _inside, _original
    with _lock:
        if not _inside:
            _original = internal(f"{_CLASS}.{_READ}", None, _WAITS)
            _put(_read)
        _inside += 1
    before, _here.alone = getattr(_here, "alone", False), True
    try:
        with (
            tf.variable_creator_scope(_made_here)
            if tf.distribute.has_strategy()
            else contextlib.nullcontext()
        ):
            yield
    finally:
        _here.alone = before
        with _lock:
            _inside -= 1
            if not _inside:
                _put(_original)


def _put(read: Callable[[Any], Any] | None) -> None:
    if _original is not None:
        setattr(internal(_CLASS, None, _WAITS), _READ, read)


def _read(variable: Any) -> Any:
    if not getattr(_here, "alone", False):
        return _original(variable)  # type: ignore[misc]
    parts = [part.read_value() for part in variable.values]
    if variable.aggregation == tf.VariableAggregation.SUM:
        return tf.add_n(parts)
    if variable.aggregation == tf.VariableAggregation.MEAN:
        return tf.add_n(parts) / tf.cast(len(parts), parts[0].dtype)
    return parts[0]


def _made_here(creator: Callable[..., Any], **options: Any) -> Any:
    create = internal(_CREATOR, None, _WAITS)
    return creator(**options) if create is None else create(None, **options)
