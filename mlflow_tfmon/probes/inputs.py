"""The input probe: how long each step waited for its batch, and how many examples the batch holds."""

from __future__ import annotations

import array
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import batches, compiled, graph, replicas
from mlflow_tfmon.stream.ring import lasting_variable

_PART, _NOT_RECORDED = "the input probe", "the time spent waiting for input is not recorded"

_HOST = "CPU:0"  # which tells the time, and takes the batches
_KEPT = 16384  # batches, of which the drain is never that far behind


class _Taken:
    """The last batches that a thread's eager code took from datasets: Unix time, seconds waited, examples of each."""

    def __init__(self) -> None:
        self.values = array.array("d")
        self.dropped = 0  # batches before those
        self.used = 0.0  # Unix time until which steps are known to have used them


_taken: dict[int, _Taken] = {}  # by thread

_within = threading.local()  # what takes from other iterators is one taking


def watch_next(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `OwnedIterator._next_internal`, by which eager code and Keras's train function take the next batch.

    And `DistributedIteratorBase.get_next`, which takes the batches of all replicas from such iterators.
    """

    def _next_internal(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_within, "on", False):
            return original(self, *args, **kwargs)
        _within.on = True
        try:
            function = graph.tracing()
            if function is not None:
                return _traced(function, functools.partial(original, self, *args, **kwargs))
            if tf.executing_eagerly():
                return _take(original, self, *args, **kwargs)
            return original(self, *args, **kwargs)
        finally:
            _within.on = False

    return _next_internal


def _traced(function: Any, take: Callable[[], Any]) -> Any:
    start = None
    # After what the function did before, such as the step before, if it is here.
    with contained(_PART, _NOT_RECORDED):
        if graph.has_clock():
            with tf.device(_HOST), graph.after(graph.effects(function)):
                start = tf.timestamp()
    with tf.control_dependencies([] if start is None else [start]):
        element = take()
    with contained(_PART, _NOT_RECORDED):
        if start is None:
            batches.hold(function, element, None)
        else:
            now, reading = _reading(start, element)
            batches.hold(function, element, now)  # as it was given: on the host
            written = _clock(function).written.assign(reading)
            with graph.after(written):  # what is computed from the batch comes after
                element = tf.nest.map_structure(_same, element, expand_composites=True)
    return element


def _same(tensor: tf.Tensor) -> tf.Tensor:
    with tf.device(tensor.device):  # a batch for several replicas is on several
        return tf.identity(tensor)


def _take(original: Callable[..., Any], iterator: Any, *args: Any, **kwargs: Any) -> Any:
    start = time.perf_counter()
    element = original(iterator, *args, **kwargs)
    waited = time.perf_counter() - start
    with contained(_PART, _NOT_RECORDED):
        now = time.time()
        batches.took(element, now, iterator)
        thread = threading.get_ident()
        taken = _taken.get(thread)
        if taken is None:
            taken = _taken[thread] = _Taken()
        elif len(taken.values) >= 3 * 2 * _KEPT:
            fewer = _Taken()  # put in its place as a whole: another thread reads it
            fewer.values, fewer.dropped = taken.values[3 * _KEPT :], taken.dropped + _KEPT
            fewer.used = taken.used
            taken = _taken[thread] = fewer
        examples = 0.0
        for part in replicas.rows(element):
            examples += part.shape[0]
        taken.values.extend((now, waited, examples or float("nan")))
    return element


def forget() -> None:
    """What this thread's eager code has taken so far is of no step that is to come: a fit takes its own batches."""
    thread = threading.get_ident()
    taken = _taken.get(thread)
    if taken is not None:
        none = _Taken()  # put in its place as a whole: another thread reads it
        none.dropped, none.used = taken.dropped + len(taken.values) // 3, taken.used
        _taken[thread] = none


class Batches:
    """Reads what a thread's eager code takes from datasets: each reader gets all that no step has used before.

    Args:
        thread: the thread's id.
    """

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._read = 0
        taken = _taken.get(thread)
        if taken is not None:
            self.until(taken.used)

    def until(self, end: float) -> np.ndarray:
        """The batches taken until a Unix time that were not read yet: rows of time, seconds waited, examples."""
        taken = _taken.get(self._thread)
        if taken is None:
            return np.empty((0, 3))
        values = taken.values[3 * max(0, self._read - taken.dropped) :]  # a copy, which nobody makes longer
        rows = np.frombuffer(values).reshape(-1, 3)
        rows = rows[: np.searchsorted(rows[:, 0], end, side="right")]
        self._read = max(self._read, taken.dropped) + len(rows)
        taken.used = max(taken.used, end)
        return rows


def _reading(start: tf.Tensor, element: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """When a batch was there, and all that is told of it."""
    with tf.device(_HOST):
        with graph.after(tf.nest.flatten(element, expand_composites=True)):
            now = tf.timestamp()
        sizes = [tf.cast(tf.shape(part)[0], tf.float64) for part in replicas.rows(element)]
        examples = tf.constant(float("nan"), tf.float64)
        if sizes:
            examples = sizes[0] if len(sizes) == 1 else tf.add_n(sizes)
        return now, tf.stack([start, now, examples])


class _Clock:
    """The variable (start, time, examples) that belongs to the function which takes the batches.

    The train step reads it by a handle that TensorFlow does not know to be the same variable: else the whole step, a
    function called by the one that takes the batches, would wait for the assignment, and have an Identity for each
    variable of the model (27 ops for an MLP of 6 variables, TF 2.21). Who reads it does so after something that was
    computed from the batch, which comes after the assignment.
    """

    def __init__(self) -> None:
        # XLA reads what is on its own device; what is set there comes with the batch, which is sent there as well.
        self.written = lasting_variable(3, device=_HOST if compiled.deep() is None else "")
        with tf.init_scope():
            self._handle = tf.identity(self.written.handle)
        self._handle._cached_variable = self.written.handle._cached_variable  # see lasting_variable

    def read(self, waits: bool) -> tf.Tensor:
        """What it says; traced.

        Args:
            waits: whether TensorFlow is to wait for the assignment: where nothing that was computed from the batch can
                be waited for, since that is on another device.
        """
        with replicas.at(self.written):
            handle = self.written.handle if waits else self._handle
            values = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float64)
            values.set_shape([3])
            return values


def _clock(function: Any) -> _Clock:
    notes = graph.notes(function)
    if "clock" not in notes:
        notes["clock"] = _Clock()
        graph.keep_alive(notes["clock"])
    clock: _Clock = notes["clock"]
    return clock


def clock_in_reach(device: str) -> _Clock | None:
    """The clock of the function that feeds what is being traced on a device, or None if it can't be read there."""
    for function in graph.enclosing(graph.tracing()):
        clock: _Clock | None = graph.notes(function).get("clock")
        if clock is not None:
            return clock if clock.written.device == device or not graph.in_xla() else None
    return None
