"""The update norm, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.signals.compared import FEW_WAYS, compare


@pytest.mark.slow
@pytest.mark.parametrize("way", FEW_WAYS)
def test_it_is_the_norm_of_what_the_step_did(fresh: None, way: str) -> None:
    # A float32 update of weights is known to 1e-7 of the weights.
    compare(
        way, {"update_norm": lambda steps: float(np.linalg.norm(steps[-1].new - steps[-1].old))}, rtol=2e-4
    )
