"""Tests with hundreds of kills at random moments, of journal writers and of deliveries: no row lost or doubled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from recordings import values

from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.reading.recorded import load_run

ROUNDS = 12


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_killed_hundreds_of_times(store: str, home: Path) -> None:
    client = mlflow.MlflowClient(store)
    runs = [client.create_run("0").info.run_id for _ in range(ROUNDS)]
    script = Path(__file__).with_name("fault_injection.py")
    command = [sys.executable, str(script), store, str(home), "7", *runs]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [line.split() for line in done.stdout.splitlines()]
    assert [run_id for run_id, _, _ in told] == runs, done.stderr
    assert sum(int(kills) for _, _, kills in told) > 18 * ROUNDS
    assert find_waiting() == []
    reference = values(4000)
    for run_id, confirmed, _ in told:
        run = client.get_run(run_id)
        assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FAILED", "complete")
        recorded = load_run(run_id, store)
        steps = recorded.steps.index.tolist()
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) - int(confirmed) in (0, 20)  # what was being written when the writer died
        np.testing.assert_array_equal(recorded.steps["loss"], reference[: len(steps), 4])
        assert recorded.steps["temperature"].dropna().index.tolist() == steps[19::20]
        for key in ("batch/loss", "batch/temperature", "loss", "grad_norm/dense.kernel"):
            points = [point.step for point in client.get_metric_history(run_id, key)]
            assert len(points) == len(set(points)) > 0
            assert key == "loss" or max(points) == len(steps)
