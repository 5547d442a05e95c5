"""What is measured, as TensorFlow ops.

A new quantity per variable is added here, in `stream.ring.DEEP` and in `stream.rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.probes import graph

# Half sums of squares between these are known well from float32, which loses squares below 1e-38, even 1e9 of them.
_LEAST, _MOST = np.float64(1e-24), np.float64(1e36)


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


def half_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Half the sums of squares, in double precision: gradients of 1e-25 (a deep sigmoid net) or 1e25 have a norm too.

    The root and the sum over variables are taken on the host.
    """
    return tf.stack([tf.nn.l2_loss(tf.cast(x, tf.float64)) for x in tensors])


def quick_half_squares(tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """The same summed in single precision, without a copy in double, and whether that may be off for any of them.

    XLA, for which a cast costs nothing, sums in double precision at once.
    """
    if graph.in_xla():
        return half_squares(tensors), tf.constant(False)
    wide = tf.float64 if any(x.dtype == tf.float64 for x in tensors) else tf.float32
    halves = [tf.nn.l2_loss(tf.cast(x, tf.float32) if x.dtype.size < tf.float32.size else x) for x in tensors]
    sums = tf.cast(tf.stack([tf.cast(half, wide) for half in halves]), tf.float64)
    within = tf.raw_ops.ClipByValue(t=sums, clip_value_min=_LEAST, clip_value_max=_MOST)
    return sums, tf.reduce_any(tf.not_equal(sums, within))  # NaN is not equal to itself


def snapshot(deep: tf.Tensor, variables: Sequence[tf.Variable]) -> tf.Tensor:
    """The weights at a deep step, one after the other; else an empty tensor (XLA wants one shape: zeros)."""
    dtype = tf.float64 if any(v.dtype in (tf.float64, tf.complex128) for v in variables) else tf.float32
    size = sum(sizes(variables)) if graph.in_xla() else 0

    def copy() -> tf.Tensor:
        return tf.concat([tf.reshape(tf.cast(real(v), dtype), [-1]) for v in variables], axis=0)

    return graph.rarely(deep, copy, lambda: tf.zeros([size], dtype))


def sizes(variables: Sequence[tf.Variable]) -> list[int]:
    """Of how many real numbers variables are."""
    return [int(np.prod(v.shape)) * (2 if v.dtype.is_complex else 1) for v in variables]


@graph.Once
def _of_variable(new: tf.Tensor, old: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The deep quantities of one variable, in the order of `stream.ring.DEEP`; `old` is flat."""
    after, before = tf.reshape(tf.cast(new, tf.float64), [-1]), tf.cast(old, tf.float64)
    nonzero = tf.reduce_sum(tf.cast(tf.not_equal(gradient, 0), tf.float64))
    change = tf.nn.l2_loss(after - before)
    return tf.stack([tf.nn.l2_loss(after), tf.nn.l2_loss(before), change, nonzero])


def deep_row(
    step: tf.Tensor,
    variables: Sequence[tf.Variable],
    before: tf.Tensor,
    gradients: Sequence[tf.Tensor],
    applied: tf.Tensor | None,
) -> tf.Tensor:
    """What the host makes the deep quantities of (`stream.ring.DEEP`).

    Where `applied` is 0 no update was made, and nothing is told of the change.
    """
    found = [
        _of_variable(real(v), *told)
        for v, *told in zip(variables, tf.split(before, sizes(variables)), gradients, strict=True)
    ]
    after, earlier, change, nonzero = tf.unstack(tf.stack(found, axis=1))
    if applied is not None:
        change = tf.where(applied > 0, change, tf.constant(float("nan"), tf.float64))
    return tf.concat([tf.cast(step, tf.float64)[None], after, earlier, change, nonzero], axis=0)
