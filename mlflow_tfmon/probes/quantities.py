"""What is measured, as TensorFlow ops.

A new quantity per variable is added here, in `stream.ring.DEEP` and in `stream.rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.probes import graph
from mlflow_tfmon.probes.pieces import over_pieces

# Half sums of squares between these are known well from float32, which loses squares below 1e-38, even 1e9 of them.
_LEAST, _MOST = np.float64(1e-24), np.float64(1e36)
# Powers of two by which float32 is brought into that range: numbers from 1e-45 on, and up to 3e38.
_UP, _DOWN = 2.0**100, 2.0**-80
# XLA on a CPU adds one number after the other, each waiting for the one before: groups of so many, of which the
# processor has several under way at once, take half the time (TF 2.21, 3.2 M parameters).
_GROUP = 32
_PARTS: dict[bool, list[int]] = {False: [], True: [2]}  # axes that `real` adds to a complex number's


def dense_values(gradient: Any) -> tf.Tensor:
    """The values of a gradient; of a sparse one (an embedding's), its rows with those of equal index summed.

    Of a complex one, the absolute values.
    """
    if not isinstance(gradient, tf.IndexedSlices) or graph.in_xla():  # where tf.unique has no static shape
        values = tf.convert_to_tensor(gradient)
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
    return tf.stack([half_square(x) for x in tensors])


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
    found = []
    for variable in reversed(variables):
        before, value = tf.raw_ops.TensorListPopBack(
            input_handle=before,
            element_shape=tf.constant(
                [*variable.shape.as_list(), *_PARTS[variable.dtype.is_complex]], tf.int32
            ),
            element_dtype=_list_dtype(variables),
        )
        found.append(value)
    return found[::-1]


@graph.Once
def _of_variable(new: tf.Tensor, old: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    return _deep(new, old, gradient)


def _deep(new: tf.Tensor, old: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The deep quantities of one variable, in the order of `stream.ring.DEEP`."""
    wide = tf.float64 if new.dtype == tf.float64 else tf.float32

    def halves(after: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        after, before = tf.cast(after, wide), tf.cast(before, wide)
        return half_squares([after, before, after - before])

    def nonzero(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(tf.not_equal(values, 0), tf.float64))

    if graph.in_xla():  # which keeps nothing in between, but would copy what a loop reads
        return tf.concat([halves(new, old), nonzero(gradient)[None]], axis=0)
    # A sparse gradient has another size.
    squares = over_pieces(halves, tf.add, [new, old])
    return tf.concat([squares, over_pieces(nonzero, tf.add, [gradient])[None]], axis=0)


def deep_row(
    done: tf.Tensor,
    variables: Sequence[tf.Variable],
    before: Any,
    gradients: Sequence[tf.Tensor],
    applied: tf.Tensor | None,
) -> tf.Tensor:
    """What the host makes the deep quantities of (`stream.ring.DEEP`), after the number of the step.

    Where `applied` is 0 no update was made, and nothing is told of the change.
    """
    # In XLA a shape that is not known could not be told apart in groups.
    measure = _deep if graph.in_xla() else _of_variable
    found: list[tf.Tensor] = []
    for variable, *told in zip(variables, _unpacked(before, variables), gradients, strict=True):
        with graph.after(found[-1:]):  # one after the other: what they take in between is taken once
            found.append(measure(real(variable.read_value()), *told))
    after, earlier, change, nonzero = tf.unstack(tf.stack(found, axis=1))
    if applied is not None:
        change = tf.where(applied > 0, change, tf.constant(float("nan"), tf.float64))
    return tf.concat([tf.cast(done + 1, tf.float64)[None], after, earlier, change, nonzero], axis=0)
