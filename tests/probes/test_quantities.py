"""Tests of computations on single tensors: correct for any size, any magnitude, and any compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.probes import histograms, quantities
from mlflow_tfmon.probes.pieces import PIECE, over_pieces
from mlflow_tfmon.stream import bins

SIZES = (1, 31, 32, 33, 127, 128, 129, 4096, 100_003)
SCALES = (1e-37, 1e-30, 1e-20, 1e-13, 1e-6, 1.0, 1e6, 1e13, 1e19, 1e30)


def ways(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Traced with the shape that it is called with, and compiled by XLA."""
    return [tf.function(function, autograph=False), tf.function(function, autograph=False, jit_compile=True)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_sums_of_squares_are_numpys_in_double_precision(dtype: str) -> None:
    half = [tf.function(quantities.half_squares, jit_compile=jit, autograph=False) for jit in (False, True)]
    random = np.random.default_rng(0)
    for scale in SCALES if dtype in ("float32", "float64") else (1e-3, 1.0, 1e3):
        tensors = [
            tf.cast(random.normal(size=size) * scale, dtype) for size in SIZES[:: 1 if scale == 1 else 3]
        ]
        expected = [0.5 * np.sum(np.square(tf.cast(one, tf.float64).numpy())) for one in tensors]
        for function in half:
            np.testing.assert_allclose(function(tensors).numpy(), expected, rtol=2e-6)


def test_zeros_and_what_is_not_finite_stay_what_they_are() -> None:
    tensors = [tf.zeros([100]), tf.constant([1.0, np.inf]), tf.constant([np.nan, 1.0])]
    for function in ways(quantities.half_squares):
        zero, infinite, undefined = function(tensors).numpy()
        assert zero == 0 and np.isinf(infinite) and np.isnan(undefined)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 3])
def test_what_is_computed_in_pieces_is_that_of_the_whole(size: int) -> None:
    values = tf.constant(np.random.default_rng(0).integers(-9, 9, (1, size)), tf.float32)

    def total(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        return over_pieces(lambda a, b: tf.reduce_sum(a * b), tf.add, [one, other])

    unknown = tf.function(total, autograph=False, input_signature=[tf.TensorSpec(None, tf.float32)] * 2)
    for function in (*ways(total), unknown):
        assert float(function(values, 2 * values)) == 2 * np.sum(np.square(values.numpy()))


def test_a_histogram_of_several_pieces_is_numpys() -> None:
    random = np.random.default_rng(0)
    values = (random.normal(size=2 * PIECE + 5) * np.exp2(random.integers(-50, 12, 2 * PIECE + 5))).astype(
        "float32"
    )
    values[:3], values[3:5] = 0, (np.inf, np.nan)
    finite = values[np.isfinite(values)].astype(float)
    expected, _ = np.histogram(finite, bins.EDGES)
    done = tf.constant(6, tf.int64)
    for function in ways(lambda one: histograms.row(done, [one], [])):
        row = function(tf.constant(values)).numpy()
        assert row[0] == 7
        np.testing.assert_array_equal(row[1 : 1 + bins.COUNT], expected)
        np.testing.assert_array_equal(row[1 + bins.COUNT :], [2, 3, finite.min(), finite.max()])
