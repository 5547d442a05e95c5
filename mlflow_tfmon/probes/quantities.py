"""What is measured, as TensorFlow ops. A new quantity per variable is added here and named in `stream.ring.DEEP`."""

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
        empty = [tf.zeros([0], v.dtype) for v in variables]
    copies = graph.rarely(
        deep, lambda: [tf.identity(v) for v in variables], lambda: [tf.identity(e) for e in empty]
    )
    return list(copies)


def deep_row(
    step: tf.Tensor,
    variables: Sequence[tf.Variable],
    before: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
    applied: tf.Tensor | None,
) -> tf.Tensor:
    """Weight norms after the step, update ratios ||after - before|| / ||before||, shares of zeros in the gradients.

    An update is all that the step did to the weights: weight decay, averaging and constraints included. Where
    `applied` is 0 none was made, and the ratio is not defined.
    """
    weight_norms, ratios, zeros = [], [], []
    for variable, old, gradient in zip(variables, before, gradients, strict=True):
        new = tf.convert_to_tensor(variable)
        # Traced by eager code at a step that is not deep, it would be known as empty for ever.
        old = tf.reshape(tf.compat.v1.placeholder_with_default(old, None), tf.shape(new))
        norm_before = tf.sqrt(2 * half_square(old))
        weight_norms.append(tf.sqrt(2 * half_square(new)))
        update = tf.sqrt(2 * half_square(tf.cast(new, tf.float64) - tf.cast(old, tf.float64)))
        undefined = tf.constant(float("nan"), tf.float64)
        defined = norm_before > 0 if applied is None else (norm_before > 0) & (applied > 0)
        ratios.append(tf.where(defined, update / norm_before, undefined))
        # The elements that a sparse gradient leaves out are zeros as well.
        size = tf.cast(tf.size(new), tf.float64)
        zeros.append((size - tf.cast(tf.math.count_nonzero(gradient), tf.float64)) / size)
    return tf.stack([tf.cast(step, tf.float64), *weight_norms, *ratios, *zeros])
