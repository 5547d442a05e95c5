"""The ring: where traced ops leave a row per optimizer step, and from where a thread of ours takes it.

A ring lives in `tf.Variable`s on the device where the training runs, so writing a row is one op in the user's own
graph: no Python, no I/O and no host synchronisation on the training thread. A ring outlives a recording: a
`tf.function` that was traced with it goes on writing into it, whoever listens.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from mlflow_tfmon.stream.bins import KINDS, WIDTH
from mlflow_tfmon.stream.records import Variable

# A row in the ring begins with these; after them, for each of `RingLayout.norms`, per variable, half the squared norm
# of its gradient; then the layout's scalars. "measured" is a sum of the flags below, what this trace measures; "loss"
# is the sum of so many "losses" as were differentiated for the step, none where that is not known; "ready" is when this
# worker's gradients were ready to be summed with those of the others.
HEAD = (
    "input_time",
    "input_wait",
    "examples",
    "loss",
    "losses",
    "step",
    "measured",
    "time",
    "ready",
    "learning_rate",
)
TIME, INPUT = 1, 2
APPLIED = "applied"
# A deep row is the step and then, per variable, each of these: half the squares of the weights after the step, of those
# before it and of their difference, and how many elements of the gradient are not zero.
DEEP = ("after", "before", "change", "nonzero")
_ROW_BYTES = 16 * 2**20  # a ring takes at most about this much memory of the device,
_MOST_ROWS, _FEWEST_ROWS = 8192, 64  # and holds this many rows: 8 s of steps of 1 ms
_DEEP_ROWS = 256
_HISTOGRAM_BYTES, _HISTOGRAM_ROWS = 4 * 2**20, 32


def lasting_variable(
    *shape: int, dtype: tf.DType = tf.float64, fill: int = 0, any_shape: bool = False
) -> tf.Variable:
    """A variable that can be made at any time, also while a function is traced, and belongs to no function.

    With `any_shape` it may be assigned values of other shapes than its first.

    `tf.Variable` asks the traced function's variable creators even within `init_scope`, and a second trace forbids
    new variables; the class itself does not ask (TF 2.16 to 2.21).
    """
    with tf.init_scope():
        value = _filled(shape, dtype, fill)
        variable = ResourceVariable(value, trainable=False, shape=tf.TensorShape(None) if any_shape else None)
    # What `tf.saved_model.save` asks of a capture that it has to replace (TF 2.16 to 2.21): a user's module that holds
    # a watched step can be saved, though nobody tracks our variable.
    variable.handle._cached_variable = lambda: _StandIn(shape, dtype, fill, any_shape)
    return variable


@dataclass(frozen=True)
class _StandIn:
    """What a saved function writes into instead of a lasting variable: a variable that is in its graph alone."""

    shape: tuple[int, ...]
    dtype: tf.DType
    fill: int
    any_shape: bool

    def read_value(self) -> tf.Tensor:
        """The handle, made in the function being saved; a first run of that makes the variable."""
        handle = tf.raw_ops.VarHandleOp(
            dtype=self.dtype,
            shape=tf.TensorShape(None) if self.any_shape else self.shape,
            shared_name=f"mlflow_tfmon/{uuid.uuid4().hex}",
        )

        def make() -> tf.Operation:
            return tf.raw_ops.AssignVariableOp(
                resource=handle, value=_filled(self.shape, self.dtype, self.fill)
            )

        made = tf.cond(tf.raw_ops.VarIsInitializedOp(resource=handle), tf.no_op, make)
        with tf.control_dependencies([made]):
            return tf.identity(handle)


def _filled(shape: tuple[int, ...], dtype: tf.DType, fill: int) -> tf.Tensor:
    return tf.fill(shape, tf.cast(fill, dtype)) if fill else tf.zeros(shape, dtype)  # of strings, too


def _put(variable: tf.Variable, slot: tf.Tensor, row: tf.Tensor) -> tf.Operation | None:
    # The op that needs the fewest others around it. Eagerly, gives None.
    return tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=slot, updates=row)


def _number(variable: tf.Variable) -> int:
    # A fifth of the time of `variable.numpy()`, which holds up the training's Python (TF 2.21).
    return int(tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype))


def _gather(variable: tf.Variable, indices: np.ndarray) -> np.ndarray:
    # Copies the rows asked for, not the whole ring.
    return np.asarray(
        tf.raw_ops.ResourceGather(
            resource=variable.handle, indices=indices.astype(np.int64), dtype=variable.dtype
        )
    )


@dataclass(frozen=True)
class RingLayout:
    """What the rows of a ring hold.

    Attributes:
        variables: what is trained.
        keys: its identifiers within the process.
        norms: the gradient norms per variable, of "grad_norm" (before clipping) and "grad_norm_clipped".
        workers: over how many workers the gradients are summed.
        scalars: further figures of a step: `APPLIED` (1 if the weights were updated, 0 if not) where not every step
            updates them, "loss_scale", and what the loss is made of, by name.
        parts: those of the scalars that the loss is made of.
    """

    variables: tuple[Variable, ...]
    keys: frozenset[str]
    norms: tuple[str, ...]
    workers: int = 1
    scalars: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeldomRows:
    """What was read of a ring of few rows.

    Attributes:
        rows: oldest first.
        lost: how many were overwritten before they could be read.
        taken: the ring's `taken` once these have been recorded.
    """

    rows: np.ndarray
    lost: int
    taken: int


class SeldomRing:
    """Rows of steps that are few: the last of them; column 0 is the step.

    Attributes:
        taken: how many rows have been handed on, or were made while nobody recorded.

    Args:
        width: of a row.
        memory: bytes that it may take, unless four rows need more.
        most: rows that it has at most.
    """

    def __init__(self, width: int, memory: int, most: int) -> None:
        self.width = width
        self.capacity = int(np.clip(memory // (8 * width), 4, most))
        self.rows = lasting_variable(self.capacity, width)
        self.count = lasting_variable(dtype=tf.int64)
        self.taken = 0

    def write(self, row: tf.Tensor) -> None:
        """Traced: writes a row; then the counter moves."""
        written = _put(self.rows, self.count % self.capacity, row)
        with tf.control_dependencies([] if written is None else [written]):
            self.count.assign_add(1)

    def skip(self) -> None:
        """What has been written by now is nobody's."""
        self.taken = _number(self.count)

    def read(self, upto: int) -> SeldomRows:
        """Reads the rows that were not taken yet, of steps up to `upto`: a later one is read with its step."""
        count = _number(self.count)
        first = max(self.taken, count - self.capacity)
        if first >= count:
            return SeldomRows(np.empty((0, self.width)), 0, self.taken)
        rows = _gather(self.rows, np.arange(first, count) % self.capacity)
        # Meanwhile the training went on, and is writing one more: what it may have overwritten does not count.
        spoiled = max(0, _number(self.count) + 1 - self.capacity - first)
        rows = rows[spoiled:]
        first = count - len(rows)
        rows = rows[rows[:, 0] <= upto]
        return SeldomRows(rows, first - self.taken, first + len(rows))


