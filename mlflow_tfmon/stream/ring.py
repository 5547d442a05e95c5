"""The ring: where traced ops leave a row per optimizer step, and from where a thread of ours takes it.

A ring lives in `tf.Variable`s on the device of the weights, so writing a row is one op in the user's own graph: no
Python, no I/O and no host synchronisation on the training thread. What tells time runs on the host; where the weights
are on another device, its columns have a table of their own there, so that neither side waits for the other. A ring
outlives a recording: a `tf.function` that was traced with it goes on writing into it, whoever listens.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.internals import internal
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.stream.bins import KINDS, WIDTH
from mlflow_tfmon.stream.records import Variable

# What a row holds besides the norms. Of the host: when the batch was asked for and when it was there (Unix seconds),
# how many examples it has, when the step's update had been done, and when this worker's gradients were ready to be
# summed with those of the others; NaN is what this trace does not measure. Of the device: "loss" is the sum of so many
# "losses" as were differentiated for the step, 0 where that is not known; "learning_rate" is that of the update.
HOST = ("input_start", "input_time", "examples", "time", "ready")
DEVICE = ("loss", "losses", "learning_rate")
APPLIED = "applied"
# Of these, NaN tells that the trace does not measure them, nor what is made of them.
TELLING = ("time", "input_start", "losses")
_ROW_BYTES = 16 * 2**20  # a ring takes at most about this much memory of the device,
_MOST_ROWS, _FEWEST_ROWS = 8192, 64  # and holds this many rows: 8 s of steps of 1 ms
_FEW_RINGS, _LEAST_ROWS = 8, 2048  # that are so large; of more, each is smaller, down to so many rows
_DEEP_ROWS = 256
_HISTOGRAM_BYTES, _HISTOGRAM_ROWS = 4 * 2**20, 32
_unused: deque[tuple[tf.Tensor, tf.DType]] = deque()  # handles of lasting variables that are gone


def lasting_variable(
    *shape: int, dtype: tf.DType = tf.float64, fill: int = 0, any_shape: bool = False, device: str = ""
) -> tf.Variable:
    """A variable that can be made at any time, also while a function is traced, and belongs to no function.

    With `any_shape` it may be assigned values of other shapes than its first. Without a `device` it is where the trace
    that makes it puts its ops.

    `tf.Variable` asks the traced function's variable creators even within `init_scope`, and a second trace forbids
    new variables; the class itself does not ask (TF 2.16 to 2.21).
    """
    give_back()
    # `tf.device(None)` would leave the scopes of the trace. TensorFlow keeps a kernel for each name that a variable is
    # made with, for ever (35 KB; 2.21): the name of an optimizer, which is another's each time, is kept out of it.
    with tf.init_scope(), tf.name_scope(""), tf.device(device) if device else contextlib.nullcontext():
        value = _filled(shape, dtype, fill)
        variable = _variable_class()(
            value, trainable=False, shape=tf.TensorShape(None) if any_shape else None
        )
    # What `tf.saved_model.save` asks of a capture that it has to replace (TF 2.16 to 2.21): a user's module that holds
    # a watched step can be saved, though nobody tracks our variable.
    variable.handle._cached_variable = lambda: _StandIn(shape, dtype, fill, any_shape)
    weakref.finalize(variable, _unused.append, (variable.handle, dtype)).atexit = False
    return variable


def give_back() -> None:
    """Gives back the memory of lasting variables that are gone, with all functions that wrote into them.

    TensorFlow would keep it: some of its graphs live for ever (see `graph.watch_function`), with all that they have
    captured. Not done as a variable goes, which may be anywhere in TensorFlow's own code.
    """
    while _unused:
        handle, dtype = _unused.popleft()
        with tf.init_scope(), tf.device(handle.device):
            tf.raw_ops.AssignVariableOp(resource=handle, value=tf.zeros([0], dtype))


def _variable_class() -> Any:
    return internal(
        "tensorflow.python.ops.resource_variable_ops.ResourceVariable",
        tf.Variable,
        "a step that was traced unwatched may fail to be traced anew",
    )


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
        device: of the weights: of the first of them where they are on several; "" for TensorFlow's default.
        host: the device that tells time: the processor of the machine that has the weights.
        xla: whether XLA compiles what writes, which reaches no other device.
    """

    variables: tuple[Variable, ...]
    keys: frozenset[str]
    norms: tuple[str, ...]
    workers: int = 1
    scalars: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    device: str = ""
    host: str = ""
    xla: bool = False

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a row: what there is once a step, then for each norm one a variable."""
        per_variable = [f"{norm}/{at}" for norm in self.norms for at in range(len(self.variables))]
        return (*HOST, *DEVICE, *self.scalars, *per_variable)

    @property
    def split(self) -> bool:
        """Whether the host's columns have a table of their own, on the host."""
        return self.device != self.host and not self.xla


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
        device: where it is.
        spare: whether it may be written to under a condition: what is no row goes into one more, which nobody reads.
    """

    def __init__(self, width: int, memory: int, most: int, device: str = "", spare: bool = False) -> None:
        self.width = width
        self.capacity = _power_of_two(memory // (8 * width), 4, most)
        self.rows = lasting_variable(self.capacity + spare, width, device=device)
        self.count = lasting_variable(dtype=tf.int64, device=device)
        self.taken = 0

    def write(self, row: tf.Tensor, if_: tf.Tensor | None = None) -> None:
        """Traced: writes a row, where there is a condition if that holds; then the counter moves.

        In XLA a branch that writes would pass all the rows through, and have them copied at each step.
        """
        count = _read(self.count)
        slot = _slot(count, self.capacity)
        more = tf.constant(1, tf.int64)
        if if_ is not None:
            slot, more = tf.where(if_, slot, self.capacity), tf.cast(if_, tf.int64)
        written = _put(self.rows, slot, row)
        with tf.control_dependencies([] if written is None else [written]):
            tf.raw_ops.AssignAddVariableOp(resource=self.count.handle, value=more)

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


_alive: weakref.WeakSet[Ring] = weakref.WeakSet()


class Ring:
    """Rows of the last steps of one optimizer over one set of variables.

    Args:
        layout: what a row holds.
        thread: the user's thread that trains.
    """

    def __init__(self, layout: RingLayout, thread: int) -> None:
        self.layout = layout
        self.thread = thread
        self.batch: Any = None  # the batches of the training that writes here (probes.batches.Held)
        self.held: dict[
            str, Any
        ] = {}  # what its steps are made of, where they leave that (the same), by its kind
        self.weights: Sequence[tf.Variable] = ()  # the variables themselves, in the order of the layout
        self.optimizer: Any = lambda: None  # gives the optimizer whose steps they are, while it lives
        self.reach = layout.keys  # of all variables that this optimizer is built for
        self.graph: Any = lambda: None  # gives the graph that was last traced to write here, while it lives
        self.traces = 0  # how often what writes into it was traced since a training began
        self.taken = 0  # steps that have been handed on, or were made while nobody recorded
        self.seen = 0  # steps that the drain has seen, whether they could be recorded or not
        self.begun = 0  # how many trainings have begun
        self.done, self.deep_every = 0, 1  # as `begin` was told
        count, device = len(layout.variables), layout.device
        self.width = len(layout.columns)
        # An optimizer for each example stays until Python looks for what is in no use, which may be hundreds later.
        _alive.add(self)
        most = _power_of_two(_MOST_ROWS * _FEW_RINGS // len(_alive), _LEAST_ROWS, _MOST_ROWS)
        self.capacity = _power_of_two(_ROW_BYTES // (8 * self.width), _FEWEST_ROWS, most)
        # A deep row is the step and then, of each ingredient of the deep signals, one number a variable.
        self.deep = SeldomRing(1 + count * len(INGREDIENTS), _ROW_BYTES, _DEEP_ROWS, device, layout.xla)
        # What ingredients keep of each variable from one deep step to the next, by their name.
        self.kept = {
            one.name: lasting_variable(count, one.state, device=device) for one in INGREDIENTS if one.state
        }
        counts = 1 + count * len(KINDS) * WIDTH
        self.histograms = SeldomRing(counts, _HISTOGRAM_BYTES, _HISTOGRAM_ROWS, device, layout.xla)

        self.count = lasting_variable(dtype=tf.int64, device=device)
        # Variables, since a function is traced once and may serve many trainings.
        self._deep_next = lasting_variable(
            dtype=tf.int64, device=device
        )  # steps before the next one that is deep
        self._begin = lasting_variable(
            dtype=tf.int64, device=device
        )  # steps before the training that is recorded
        self._every = lasting_variable(dtype=tf.int64, fill=1, device=device)
        own = self.width - len(HOST) if layout.split else self.width
        self.rows = lasting_variable(self.capacity, own, device=device)
        if layout.split:
            self._host_rows = lasting_variable(self.capacity, len(HOST), device=layout.host)
            self._host_count = lasting_variable(dtype=tf.int64, device=layout.host)
            self._host_begin = lasting_variable(dtype=tf.int64, device=layout.host)
            self._host_every = lasting_variable(dtype=tf.int64, fill=1, device=layout.host)
            self._host_first = lasting_variable(dtype=tf.int64, fill=1, device=layout.host)
        self.begin(1)

    @property
    def state(self) -> list[tf.Variable]:
        """All variables that it is made of."""
        own = [self.count, self._deep_next, self._begin, self._every, self.rows]
        if self.layout.split:
            own += [self._host_rows, self._host_count]
            own += [self._host_begin, self._host_every, self._host_first]
        own += self.kept.values()
        return own + [v for seldom in (self.deep, self.histograms) for v in (seldom.rows, seldom.count)]

    # -- traced into the user's graph ------------------------------------------------------------------------------
    def next_step(self, updates: Any = None, window: int = 1) -> tuple[tf.Tensor, tf.Tensor, Any]:
        """Which step is being made, and what is measured at it.

        Args:
            updates: whether it updates the weights, if not every step does: a deep step that is due waits for that.
            window: every how many steps there is an update.

        Returns:
            How many steps have been made, on the device; whether this one is deep; whether it has histograms, where the
            host tells, for which nobody waits, else None: then `histogram_due` tells at a deep step.
        """
        done = _read(self.count)
        if self.layout.split:
            with tf.device(self.layout.host):
                begin, every = _read(self._host_begin), _read(self._host_every)
                last, first = _read(self._host_count) + 1, _read(self._host_first)
                before = last - window
                due = (last - begin) // every > (before - begin) // every
                due = due | ((before < first) & (first <= last))
                due = due if updates is None else due & updates
                return done, due, due & _histogram_due((last - begin) // every)
        due = done >= _read(self._deep_next)
        return done, due if updates is None else due & updates, None

    def write_deep(
        self, done: tf.Tensor, row: tf.Tensor, kept: Sequence[tf.Tensor], if_: tf.Tensor | None = None
    ) -> None:
        """Writes a deep row, and says when the next is due.

        Args:
            done: steps before this one.
            row: of a step.
            kept: what `self.kept` is to hold from now on.
            if_: whether it is one, where that is not known before.
        """
        begin, every = _read(self._begin), _read(self._every)
        due = begin + ((done + 1 - begin) // every + 1) * every - 1
        if if_ is not None:
            due = tf.where(if_, due, _read(self._deep_next))
        tf.raw_ops.AssignVariableOp(resource=self._deep_next.handle, value=due)
        for variable, value in zip(self.kept.values(), kept, strict=True):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
        self.deep.write(row, if_)

    def histogram_due(self, done: tf.Tensor) -> tf.Tensor:
        """Whether a deep step has histograms: the first 32 have, then every 2nd, from the 64th on every 4th, and so on.

        So a training of any length has some 16 for each time that it grew to twice its length.
        """
        return _histogram_due((done + 1 - _read(self._begin)) // _read(self._every))

    def write(
        self, done: tf.Tensor, host: Sequence[tf.Tensor], device: Sequence[tf.Tensor]
    ) -> tf.Operation | None:
        """Writes a step's row; then the counter moves, by the op that it gives: what it counts has been written.

        Args:
            done: steps before this one, as `next_step` gave them.
            host: the columns of `HOST`, one after the other.
            device: the other columns.
        """
        if self.layout.split:
            with tf.device(self.layout.host):
                mine = _read(self._host_count)
                _write(self._host_rows, self._host_count, _slot(mine, self.capacity), tf.concat(host, axis=0))
            row = tf.concat(device, axis=0)
        else:
            row = tf.concat([*host, *device], axis=0)
        return _write(self.rows, self.count, _slot(done, self.capacity), row)

    # -- called by the drain ---------------------------------------------------------------------------------------
    def begin(self, deep_every: int, done: int = 0) -> None:
        """A training begins with the first step that was not taken: it and every `deep_every`-th are deep.

        Of several workers, these are counted from the ring's first step, of which alone each knows when it was.

        Args:
            deep_every: every how many steps.
            done: steps that it has made in an earlier process: then the same ones are deep as if it had gone on.
        """
        self.traces = 0
        self.deep.skip()
        self.histograms.skip()
        for kept in self.kept.values():
            # Keras's tests of sparse updates allow no call of `assign` with more than a number.
            tf.raw_ops.AssignVariableOp(resource=kept.handle, value=tf.zeros_like(kept))
        self.done, self.deep_every = done, deep_every
        self.begun += 1
        begin = self.taken - done if self.layout.workers == 1 else 0
        first = begin + ((self.taken - begin) // deep_every + 1) * deep_every if done else self.taken + 1
        self._begin.assign(begin)
        self._every.assign(deep_every)
        self._deep_next.assign(first - 1)
        if self.layout.split:
            self._host_begin.assign(begin)
            self._host_every.assign(deep_every)
            self._host_first.assign(first)

    def written(self) -> int:
        """How many steps have been written so far."""
        count = _number(self.count)
        return min(count, _number(self._host_count)) if self.layout.split else count

    def read(self, after: int, upto: int) -> tuple[np.ndarray, int]:
        """Reads the rows of steps after+1 to upto.

        Returns:
            The rows (oldest first) and how many of those asked for had been overwritten.
        """
        first = max(after, upto - self.capacity)
        slots = np.arange(first, upto) % self.capacity
        rows = _gather(self.rows, slots)
        if self.layout.split:
            rows = np.concatenate([_gather(self._host_rows, slots), rows], axis=1)
        # Meanwhile the training went on, and is writing one more: what it may have overwritten does not count.
        spoiled = max(0, self.written() + 1 - self.capacity - first)
        return rows[spoiled:], upto - after - len(rows[spoiled:])


def _histogram_due(number: tf.Tensor) -> tf.Tensor:
    octave = tf.math.log(tf.cast(tf.maximum(number, 1), tf.float64) + 0.5) / tf.math.log(
        tf.constant(2, tf.float64)
    )
    spacing = tf.bitwise.left_shift(tf.constant(1, tf.int64), tf.maximum(tf.cast(octave, tf.int64) - 4, 0))
    # Not `%`, which TensorFlow compiles on a GPU when it is first used (2.21).
    return tf.equal(tf.bitwise.bitwise_and(number, spacing - 1), 0)


def _power_of_two(count: int, least: int, most: int) -> int:
    """The largest power of two up to `count`, within bounds that are such powers: a slot is then a bit mask."""
    return int(np.clip(1 << (max(count, 1).bit_length() - 1), least, most))


def _read(variable: tf.Variable) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def _slot(count: tf.Tensor, capacity: int) -> tf.Tensor:
    return tf.raw_ops.BitwiseAnd(x=count, y=tf.constant(capacity - 1, tf.int64))


def _write(rows: tf.Variable, count: tf.Variable, slot: tf.Tensor, row: tf.Tensor) -> tf.Operation | None:
    written = _put(rows, slot, row)
    # TensorFlow orders what touches one variable; rows and counter are two.
    with tf.control_dependencies([] if written is None else [written]):
        return tf.raw_ops.AssignAddVariableOp(resource=count.handle, value=tf.constant(1, tf.int64))
