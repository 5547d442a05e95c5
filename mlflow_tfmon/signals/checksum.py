"""The checksum of a variable's weights, which tells whether those of two runs are the same, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_tfmon.signals.signal import Ingredient, Signal

BITS = 24  # of a checksum, which float32 holds too
_ODD = 0x5BD1E995  # of MurmurHash2: the product with any 32 bits is within int64


def _sum(v: Any) -> Any:
    """The sum of a hash of each element: exact in double precision up to 2^29 elements, in whatever order.

    The hash is not linear, so that changes of a last bit up and down do not cancel. It is computed in int64, since
    TensorFlow does the arithmetic of int32 on the host, also for a GPU (TF 2.16 to 2.21).
    """
    import tensorflow as tf

    bits = tf.cast(tf.bitcast(v.new, tf.int32), tf.int64) * _ODD
    mixed = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(29, tf.int64)))
    kept = tf.bitwise.bitwise_and(mixed, tf.constant(2**BITS - 1, tf.int64))
    return tf.reduce_sum(tf.cast(kept, tf.float64))


CHECKSUM = Ingredient("checksum", _sum)

SIGNALS = (
    Signal(
        name="weight_checksum",
        finish=lambda a: np.fmod(a["checksum"], 2.0**BITS),
        needs=(CHECKSUM,),
        formula="Σ of a hash of the bits of each weight after the step, modulo 2²⁴",
        healthy="equal in two runs whose weights are, bit for bit",
        curve=False,
    ),
)