class Ring:
    """Rows of the last steps of one optimizer over one set of variables.

    Args:
        layout: what a row holds.
        thread: the user's thread that trains.
    """

    def __init__(self, layout: RingLayout, thread: int) -> None:
        self.layout = layout
        self.thread = thread
        self.batch: Any = (
            None  # where the training that writes here leaves its batches (probes.batches.Batch)
        )
        self.weights: Sequence[tf.Variable] = ()  # the variables themselves, in the order of the layout
        self.optimizer: Any = lambda: None  # gives the optimizer whose steps they are, while it lives
        self.graph: Any = lambda: None  # gives the graph that was last traced to write here, while it lives
        self.traces = 0  # how often what writes into it was traced since a training began
        self.taken = 0  # steps that have been handed on, or were made while nobody recorded
        count = len(layout.variables)
        self.width = len(HEAD) + count * len(layout.norms) + len(layout.scalars)
        self.capacity = int(np.clip(_ROW_BYTES // (8 * self.width), _FEWEST_ROWS, _MOST_ROWS))
        self.deep = SeldomRing(1 + count * len(DEEP), _ROW_BYTES, _DEEP_ROWS)
        self.histograms = SeldomRing(1 + count * len(KINDS) * WIDTH, _HISTOGRAM_BYTES, _HISTOGRAM_ROWS)

        self.count = lasting_variable(dtype=tf.int64)
        self._deep_next = lasting_variable(dtype=tf.int64)  # the next step that is deep
        # Variables, since a function is traced once and may serve many trainings.
        self._begin = lasting_variable(dtype=tf.int64)  # steps made before the training that is recorded
        self._every = lasting_variable(dtype=tf.int64, fill=1)
        self.rows = lasting_variable(self.capacity, self.width)
        self.begin(1)

    @property
    def state(self) -> list[tf.Variable]:
        """All variables that it is made of."""
        own = [self.count, self._deep_next, self._begin, self._every, self.rows]
        return own + [v for seldom in (self.deep, self.histograms) for v in (seldom.rows, seldom.count)]

    # -- traced into the user's graph ------------------------------------------------------------------------------
    def next_step(self, updates: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        """The number of the step that is being made, and whether it is deep.

        Args:
            updates: whether it updates the weights, if not every step does: a deep step that is due waits for that.
        """
        step = self.count + 1
        due = step >= self._deep_next
        return step, due if updates is None else due & updates

    def write_deep(self, step: tf.Tensor, row: tf.Tensor) -> None:
        done = step - self._begin
        self._deep_next.assign(self._begin + (done // self._every + 1) * self._every)
        self.deep.write(row)

    def histogram_due(self, step: tf.Tensor) -> tf.Tensor:
        """Whether a deep step has histograms: the first 32 have, then every 2nd, from the 64th on every 4th, and so on.

        So a training of any length has some 16 for each time that it grew to twice its length.
        """
        number = (step - self._begin) // self._every
        octave = tf.math.log(tf.cast(tf.maximum(number, 1), tf.float64) + 0.5) / tf.math.log(
            tf.constant(2, tf.float64)
        )
        spacing = tf.bitwise.left_shift(
            tf.constant(1, tf.int64), tf.maximum(tf.cast(octave, tf.int64) - 4, 0)
        )
        return tf.equal(number % spacing, 0)

    def write(self, step: tf.Tensor, row: tf.Tensor) -> None:
        """Writes a step's row; then the counter moves: what it counts has been written."""
        written = _put(self.rows, step % self.capacity, row)
        # TensorFlow orders what touches one variable; ring and counter are two.
        with tf.control_dependencies([] if written is None else [written]):
            self.count.assign(step)

    # -- called by the drain ---------------------------------------------------------------------------------------
    def begin(self, deep_every: int, done: int = 0) -> None:
        """A training begins with the first step that was not taken: it and every `deep_every`-th are deep.

        Args:
            deep_every: every how many steps.
            done: steps that it has made in an earlier process: then the same ones are deep as if it had gone on.
        """
        self.traces = 0
        self.deep.skip()
        self.histograms.skip()
        begin = self.taken - done
        self._begin.assign(begin)
        self._every.assign(deep_every)
        self._deep_next.assign(begin + (done // deep_every + 1) * deep_every if done else begin + 1)

    def written(self) -> int:
        """How many steps have been written so far."""
        return _number(self.count)

    def read(self, after: int, upto: int) -> tuple[np.ndarray, int]:
        """Reads the rows of steps after+1 to upto.

        Returns:
            The rows (oldest first) and how many of those asked for had been overwritten.
        """
        first = max(after + 1, upto - self.capacity + 1)
        rows = _gather(self.rows, np.arange(first, upto + 1) % self.capacity)
        # Meanwhile the training went on, and is writing one more: what it may have overwritten does not count.
        spoiled = max(0, self.written() + 1 - self.capacity - (first - 1))
        return rows[spoiled:], upto - after - len(rows[spoiled:])
