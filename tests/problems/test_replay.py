"""Tests of the conversion of records to a history."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.stream import records


@pytest.mark.parametrize("examples", [8, 32])
def test_few_examples_tell_of_saturation_but_not_of_dead_units(examples: int) -> None:
    """A unit that is zero for eight examples need not be dead; of their values as many are saturated as of others."""
    replay = Replay()
    replay.take(
        records.StreamOpened(1, "", (records.Variable("a.kernel", (4, 4), True),), ("step", "loss"), (), ())
    )
    replay.take(records.Steps(1, 0.0, np.array([[1.0, 2.0]])))
    layer = records.LayerActivations("a", "tanh", 4, False, 0.0, 1.0, 0.5, 0.75, 0.9)
    replay.take(records.Activations(0, 1, 0.0, examples, (layer,), ""))
    found = replay.histories()[""].activations
    assert found["saturated_fraction"].mean.tolist() == [[0.9]]
    assert np.isnan(found["dead_fraction"].mean[0, 0]) == (examples == 8)
