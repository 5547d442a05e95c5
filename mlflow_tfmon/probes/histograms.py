"""Histograms of weights and gradients, as TensorFlow ops (bins: `stream.bins`)."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph
from mlflow_tfmon.probes.pieces import is_small, over_pieces
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.recording import Recording
from mlflow_tfmon.stream.ring import Ring

_FIRST = (
    127 + bins.LOWEST
) * bins.PER_OCTAVE - 1  # what the bits of a float32 below 2^LOWEST begin with, at most
_DIGITS = 21  # bits after the exponent and the two digits that tell the bin
_INFINITE = 0x7F800000
_readers: weakref.WeakKeyDictionary[Ring, graph.Reader] = weakref.WeakKeyDictionary()


def _counted(numbers: tf.Tensor) -> tf.Tensor:
    """How often each number of a bin, or the one after the last, is there."""
    if tf.config.list_logical_devices("GPU"):  # where the op below refuses `enable_op_determinism` (TF 2.21)
        ones = tf.ones_like(numbers, dtype=tf.float64)
        return tf.math.unsorted_segment_sum(ones, numbers, bins.COUNT + 1)
    # 5 ns an element where a sum over segments takes 40 (TF 2.21, two cores).
    size = tf.constant(bins.COUNT + 1, numbers.dtype)
    return tf.raw_ops.DenseBincount(input=numbers, size=size, weights=tf.zeros([0], tf.int32))


def _piece(values: tf.Tensor) -> tf.Tensor:
    values = tf.cast(values, tf.float32)
    # In 64 bits: arithmetic with 32 is done by the host, where the weights are on a GPU (TF 2.16 to 2.21).
    bits = tf.cast(tf.bitcast(values, tf.int32), tf.int64)
    negative = tf.cast(bits < 0, tf.int64)
    size = tf.bitwise.bitwise_and(bits, 0x7FFFFFFF)
    # A negative number's bin holds the edge that is farther from zero: one less in the last digit makes it so.
    from_zero = tf.bitwise.right_shift(size - negative, _DIGITS) - _FIRST
    bin_ = bins.MIDDLE + tf.clip_by_value(from_zero, 0, bins.MIDDLE) * (1 - 2 * negative)
    finite = size < _INFINITE
    counts = _counted(tf.where(finite, bin_, bins.COUNT))
    zeros = tf.reduce_sum(tf.cast(tf.equal(size, 0), tf.float64))
    least = tf.reduce_min(tf.where(finite, values, float("inf")))
    most = tf.reduce_max(tf.where(finite, values, float("-inf")))
    ends = tf.cast(tf.stack([least, most]), tf.float64)
    return tf.concat([tf.cast(counts, tf.float64), zeros[None], ends], axis=0)


def _join(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    least, most = tf.minimum(one[-2:-1], other[-2:-1]), tf.maximum(one[-1:], other[-1:])
    return tf.concat([one[:-2] + other[:-2], least, most], axis=0)


def _histogram(small: bool, values: tf.Tensor) -> tf.Tensor:
    """The row of one histogram; of complex numbers, that of their absolute values."""
    return over_pieces(_piece, _join, [tf.abs(values) if values.dtype.is_complex else values], small)


_row = {small: graph.Once(partial(_histogram, small)) for small in (False, True)}


def _counts(values: Sequence[tf.Tensor]) -> np.ndarray:
    """The histograms of weights: a row a variable."""
    return np.stack([row.numpy() for row in [_row[is_small(one.shape)](one) for one in values]])


def epoch_ended(
    recording: Recording, rings: Sequence[Ring], epoch: int, later: Callable[[Callable[[], None]], None]
) -> None:
    """Has the weights counted as they are at an epoch's end: of the first 32, later more rarely.

    Args:
        recording: takes the counts.
        rings: with the steps that the weights come of.
        epoch: its number.
        later: has the counting done before the recording takes further steps: the training does not wait for it.
    """
    with contained("the histograms at an epoch's end", "they are not recorded"):
        for ring in rings if bins.due(epoch) else ():
            values = _readers.setdefault(ring, graph.Reader()).read(ring.weights)
            later(partial(recording.weights, ring, partial(_counts, values)))


def row(done: tf.Tensor, weights: Sequence[tf.Variable], gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """The row of a step's histograms."""
    rows: list[tf.Tensor] = []
    small = [is_small(one.shape) for one in weights]  # and so are their gradients, sparse or not
    for tensor, one in zip((*weights, *gradients), itertools.cycle(small), strict=False):
        with graph.after(rows[-1:]):  # one after the other: what they take in between is taken once
            # XLA would not know how large the pieces are of what has no shape.
            histogram = partial(_histogram, one) if graph.in_xla() else _row[one]
            rows.append(histogram(tf.convert_to_tensor(tensor)))
    return tf.concat([tf.cast(done + 1, tf.float64)[None], *rows], axis=0)
