"""Tests under `tf.config.experimental.enable_op_determinism()`, which forbids non-deterministic ops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daily import thorough

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import keras, mlflow, mlflow_tfmon
import numpy as np, tensorflow as tf
from tests.trainings import batches, custom_step, data, loss, model

tf.config.experimental.enable_op_determinism()
how = sys.argv[1]

def train():
    x, y = data()
    net = model()
    optimizer = keras.optimizers.Adam(0.01)
    if how == "fit":
        net.compile(optimizer, loss())
        net.fit(x, y, 16, 3, verbose=0)
    else:
        step = custom_step(net, optimizer, in_graph=how == "graph")
        for batch in tf.data.Dataset.from_tensor_slices((x, y)).shuffle(160).batch(16).repeat(3):
            step(*batch)
    return [value.numpy() for value in net.trainable_variables]

expected = train()
mlflow_tfmon.autolog(log_models=False, checkpoint=False, report=False, deep_every=3)
for watched, unwatched in zip(train(), expected, strict=True):
    np.testing.assert_array_equal(watched, unwatched)
mlflow_tfmon.end_run()
(found,) = mlflow.search_runs(output_format="list")
run = mlflow_tfmon.load_run(found.info.run_id)
assert list(run.steps.index) == list(range(1, 31))
assert np.isfinite(run.steps[["loss", "grad_norm", "learning_rate"]]).all(axis=None)
assert run.layers.update_ratio.notna().any() and "step_time_ms" not in run.steps and len(run.histograms)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("how", thorough(["fit", "graph", "eager"], ["fit", "eager"]))
def test_a_deterministic_training_is_watched_to_the_same_weights(how, store, home, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), how],
        env={**os.environ, "MLFLOW_TRACKING_URI": store, "MLFLOW_TFMON_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "failed" not in done.stderr
