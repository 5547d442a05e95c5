"""What is measured, as TensorFlow ops.

A new quantity per variable is added here, in `stream.ring.DEEP` and in `stream.rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mlflow_tfmon.probes import graph


def dense_values(gradient: Any) -> tf.Tensor:
    """The values of a gradient; of a sparse one (an embedding's), its rows with those of equal index summed."""
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    if graph.in_xla():  # tf.unique has no static shape
        return tf.convert_to_tensor(gradient)
    rows, position = tf.unique(gradient.indices)
    return tf.math.unsorted_segment_sum(gradient.values, position, tf.size(rows))


def half_square(x: tf.Tensor) -> tf.Tensor:
    """Half the sum of squares, in double precision: gradients of 1e-25 (a deep sigmoid net) or 1e25 have a norm too.

    One fused op and a cast a variable; the root and the sum over variables are taken on the host.
    """
    return tf.nn.l2_loss(tf.cast(x, tf.float64))


def half_squares(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [half_square(x) for x in tensors]


def snapshot(deep: tf.Tensor, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Copies of the weights at a deep step; else empty tensors (XLA wants one shape: zeros), which cost nothing."""
    if graph.in_xla():
        empty = [tf.zeros(v.shape, v.dtype) for v in variables]
    else:
        nothing = {dtype: tf.zeros([0], dtype) for dtype in {v.dtype for v in variables}}
        empty = [nothing[v.dtype] for v in variables]
    copies = graph.rarely(deep, lambda: [tf.identity(v) for v in variables], lambda: empty)
    return list(copies)


@graph.Once
def _of_variable(new: tf.Tensor, old: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """The deep quantities of one variable, in the order of `stream.ring.DEEP`."""
    after, before = tf.cast(new, tf.float64), tf.cast(old, tf.float64)
    nonzero = tf.reduce_sum(tf.cast(tf.not_equal(gradient, 0), tf.float64))
    change = tf.nn.l2_loss(after - before)
    return tf.stack([tf.nn.l2_loss(after), tf.nn.l2_loss(before), change, nonzero])


def deep_row(
    step: tf.Tensor,
    variables: Sequence[tf.Variable],
    before: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    applied: tf.Tensor | None,
) -> tf.Tensor:
    """What the host makes the deep quantities of (`stream.ring.DEEP`).

    Where `applied` is 0 no update was made, and nothing is told of the change.
    """
    found = [
        _of_variable(tf.convert_to_tensor(v), *told)
        for v, *told in zip(variables, before, gradients, strict=True)
    ]
    after, earlier, change, nonzero = tf.unstack(tf.stack(found, axis=1))
    if applied is not None:
        change = tf.where(applied > 0, change, tf.constant(float("nan"), tf.float64))
    return tf.concat([tf.cast(step, tf.float64)[None], after, earlier, change, nonzero], axis=0)
