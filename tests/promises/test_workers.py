"""Tests of what only several workers can have: weights that are apart, one that is slow, one that stops."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from tests.promises.test_distribute import finish, ports
from tests.waiting import until

PLANTED, VARIABLE, SLEEP, STOPS, HEALTHY = 25, "net.hidden.kernel", 0.05, 40, 50  # as tests.workers has them


def start(store: str, folder: Path, *cases: str) -> list[subprocess.Popen[str]]:
    given = ports(2)
    command = [sys.executable, "-m", "tests.workers", str(folder), ",".join(cases)]
    return [
        subprocess.Popen(
            [*command, str(index), *given], env={**os.environ, "MLFLOW_TRACKING_URI": store},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip


def problems(run_id: str) -> dict[str, Any]:
    return {one.kind: one for one in mlflow_tfmon.load_run(run_id).problems}


@pytest.mark.thorough
def test_a_bit_a_slow_worker_and_a_slow_input_are_found(store: str, home: Path, tmp_path: Path) -> None:
    output = finish(*start(store, tmp_path, "planted", "slow step", "slow data"))
    mlflow.set_tracking_uri(store)
    runs = json.loads((tmp_path / "worker0.json").read_text())

    planted = mlflow_tfmon.load_run(runs["planted"])
    found = problems(runs["planted"])["desync"]
    assert PLANTED < found.first_step <= PLANTED + 20
    assert found.severity == "critical" and found.variables == (VARIABLE,)
    assert "worker 1" in found.evidence and f"from step {found.first_step} on" in found.evidence
    assert f"the same at step {found.first_step - 16}" in found.evidence
    assert len(re.findall(r"step \d+: desync \[net.hidden.kernel\]", output[0])) == 1
    apart = planted.steps["worker_1/weights_apart"].dropna()
    assert apart[apart.index < PLANTED].eq(0).all() and apart[apart.index > PLANTED].eq(1).all()
    assert (
        planted.steps["worker_1/gradient_apart"].eq(0).all()
    )  # the sums are the same, and so are the losses taken
    assert planted.steps.loss.notna().all()
    keys = mlflow.get_run(runs["planted"]).data.metrics
    assert "worker_1/step_time_ms" in keys and not [key for key in keys if key.endswith("_apart")]

    slow = problems(runs["slow step"])
    assert "desync" not in slow and "input_bound" not in slow
    assert "worker 1" in slow["straggler"].evidence and "that machine" in slow["straggler"].advice

    late = problems(runs["slow data"])
    assert "worker 1 spends" in late["input_bound"].evidence and "desync" not in late
    assert late["straggler"].consequence_of == "input_bound"
    waits = mlflow_tfmon.load_run(runs["slow data"]).steps[[f"worker_{one}/input_wait_ms" for one in (0, 1)]]
    assert (
        waits["worker_1/input_wait_ms"].median() > 1e3 * SLEEP / 2 > waits["worker_0/input_wait_ms"].median()
    )


@pytest.mark.thorough
def test_what_a_step_of_several_workers_consists_of(store: str, home: Path, tmp_path: Path) -> None:
    """Own times of the workers, and the share that their sum and the update take: compared with clocks of their own."""
    finish(*start(store, tmp_path, "slow callback", "large"))
    mlflow.set_tracking_uri(store)
    runs = json.loads((tmp_path / "worker0.json").read_text())

    late = problems(runs["slow callback"])["straggler"]
    assert "worker 1" in late.evidence and "between the steps: callbacks" in late.advice
    between = mlflow_tfmon.load_run(runs["slow callback"]).steps.filter(like="between_steps_ms").median()
    assert between["worker_1/between_steps_ms"] > 1e3 * SLEEP > between["worker_0/between_steps_ms"]

    steps = mlflow_tfmon.load_run(runs["large"]).steps
    times = np.stack([np.load(tmp_path / f"times{index}.npy") for index in range(2)])
    gradients, weights = times[:, :, 0], times[:, :, 1]
    own = 1e3 * (gradients[:, 1:] - weights[:, :-1])
    named = [f"worker_{index}/step_time_ms" for index in range(2)]
    whole = 1e3 * np.diff(weights[0])
    # Its clock stands still between two ops, and the weights are written while the end of a step is told.
    np.testing.assert_allclose(steps[named].median(), np.median(own, axis=1), atol=0.1 * np.median(whole))
    told = 1 - (steps[named].max(axis=1) / steps.step_time_ms).median()  # as the documentation has it
    share = 1 - np.median(own.max(axis=0) / whole)
    assert share > 0.2 and abs(told - share) < 0.1, (told, share)


@pytest.mark.thorough
def test_a_worker_that_stops_is_named(store: str, home: Path, tmp_path: Path) -> None:
    """It stands still in its own code, while the chief waits for it in TensorFlow; then both are killed."""
    processes = start(store, tmp_path, "stopped")
    mlflow.set_tracking_uri(store)
    try:
        until(lambda: (tmp_path / "stopped").exists())
        (run,) = mlflow.search_runs(output_format="list")
        until(lambda: "worker_stopped" in mlflow.get_run(run.info.run_id).data.tags.get("tfmon.problems", ""))
    finally:
        for process in processes:
            process.kill()
    found = problems(run.info.run_id)["worker_stopped"]
    assert found.first_step == STOPS and "worker 1 did not continue" in found.evidence
    stacks = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/tfmon/stacks.txt")
    chief, other = stacks.split("\n\nworker 1 ")
    assert chief.startswith("worker 0 waits in TensorFlow") and "workers.py" in chief
    assert other.startswith("is in stop (workers.py:") and "in stop\n" in other
    assert "worker 1 is in stop" in processes[0].communicate()[0]


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_fifty_healthy_trainings_are_not_apart(store: str, home: Path, tmp_path: Path) -> None:
    """Of ten optimizers and five models: the weights were compared, and are the same."""
    finish(*start(store, tmp_path, "healthy"), seconds=1100)
    mlflow.set_tracking_uri(store)
    runs = json.loads((tmp_path / "worker0.json").read_text())["healthy"]
    assert len(set(runs)) == HEALTHY
    for run_id in runs:
        assert "desync" not in problems(run_id)
        steps = mlflow_tfmon.load_run(run_id).steps
        assert steps["worker_1/weights_apart"].notna().sum() >= 3
        np.testing.assert_array_equal(steps["worker_1/gradient_apart"], 0)
