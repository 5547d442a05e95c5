"""What is measured, as TensorFlow ops.

A new quantity per variable is added here, in `stream.ring.DEEP` and in `stream.recording`.
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


def deep_row(
    step: tf.Tensor,
    variables: Sequence[tf.Variable],
    before: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    applied: tf.Tensor | None,
) -> tf.Tensor:
    """What the host makes the deep quantities of (`stream.ring.DEEP`); few ops, since tracing takes long.

    Where `applied` is 0 no update was made, and nothing is told of the change.
    """
    after, earlier, changes, nonzero = [], [], [], []
    for variable, old, gradient in zip(variables, before, gradients, strict=True):
        # Traced by eager code at a step that is not deep, it would be known as empty for ever.
        old = tf.ensure_shape(tf.compat.v1.placeholder_with_default(old, None), variable.shape)
        new, old = tf.cast(variable, tf.float64), tf.cast(old, tf.float64)
        after.append(tf.nn.l2_loss(new))
        earlier.append(tf.nn.l2_loss(old))
        changes.append(tf.nn.l2_loss(new - old))
        nonzero.append(tf.reduce_sum(tf.cast(tf.not_equal(gradient, 0), tf.float64)))
    change = tf.stack(changes)
    if applied is not None:
        change = tf.where(applied > 0, change, tf.constant(float("nan"), tf.float64))
    head = tf.stack([tf.cast(step, tf.float64), *after, *earlier])
    return tf.concat([head, change, tf.stack(nonzero)], axis=0)
