"""The gradient's signal-to-noise ratio, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_tfmon.signals.gradient_snr import DECAY
from mlflow_tfmon.signals.signal import SAMPLE
from tests.signals.compared import WAYS, Step, compare


def by_hand(steps: list[Step]) -> float:
    """By NumPy's own weighted mean and covariance, whose reliability weights are unbiased."""
    weights = DECAY ** np.arange(len(steps))[::-1]
    every = -(-steps[0].gradient.size // SAMPLE)
    gradients = np.array([step.gradient.ravel()[::every] for step in steps], float)
    if len(steps) < 2:
        return float("nan")
    mean = np.average(gradients, axis=0, weights=weights)
    variance = [float(np.cov(one, aweights=weights)) for one in gradients.T]
    return float((mean**2).sum() / np.sum(variance))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_ratio_of_the_mean_s_square_to_the_variance(fresh: None, way: str) -> None:
    compare(way, {"gradient_snr": by_hand}, rtol=1e-4)
