"""Losses, metrics, input pipelines and callbacks for the configurations of `benchmarks.sets.tasks`."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops


# -- losses and measures -------------------------------------------------------------------------------------------
def exponential_life(y: Any, log_rate: Any) -> Any:
    """How unlikely times are that are exponentially distributed, some of which had not ended."""
    return ops.exp(log_rate) * y[:, :1] - log_rate * y[:, 1:]


def exponential_life_of_rate(y: Any, rate: Any) -> Any:
    """The same, of the rate itself."""
    return rate * y[:, :1] - ops.log(rate) * y[:, 1:]


def concordant(y: Any, rate: Any) -> Any:
    """Of the pairs of which it is known which failed first: the share in which that one has the higher rate."""
    first = ops.cast(y[:, :1] < ops.transpose(y[:, :1]), "float32") * y[:, 1:]
    higher = ops.cast(rate > ops.transpose(rate), "float32")
    return ops.sum(first * higher) / ops.maximum(ops.sum(first), 1.0)


def pinball(y: Any, quantiles: Any) -> Any:
    """For the quantiles of a tenth, a half and nine tenths."""
    share = ops.array([0.1, 0.5, 0.9])
    return ops.mean(ops.maximum(share * (y - quantiles), (share - 1) * (y - quantiles)), -1)


def mse(y: Any, quantiles: Any) -> Any:
    """The squared error of the middle one of three quantiles."""
    return ops.square(y[:, 0] - quantiles[:, 1])


def margin(_: Any, apart: Any) -> Any:
    """That what is the same is nearer by 1 than what is not."""
    return ops.maximum(0.0, 1.0 + apart[:, 0] - apart[:, 1])


def closer(_: Any, apart: Any) -> Any:
    """Is what is the same nearer than what is not?"""
    return ops.cast(apart[:, 0] < apart[:, 1], "float32")


def in_batch(_: Any, near: Any) -> Any:
    """That each row's own column is the nearest of the batch."""
    return ops.sparse_categorical_crossentropy(ops.arange(ops.shape(near)[0]), near, from_logits=True)


def matched(_: Any, near: Any) -> Any:
    """Is each row's own column the nearest of the batch?"""
    return ops.cast(ops.argmax(near, -1) == ops.arange(ops.shape(near)[0]), "float32")


# -- feeds ---------------------------------------------------------------------------------------------------------
def _rows(x: Any, y: Any, *more: Any) -> tf.data.Dataset:
    x = tuple(x) if isinstance(x, list) else x
    return tf.data.Dataset.from_tensor_slices((x, y, *more)).shuffle(4000, seed=1)


def endless(x: Any, y: Any, batch: int) -> tf.data.Dataset:
    """Batches without end: `steps_per_epoch` makes epochs of them."""
    return _rows(x, y).repeat().batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def weighed(x: Any, y: Any, batch: int) -> tf.data.Dataset:
    """Each example has a weight: the scarcer its class, the more."""
    weight = (len(y) / 2 / np.bincount(y))[y].astype(np.float32)
    return _rows(x, y, weight).batch(batch).cache()


def read_one_by_one(x: Any, y: Any, batch: int) -> tf.data.Dataset:
    """Each example is read for itself, which takes a millisecond."""

    def read(x: Any, y: Any) -> Any:
        time.sleep(0.001)
        return x, y

    def ready(one: Any, label: Any) -> Any:
        one, label = tf.numpy_function(read, (one, label), (tf.float32, tf.int64))
        return tf.ensure_shape(one, x.shape[1:]), tf.ensure_shape(label, ())

    return tf.data.Dataset.from_tensor_slices((x, y)).map(ready).batch(batch)


# -- how fit goes --------------------------------------------------------------------------------------------------
def by_steps() -> dict[str, Any]:
    """Sixty steps are an epoch."""
    return {"steps_per_epoch": 60}


def patient() -> dict[str, Any]:
    """Stops long after the best epoch, and goes back to it."""
    return {
        "callbacks": [keras.callbacks.EarlyStopping("val_accuracy", patience=25, restore_best_weights=True)]
    }


def lower_on_plateau() -> dict[str, Any]:
    """Halves the rate when the validation's loss rests."""
    return {"callbacks": [keras.callbacks.ReduceLROnPlateau(patience=3, factor=0.5, min_lr=1e-4)]}


def lower_at_once() -> dict[str, Any]:
    """Takes the rate to next to nothing at the first epochs that do not bring much."""
    return {"callbacks": [keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=1.0, factor=0.01)]}


def far_up_at_times() -> dict[str, Any]:
    """A rate that is high in every third epoch, by mistake."""
    return {"callbacks": [keras.callbacks.LearningRateScheduler(lambda at: 0.5 if at % 3 == 2 else 2e-3)]}
