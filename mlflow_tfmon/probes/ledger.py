"""The ledger: samples of what tapes gave and of what optimizers applied, where only values tell whose loss a step has.

Within one graph, and for eager tensors that are passed on as they are, `origin` tells. Where a function, a variable or
eager arithmetic lies between tape and optimizer, both write a few elements of their gradients here; the drain's thread
compares them (`weighing`). Nothing is decided in the user's graph, and a step whose origin is known writes nothing.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mlflow_tfmon.probes import graph
from mlflow_tfmon.probes.weighing import MADE_OF, MADE_OF_HALVES, Given, loss_of
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import Ring, lasting_variable
from mlflow_tfmon.stream.rows import column

# Sites: the gradient of a step, before it what a function has made it of; and a step whose loss was known without.
APPLIED, EDGE, SETTLED = -1, -3, -2
EAGER = 1_000_000  # from here on, sites in eager code
ASKED = -1.0  # in a ring's row, in place of the number of losses: the loss is the number of a row here
_SAMPLES = 16  # elements of a variable's gradient
_BYTES = 2 * 2**20  # that the rows of one ledger take at most, unless 64 need more
_HEAD = ("number", "site", "loss")

_ledgers: dict[frozenset[str], Ledger] = {}
_plans: dict[str, _Plan] = {}
_counters: dict[str, tf.Variable] = {}  # by device: of all rows of its ledgers, in the order of the program
_asked: weakref.WeakKeyDictionary[Ring, float] = weakref.WeakKeyDictionary()  # the last that it asked for
_piled: weakref.WeakKeyDictionary[Ring, int] = (
    weakref.WeakKeyDictionary()
)  # steps whose gradient was that of the step before and more
_ROUNDED, _MOST_ROUNDED = 1e-6, 0.02  # of a sum of many: so much of it is lost; of what was added, at most
_lock = threading.RLock()


@dataclass(frozen=True)
class _Plan:
    """What is taken of a variable's gradient.

    Attributes:
        positions: of elements, in the flat gradient.
        sparse: whether it has rows that are mostly zero: then, weighted sums over the rows of some columns.
        rows, columns: how many the variable has, all axes but the first taken as one.
        complex: whether each sample is two numbers.
    """

    positions: np.ndarray = field(repr=False)
    sparse: bool
    rows: int
    columns: int
    complex: bool

    @classmethod
    def of(cls, variable: Any, gradient: Any) -> _Plan:
        shape, dtype = graph.raw(variable).shape, tf.as_dtype(graph.raw(variable).dtype)
        size = int(shape.num_elements() or 0)  # none, where it may change
        rows = int(shape[0]) if size and len(shape) else 1
        columns = max(1, size // rows)
        sparse = isinstance(gradient, tf.IndexedSlices) and size > 0
        upto = columns if sparse else size
        some = np.random.default_rng(0).integers(0, max(upto, 1), _SAMPLES)
        positions = np.arange(upto) if upto <= _SAMPLES else np.unique(some)
        return cls(positions, sparse, rows, columns, dtype.is_complex)

    @property
    def width(self) -> int:
        return len(self.positions) * (2 if self.complex else 1)

    def of_gradient(self, gradient: Any) -> tf.Tensor:
        """The samples of a gradient."""
        if gradient is None or not len(self.positions):
            return tf.zeros([self.width], tf.float64)
        if self.sparse:
            picked = self._over_rows(gradient)
        elif isinstance(gradient, tf.IndexedSlices):
            picked = self._of_slices(gradient)
        else:
            picked = tf.gather(tf.reshape(gradient, [-1]), self.positions)
        if self.complex:
            picked = tf.cast(picked, tf.complex128)
            return tf.concat([tf.math.real(picked), tf.math.imag(picked)], axis=0)
        return tf.cast(picked, tf.float64)

    def _over_rows(self, gradient: Any) -> tf.Tensor:
        if isinstance(gradient, tf.IndexedSlices):
            values, rows = gradient.values, gradient.indices
        else:
            values, rows = gradient, tf.range(self.rows)
        columns = tf.gather(tf.reshape(values, [tf.shape(rows)[0], -1]), self.positions, axis=1)
        wide = tf.complex128 if self.complex else tf.float64
        turns = tf.constant(1.0 + np.arange(len(self.positions)) / _SAMPLES, tf.float64)
        weights = tf.cos(tf.cast(rows, tf.float64)[:, None] * turns)
        return tf.reduce_sum(tf.cast(columns, wide) * tf.cast(weights, wide), axis=0)

    def _of_slices(self, gradient: tf.IndexedSlices) -> tf.Tensor:
        values = tf.reshape(gradient.values, [tf.shape(gradient.indices)[0], -1])
        columns = tf.gather(values, self.positions % self.columns, axis=1)
        rows = tf.constant(self.positions // self.columns, gradient.indices.dtype)
        return tf.reduce_sum(columns * tf.cast(gradient.indices[:, None] == rows, columns.dtype), axis=0)


class Ledger:
    """Rows of samples of the gradients of one set of variables: those that tapes gave, and those that were applied.

    Attributes:
        keys: of the variables, in the order of the samples.
        tolerance: relative difference of samples that are the same but for a factor.
    """

    def __init__(self, variables: Sequence[Any], gradients: Mapping[str, Any]) -> None:
        self.keys = tuple(graph.key(v) for v in variables)
        self._plans = [
            _plans.setdefault(key, _Plan.of(v, gradients.get(key)))
            for key, v in zip(self.keys, variables, strict=True)
        ]
        bounds = np.cumsum([len(_HEAD), *(plan.width for plan in self._plans)])
        self.parts = {key: slice(a, b) for key, a, b in zip(self.keys, bounds[:-1], bounds[1:], strict=True)}
        self.width = int(bounds[-1])
        self.capacity = int(np.clip(_BYTES // (8 * self.width), 64, 8192))
        device = getattr(graph.raw(variables[0]), "device", "")
        self._rows = lasting_variable(self.capacity, self.width, device=device)
        self._count = lasting_variable(dtype=tf.int64, device=device)
        if device not in _counters:
            _counters[device] = lasting_variable(dtype=tf.int64, device=device)
        self._counter = _counters[device]
        self._taken = 0
        self.history = np.empty((0, self.width))
        halves = any(tf.as_dtype(graph.raw(v).dtype).size < 4 for v in variables)
        self.tolerance = MADE_OF_HALVES if halves else MADE_OF
        self.gap = 0.0  # the last number before which rows were overwritten, unread
        self._traced: dict[Any, Any] = {}

    def write(self, site: int, loss: tf.Tensor, gradients: Mapping[str, Any]) -> tf.Tensor:
        """Writes a row; returns its number."""
        graph.keep_alive((self._rows, self._count, self._counter))
        with graph.stop_recording():  # of the user's tapes
            if not tf.executing_eagerly():
                return self._write(site, loss, gradients)
            flat = {key: _tensors(g) for key, g in gradients.items() if key in self.parts and g is not None}
            signature = tuple((key, *(t.dtype for t in tensors)) for key, tensors in flat.items())
            if signature not in self._traced:
                specs = tf.nest.map_structure(lambda t: _spec(t, slices=False), flat)
                for key, tensors in flat.items():
                    if len(tensors) == 2:
                        specs[key] = [_spec(t, slices=True) for t in tensors]
                function = tf.function(self._write_flat, autograph=False, jit_compile=False)
                self._traced[signature] = function.get_concrete_function(
                    tf.TensorSpec([], tf.float64), tf.TensorSpec([], tf.float64), specs
                )
            return self._traced[signature](tf.constant(float(site), tf.float64), loss, flat)

    def _write_flat(self, site: tf.Tensor, loss: tf.Tensor, flat: dict[str, list[tf.Tensor]]) -> tf.Tensor:
        return self._write(site, loss, {
            key: tf.IndexedSlices(*tensors) if len(tensors) == 2 else tensors[0]
            for key, tensors in flat.items()
        })  # fmt: skip

    def _write(self, site: Any, loss: tf.Tensor, gradients: Mapping[str, Any]) -> tf.Tensor:
        number = tf.cast(self._counter.assign_add(1, read_value=True), tf.float64)
        head = tf.stack([number, tf.cast(site, tf.float64), tf.cast(loss, tf.float64)])
        samples = [
            plan.of_gradient(gradients.get(key)) for key, plan in zip(self.keys, self._plans, strict=True)
        ]
        row = tf.concat([head, *samples], axis=0)
        count = self._count.read_value()
        written = tf.raw_ops.ResourceScatterUpdate(
            resource=self._rows.handle, indices=count % self.capacity, updates=row
        )
        with tf.control_dependencies([] if written is None else [written]):
            counted = self._count.assign(count + 1, read_value=False)
        with tf.control_dependencies([] if counted is None else [counted]):
            return tf.identity(number)

    def look(self) -> None:
        """Takes the rows that were written since the last look."""
        count = int(self._count.read_value())
        first = max(self._taken, count - self.capacity)
        if first >= count:
            return
        at = np.arange(first, count) % self.capacity
        rows = np.asarray(tf.gather(self._rows, at))
        # What may have been overwritten meanwhile does not count.
        spoiled = max(0, int(self._count.read_value()) + 1 - self.capacity - first)
        rows = rows[spoiled:]
        if first + spoiled > self._taken and len(rows):
            self.gap = float(rows[0, 0])
        self._taken = count
        self.history = np.concatenate([self.history, rows])[-4 * self.capacity :]


def _tensors(gradient: Any) -> list[tf.Tensor]:
    if isinstance(gradient, tf.IndexedSlices):
        return [gradient.values, gradient.indices]
    return [tf.convert_to_tensor(gradient)]


def _spec(tensor: tf.Tensor, slices: bool) -> tf.TensorSpec:
    shape = tensor.shape.as_list()
    return tf.TensorSpec([None, *shape[1:]] if slices else shape, tensor.dtype)


def of(variables: Sequence[Any], gradients: Mapping[str, Any]) -> Ledger:
    """The ledger of a set of variables, made if there is none."""
    keys = frozenset(graph.key(v) for v in variables)
    with _lock:
        if keys not in _ledgers:
            _ledgers[keys] = Ledger(variables, gradients)
            for variable in variables[:1]:
                weakref.finalize(graph.raw(variable), _forget, keys)
        return _ledgers[keys]


def _forget(keys: frozenset[str]) -> None:
    _ledgers.pop(keys, None)
    for key in keys:
        _plans.pop(key, None)


class _Row(NamedTuple):
    number: float
    ledger: Ledger
    values: np.ndarray


def with_losses(reading: Reading) -> Reading:
    """Puts into a reading the losses that its steps asked for; a loss that can't be told is absent."""
    asking = np.flatnonzero(column(reading, "losses") == ASKED)
    if not len(asking):
        return reading
    with _lock:
        ledgers = [one for keys, one in _ledgers.items() if keys & reading.ring.layout.keys]
        for one in ledgers:
            one.look()
        known = sorted(
            (_Row(row[0], one, row) for one in ledgers for row in one.history), key=lambda row: row.number
        )
    numbers = np.array([row.number for row in known])
    reading = dataclasses.replace(reading, rows=reading.rows.copy())
    losses, counts, before = column(reading, "loss"), column(reading, "losses"), _asked.get(reading.ring, 0.0)
    for at in asking:
        number = float(losses[at])
        place = int(np.searchsorted(numbers, number))
        loss = None
        if place < len(known) and known[place].number == number:
            loss = _told(known[place], known[:place], before)
            if loss is None and (loss := _added(known[place], known[:place], before)) is not None:
                _piled[reading.ring] = _piled.get(reading.ring, 0) + 1
        losses[at], counts[at] = (0.0, 0.0) if loss is None else (loss, 1.0)
        before = number
    _asked[reading.ring] = before
    return reading


