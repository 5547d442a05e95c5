"""The batches that a training takes from its dataset: one of them shows what a model's layers give."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph
from mlflow_tfmon.stream.ring import Ring, lasting_variable

_ROWS = 256  # of a batch, at most, are looked at

_taken: dict[int, Any] = {}  # what eager code took last, by thread
_kept: weakref.WeakKeyDictionary[Ring, tuple[int, Any]] = weakref.WeakKeyDictionary()


class Batch:
    """The model's inputs in the last batch that a traced function took.

    Assigning holds a tensor as it is, it is not copied (TF 2.16 to 2.21): one op a tensor, and one batch that lives
    until the next is there. The variables are the host's, as what an iterator gives is.
    """

    def __init__(self, inputs: Any) -> None:
        self._like = tf.nest.map_structure(lambda _: None, inputs)  # no tensor, which would hold its graph
        with tf.init_scope(), tf.device("CPU:0"):
            self._held = [lasting_variable(0, dtype=t.dtype, any_shape=True) for t in tf.nest.flatten(inputs)]

    def hold(self, inputs: Any) -> None:
        for variable, tensor in zip(self._held, tf.nest.flatten(inputs), strict=True):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tensor)

    def read(self) -> Any:
        """What is held now; called by eager code."""
        with tf.device("CPU:0"):
            tensors = [
                tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in self._held
            ]  # `read_value` would set its static shape
        return tf.nest.pack_sequence_as(self._like, tensors)


def hold(function: Any, element: Any) -> None:
    """In a function that takes a batch from an iterator: holds the model's inputs in it."""
    inputs = _inputs(element)
    if inputs is None:
        return
    notes = graph.notes(function)
    if "batch" not in notes:
        notes["batch"] = Batch(inputs)
        graph.keep_alive(notes["batch"])
    notes["batch"].hold(inputs)


def took(element: Any) -> None:
    """In eager code that took a batch from an iterator: holds it."""
    _taken[threading.get_ident()] = element


def forget() -> None:
    """Lets go of what eager code took."""
    _taken.clear()


def in_reach() -> Batch | None:
    """The batches of the function that feeds what is being traced, or None if they come from elsewhere."""
    found = (graph.notes(function).get("batch") for function in graph.enclosing(graph.tracing()))
    return next((batch for batch in found if batch is not None), None)


def glance(ring: Ring) -> None:
    """Keeps the inputs of the batch that a ring's training took last, if it has more rows than those kept before.

    An epoch's last batch may have a single row, which tells little: so this is called now and then, on any thread.
    """
    with contained("keeping a batch", "activations may not be recorded"):
        most, _ = kept(ring)
        batch: Batch | None = ring.batch
        inputs = _inputs(_taken.get(ring.thread)) if batch is None else batch.read()
        if inputs is None or most == _ROWS:
            return
        inputs = tf.nest.map_structure(lambda t: t[:_ROWS], inputs)
        rows = {int(t.shape[0]) for t in tf.nest.flatten(inputs)}
        # Read while the training goes on, two tensors may be of two batches.
        if len(rows) == 1 and max(rows) > most:
            _kept[ring] = rows.pop(), inputs


def kept(ring: Ring) -> tuple[int, Any]:
    """How many rows are kept, and they: inputs of a model that a ring's training took from its dataset, or None."""
    return _kept.get(ring, (0, None))


def _inputs(element: Any) -> Any:
    """The model's part of an element (x, (x,), (x, y), (x, y, sample_weight)) if it is made of dense tensors."""
    inputs = element[0] if isinstance(element, tuple) and element else element
    tensors = tf.nest.flatten(inputs)
    if not tensors or not all(isinstance(t, tf.Tensor) and t.shape.rank for t in tensors):
        return None
    return inputs
