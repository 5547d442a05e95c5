"""The signals' ingredients (`mlflow_tfmon.signals`) as TensorFlow ops."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.probes import graph
from mlflow_tfmon.probes.pieces import is_small, over_pieces
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.signals.signal import SAMPLE, Ingredient, Of

# Half sums of squares between these are known well from float32, which loses squares below 1e-38, even 1e9 of them.
_LEAST, _MOST = np.float64(1e-24), np.float64(1e36)
# Powers of two by which float32 is brought into that range: numbers from 1e-45 on, and up to 3e38.
_UP, _DOWN = 2.0**100, 2.0**-80
# XLA on a CPU adds one number after the other, each waiting for the one before: groups of so many, of which the
# processor has several under way at once, take half the time (TF 2.21, 3.2 M parameters).
_GROUP = 32
_PARTS: dict[bool, list[int]] = {False: [], True: [2]}  # axes that `real` adds to a complex number's


def dense_values(gradient: Any, shape: tf.TensorShape | None = None) -> tf.Tensor:
    """The values of a gradient; of a sparse one (an embedding's), its rows with those of equal index summed.

    Of a complex one, the absolute values.

    Args:
        gradient: of a variable.
        shape: of the variable, where a trace that serves several sizes does not know it.
    """
    if not isinstance(gradient, tf.IndexedSlices) or graph.in_xla():  # where tf.unique has no static shape
        values = tf.convert_to_tensor(gradient)
        if shape is not None:
            values.set_shape(shape)
    else:
        rows, position = tf.unique(gradient.indices)
        values = tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))
    return tf.abs(values) if values.dtype.is_complex else values


def real(values: Any) -> tf.Tensor:
    """Numbers as real ones: of a complex one both parts, along an axis of their own at the end."""
    values = tf.convert_to_tensor(values)
    if not values.dtype.is_complex:
        return values
    return tf.stack([tf.math.real(values), tf.math.imag(values)], axis=-1)


def sizes(variables: Sequence[tf.Variable]) -> list[int]:
    """Of how many numbers variables are."""
    return [int(np.prod(v.shape)) for v in variables]


def half_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Half the sums of squares, whatever their size: gradients of 1e-25 (a deep sigmoid net) or 1e25 have a norm too.

    The root and the sum over variables are taken on the host.
    """
    return tf.stack([half_square(x) if graph.in_xla() else _half_square(x) for x in tensors])


def half_square(tensor: tf.Tensor) -> tf.Tensor:
    """Half the sum of squares, in double precision."""
    if graph.in_xla():
        return _grouped(tensor)
    if tensor.dtype == tf.float64:
        return tf.nn.l2_loss(tensor)
    # Summed in single precision at three scales: a copy in double precision would take twice the tensor's memory.
    tensor = tf.cast(tensor, tf.float32)
    plain, up, down = (
        tf.cast(tf.nn.l2_loss(tensor * scale if scale != 1 else tensor), tf.float64) / scale**2
        for scale in (1.0, _UP, _DOWN)
    )
    return tf.where(plain < _LEAST, up, tf.where(plain > _MOST, down, plain))


_half_square = graph.Once(half_square)


def _grouped(tensor: tf.Tensor) -> tf.Tensor:
    """For XLA, to which the cast to double precision is no copy."""
    flat = tf.reshape(tensor, [-1])
    size, total = flat.shape[0], tf.constant(0, tf.float64)
    if size is None:
        return tf.nn.l2_loss(tf.cast(flat, tf.float64))
    sums = flat
    while size >= 4 * _GROUP:
        first = sums is flat
        groups, rest = divmod(size, _GROUP)
        if rest:
            total += tf.reduce_sum(_square(sums[-rest:], first))
        grouped = tf.reshape(sums[:-rest] if rest else sums, [groups, _GROUP])
        sums, size = tf.reduce_sum(_square(grouped, first), axis=1), groups
    return (total + tf.reduce_sum(_square(sums, sums is flat))) / 2


def _square(values: tf.Tensor, first: bool) -> tf.Tensor:
    """The squares of what is not summed yet. Sliced first, or XLA would keep them all (TF 2.21)."""
    return tf.square(tf.cast(values, tf.float64)) if first else values


def quick_half_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The same summed in single precision, without a copy in double; XLA sums in double precision at once."""
    if graph.in_xla():
        return half_squares(tensors)
    wide = tf.float64 if any(x.dtype == tf.float64 for x in tensors) else tf.float32
    halves = [tf.nn.l2_loss(tf.cast(x, tf.float32) if x.dtype.size < tf.float32.size else x) for x in tensors]
    return tf.cast(tf.stack([tf.cast(half, wide) for half in halves]), tf.float64)


def doubtful(halves: tf.Tensor) -> tf.Tensor:
    """Whether any of these sums may be off, for which single precision is too narrow."""
    within = tf.raw_ops.ClipByValue(t=halves, clip_value_min=_LEAST, clip_value_max=_MOST)
    return tf.reduce_any(tf.not_equal(halves, within))  # NaN is not equal to itself


def snapshot(deep: bool | tf.Tensor, variables: Sequence[tf.Variable], whole: bool) -> Any:
    """The weights before a deep step, else nothing; for `deep_row`.

    A value shares its memory with the variable until that is written to. All are one tensor, a list of TensorFlow's:
    what a branch gives and takes costs each step (TF 2.21: 10 us with one tensor, 34 us with 16). XLA has no such list;
    it keeps of the values what is read.
    """
    if graph.in_xla():
        return [] if deep is False else [real(v.read_value()) for v in variables]
    dtype = _list_dtype(variables)

    def empty() -> tf.Tensor:
        none = tf.constant(-1)
        return tf.raw_ops.EmptyTensorList(element_shape=none, max_num_elements=none, element_dtype=dtype)

    def values() -> tf.Tensor:
        held = empty()
        for variable in variables:
            value = tf.cast(real(variable.read_value()), dtype)
            held = tf.raw_ops.TensorListPushBack(input_handle=held, tensor=value)
        return held

    return graph.rarely(deep, values, empty, whole)


def _list_dtype(variables: Sequence[tf.Variable]) -> tf.DType:
    return tf.float64 if any(v.dtype in (tf.float64, tf.complex128) for v in variables) else tf.float32


def _unpacked(before: Any, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """What `snapshot` gave at a deep step, in the order of the variables."""
    if isinstance(before, list):
        return before
    found, dtype = [], _list_dtype(variables)
    for variable in reversed(variables):
        before, value = tf.raw_ops.TensorListPopBack(
            input_handle=before,
            element_shape=tf.constant(
                [*variable.shape.as_list(), *_PARTS[variable.dtype.is_complex]], tf.int32
            ),
            element_dtype=dtype,
        )
        found.append(value)
    return found[::-1]


class Part:
    """A part of a variable's tensors, flat, for `signals.signal.Ingredient.trace`."""

    def __init__(self, new: Any = None, old: Any = None, gradient: Any = None, pairs: bool = False) -> None:
        self.new, self.old, self.gradient = new, old, gradient
        self._pairs = pairs  # whether two of the weights' numbers are one complex one

    def half_square(self, values: tf.Tensor) -> tf.Tensor:
        """Half the sum of squares."""
        return half_square(values)

    def count(self, condition: tf.Tensor) -> tf.Tensor:
        """How often a condition holds."""
        return tf.reduce_sum(tf.cast(condition, tf.float64))

    def largest(self, values: tf.Tensor) -> tf.Tensor:
        """The largest absolute value."""
        sizes = tf.abs(values)
        if self._pairs and values is not self.gradient:
            sizes = tf.norm(tf.reshape(values, [-1, 2]), axis=1)
        return tf.cast(tf.reduce_max(sizes), tf.float64)


def _join(joins: Sequence[str], one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    if set(joins) == {"sum"}:
        return one + other
    return tf.where(tf.constant([join == "sum" for join in joins]), one + other, tf.maximum(one, other))


def _deep(pairs: bool, small: bool, new: tf.Tensor, old: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The stateless ingredients of one variable, in the order of `signals.INGREDIENTS`."""
    wide = tf.float64 if new.dtype == tf.float64 else tf.float32
    of_weights, of_gradient = (
        [one for one in INGREDIENTS if not one.state and one.of is of] for of in (Of.WEIGHTS, Of.GRADIENT)
    )

    def weights(after: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        part = Part(tf.cast(after, wide), tf.cast(before, wide), pairs=pairs)
        return tf.stack([one.trace(part) for one in of_weights])

    def gradients(values: tf.Tensor) -> tf.Tensor:
        return tf.stack([one.trace(Part(gradient=values)) for one in of_gradient])

    if graph.in_xla():  # which keeps nothing in between, but would copy what a loop reads
        flat = [tf.reshape(values, [-1]) for values in (new, old, gradient)]
        return tf.concat([weights(*flat[:2]), gradients(flat[2])], axis=0)
    # A sparse gradient has another size.
    found = [
        over_pieces(weights, partial(_join, [one.join for one in of_weights]), [new, old], small),
        over_pieces(gradients, partial(_join, [one.join for one in of_gradient]), [gradient], small),
    ]
    return tf.concat(found, axis=0)


# In a graph of its own, which is traced once for all variables of a dtype.
_of_variable = {
    kind: graph.Once(partial(_deep, *kind)) for kind in itertools.product((False, True), repeat=2)
}


def _kept(
    one: Ingredient, held: tf.Tensor, gradients: Sequence[tf.Tensor], variables: Sequence[tf.Variable]
) -> tuple[tf.Tensor, tf.Tensor]:
    """An ingredient with a state: its numbers and the new state, a row a variable."""
    found = []
    for state, gradient, variable in zip(tf.unstack(held), gradients, variables, strict=True):
        if (
            gradient.shape.rank is None or gradient.shape != variable.shape
        ):  # a sparse one: other rows each time
            found.append((tf.constant(float("nan"), tf.float64), state))
            continue
        go_on = partial(_with_state, one) if graph.in_xla() else _of_state[one.name]
        found.append(go_on(gradient, state))
    numbers, states = zip(*found, strict=True)
    return tf.stack(numbers), tf.stack(states)


def _with_state(one: Ingredient, gradient: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """An ingredient with a state, of one variable."""
    flat = tf.reshape(gradient, [-1])
    size = tf.size(flat) if flat.shape[0] is None else flat.shape[0]
    sample = tf.cast(flat[:: -(-size // SAMPLE)], tf.float64)
    sample = tf.pad(sample, [[0, SAMPLE - (tf.size(sample) if sample.shape[0] is None else sample.shape[0])]])
    return one.trace(Part(gradient=tf.ensure_shape(sample, [SAMPLE])), tf.ensure_shape(state, [one.state]))


_of_state = {one.name: graph.Once(partial(_with_state, one)) for one in INGREDIENTS if one.state}


def deep_row(
    done: tf.Tensor,
    variables: Sequence[tf.Variable],
    before: Any,
    gradients: Sequence[tf.Tensor],
    applied: tf.Tensor | None,
    kept: Mapping[str, tf.Variable],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The ingredients of the deep signals, after the number of the step; and what `kept` is to hold from now on.

    Where `applied` is 0 no update was made, and nothing is told of the update.
    """
    found: list[tf.Tensor] = []
    for variable, *told in zip(variables, _unpacked(before, variables), gradients, strict=True):
        kind = variable.dtype.is_complex, is_small(variable.shape)
        # In XLA a shape that is not known could not be told apart in groups.
        measure = partial(_deep, *kind) if graph.in_xla() else _of_variable[kind]
        with graph.after(found[-1:]):  # one after the other: what they take in between is taken once
            found.append(measure(real(variable.read_value()), *told))
    numbers = tf.unstack(tf.stack(found, axis=1))
    states = []
    for one in INGREDIENTS:
        if one.state:
            of_all, state = _kept(one, kept[one.name].read_value(), gradients, variables)
            numbers.append(of_all)
            states.append(state)
    if applied is not None:
        unknown = tf.constant(float("nan"), tf.float64)
        numbers = [
            tf.where(applied > 0, values, unknown) if one.of_update else values
            for one, values in zip(INGREDIENTS, numbers, strict=True)
        ]
    return tf.concat([tf.cast(done + 1, tf.float64)[None], *numbers], axis=0), states