def piled(ring: Ring) -> int:
    """How many steps of a ring applied the gradient of the step before with their own added to it."""
    return _piled.get(ring, 0)


def _added(applied: _Row, rows: Sequence[_Row], before: float) -> float | None:
    """The loss of what a step has added to the gradient of the step before; None where it has not done that."""
    own = len(_HEAD)
    last = next(
        (row for row in reversed(rows) if row.ledger is applied.ledger and row.values[1] == APPLIED), None
    )
    if last is None or not np.isfinite(applied.values).all() or not np.isfinite(last.values).all():
        return None
    more = applied.values.copy()
    more[own:] -= last.values[own:]
    size, before_it = np.abs(more[own:]).max(), np.abs(last.values[own:]).max()
    if not before_it > 0 or not size > 0 or _ROUNDED * before_it / size > _MOST_ROUNDED:
        return None
    tolerance = max(10 * applied.ledger.tolerance, _ROUNDED * before_it / size)
    return _told(applied._replace(values=more), rows, before, tolerance)


def _told(applied: _Row, rows: Sequence[_Row], before: float, tolerance: float = 0.0) -> float | None:
    keys = applied.ledger.keys
    settled = [row.number for row in rows if row.values[1] == SETTLED and row.ledger is applied.ledger]
    before = max([before, *settled])
    calls: list[Given] = []
    earlier: list[Given] = []
    for row in rows[-1024:]:
        if row.values[1] >= 0:
            (calls if row.number > before else earlier).append(_given(row, keys, applied.ledger))
    if any(
        row.ledger.gap > before for row in rows
    ):  # some of them were overwritten: only what is the same tells
        earlier, calls = [*earlier, *calls], []
    parts, begin = [], 0
    for key in keys:
        width = applied.ledger.parts[key].stop - applied.ledger.parts[key].start
        parts.append(slice(begin, begin + width))
        begin += width
    if tolerance:  # of what was added: what it was made of is not known, nor does what came earlier count
        return loss_of(applied.values[len(_HEAD) :], parts, calls, (), (), tolerance)
    made_of = _edges(applied, rows)
    return loss_of(applied.values[len(_HEAD) :], parts, calls, earlier, made_of, applied.ledger.tolerance)


def _edges(applied: _Row, rows: Sequence[_Row]) -> list[np.ndarray]:
    """What the gradient of a step is known to have been made of."""
    found = []
    for row in reversed(rows):
        if row.ledger is applied.ledger:
            if row.values[1] != EDGE:
                break
            found.append(row.values[len(_HEAD) :])
    return found


def _given(row: _Row, keys: Sequence[str], wanted: Ledger) -> Given:
    _, site, loss = row.values[: len(_HEAD)]
    if row.ledger is wanted:
        return Given(int(site), float(loss), row.values[len(_HEAD) :])
    samples = []
    for key in keys:
        own, part = row.ledger.parts.get(key), wanted.parts[key]
        samples.append(np.zeros(part.stop - part.start) if own is None else row.values[own])
    return Given(int(site), float(loss), np.concatenate(samples))
