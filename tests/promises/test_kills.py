"""Tests of killed trainings: their steps are in MLflow, and their runs are marked as failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.sync import find_waiting

pytestmark = pytest.mark.thorough

SCRIPT = """
import ctypes, os, signal, sys, time
import keras, mlflow, numpy as np
import mlflow_tfmon

mlflow.set_tracking_uri(sys.argv[1])
mlflow_tfmon.autolog(log_models=False)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
if sys.argv[2] == "own":
    mlflow.start_run()

class Dies(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 300:
            time.sleep(1)
            {death}

model.fit(np.ones((8000, 2)), np.ones(8000), batch_size=16, epochs=1, verbose=0, callbacks=[Dies()])
"""
DEATHS = {
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),  # also what "out of memory" is
    "os._exit": ("os._exit(3)", 3),
    "segfault": ("ctypes.string_at(0)", -signal.SIGSEGV),
}


def test_every_death(store: str, home: Path, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(store)
    processes = {}
    for name, (death, _) in DEATHS.items():
        for whose in ("made", "own") if name == "SIGKILL" else ("made",):
            experiment = client.create_experiment(f"{name} {whose}", (tmp_path / "artifacts").as_uri())
            environment = {**os.environ, "MLFLOW_EXPERIMENT_ID": experiment}
            command = [sys.executable, "-c", SCRIPT.format(death=death), store, whose]
            processes[name, experiment] = subprocess.Popen(
                command, env=environment, stderr=subprocess.DEVNULL
            )
    for (name, _), process in processes.items():
        assert process.wait() == DEATHS[name][1]
    give_up = time.monotonic() + 120
    while find_waiting():
        assert time.monotonic() < give_up, find_waiting()
        time.sleep(0.2)
    for name, experiment in processes:
        (run,) = client.search_runs([experiment])
        assert run.info.status == "FAILED", name
        assert "killed or crashed. Last recorded: step 301" in run.data.tags["mlflow.note.content"]
        assert run.data.tags["tfmon.delivery"] == "complete"
        recorded = mlflow_tfmon.load_run(run.info.run_id, store)
        assert recorded.steps.index.tolist() == list(range(1, 302))
