"""The largest weight and gradient, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.probes import quantities
from mlflow_tfmon.signals import INGREDIENTS
from tests.signals.compared import FEW_WAYS, compare


@pytest.mark.slow
@pytest.mark.parametrize("way", FEW_WAYS)
def test_they_are_the_largest_absolute_values(fresh: None, way: str) -> None:
    compare(
        way,
        {
            "largest_weight": lambda steps: float(np.abs(steps[-1].new).max()),
            "largest_gradient": lambda steps: float(np.abs(steps[-1].gradient).max()),
        },
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("size", [7, 3 * 2**18 + 5])  # of one part, and of several
@pytest.mark.parametrize("special", [None, np.nan, np.inf, -np.inf])
def test_any_kind_of_number_in_parts_of_any_size(dtype: str, size: int, special: float | None) -> None:
    random = np.random.default_rng(size)
    new, gradient = random.normal(size=(2, size))
    if dtype.startswith("complex"):
        new = new + 1j * random.normal(size=size)
    new[size // 2], gradient[size // 3] = 9.5, -8.5
    if special is not None:
        new[1] = gradient[2] = special
    variable = tf.Variable(tf.cast(new, dtype))
    gradients = [quantities.dense_values(tf.cast(gradient, dtype))]
    before = quantities.snapshot(True, [variable], True)
    row, _ = quantities.deep_row(tf.constant(0, tf.int64), [variable], before, gradients, None, _kept())
    names = ["step", *(one.name for one in INGREDIENTS)]
    found = dict(zip(names, row.numpy(), strict=True))
    exact = np.abs(variable.numpy().astype("complex128" if dtype.startswith("complex") else "float64"))
    np.testing.assert_allclose(found["largest_weight"], exact.max(), rtol=1e-6)
    np.testing.assert_allclose(found["largest_gradient"], 8.5 if special is None else abs(special))


def _kept() -> dict[str, tf.Variable]:
    return {one.name: tf.Variable(tf.zeros([1, one.state], tf.float64)) for one in INGREDIENTS if one.state}
