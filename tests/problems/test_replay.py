"""Tests of the conversion of records to a history."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_tfmon.problems.rediagnosis import alike
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


@pytest.mark.parametrize("every", [2, 30_000])
def test_rows_are_taken_in_few_parts_however_often_what_is_measured_changes(every: int) -> None:
    """A loop of 100,000 steps that has a loss at each second one; and one that has it from some step on."""
    number = np.arange(100_000)
    measured = np.stack([number >= 0, (number // (every // 2)) % 2 == 0], axis=1)
    parts = list(alike(measured))
    assert len(parts) <= 110
    assert np.array_equal(np.sort(np.concatenate(parts)), number)
    assert all((measured[rows] == measured[rows[0]]).all() and (np.diff(rows) > 0).all() for rows in parts)
    if every > 2:
        assert np.array_equal(np.concatenate(parts), number)
