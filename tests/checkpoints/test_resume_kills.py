"""Tests of trainings killed again and again at random steps: they end with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

import mlflow_tfmon

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

SCRIPT = """
import os, signal, sys, time
import keras, mlflow, numpy as np, tensorflow as tf
import mlflow_tfmon
from mlflow_tfmon.watching import claims

store, how, out, kill_at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
mlflow.set_tracking_uri(store)
steps, epochs = 5, 8
keras.utils.set_random_seed(3)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 4)).astype("float32"), rng.integers(0, 2, 40)
hidden = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.3)]
model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(2)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40, seed=5).batch(8)
seen = 0

def seen_one():
    global seen
    seen += 1
    if seen == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def begins(epoch):
    if epoch == 1:  # there is something to go on from; of the later ones what is written by the kill
        claims.active[-1]._pipeline.keeper("").finish()
    time.sleep(0.5)

class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        seen_one()
    def on_epoch_begin(self, epoch, logs=None):
        begins(epoch)

if how == "fit":
    mlflow_tfmon.autolog(resume="latest", report=False)
    model.compile(keras.optimizers.Adam(0.05), loss)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.02)
    model.fit(data, epochs=epochs, verbose=0, callbacks=[plateau, Kill()])
    optimizer = model.optimizer
else:
    optimizer = keras.optimizers.Adam(0.05)
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        return value
    with mlflow_tfmon.Monitor(model, optimizer=optimizer, resume="latest", report=False) as monitor:
        for _ in range(monitor.first_epoch):
            iter(data)
        for epoch in range(monitor.first_epoch, epochs):
            begins(epoch)
            for batch in data:
                value = step(*batch)
                seen_one()
            monitor.log_epoch(epoch, {"loss": float(value)})
np.savez(out, *[v.numpy() for v in (*model.variables, *optimizer.variables)])
"""


@pytest.mark.parametrize("how", ["fit", "loop"])
def test_killed_again_and_again(store: str, home: Path, tmp_path: Path, how: str) -> None:
    client = mlflow.MlflowClient(store)
    chance = random.Random(how)
    results, runs = {}, {}
    for name, kills in (("alone", []), ("killed", [chance.randint(8, 19) for _ in range(2)])):
        experiment = client.create_experiment(name, (tmp_path / "artifacts").as_uri())
        environment = {**os.environ, "MLFLOW_EXPERIMENT_ID": experiment}
        out = tmp_path / f"{name}.npz"
        for kill_at in (*kills, 0):
            command = [sys.executable, "-c", SCRIPT, store, how, str(out), str(kill_at)]
            ended = subprocess.run(command, env=environment)  # whose delivery process may outlive it
            assert ended.returncode == (-signal.SIGKILL if kill_at else 0)
            if ended.returncode == 0:
                break
        with np.load(out) as arrays:
            results[name] = [arrays[key] for key in arrays.files]
        runs[name] = client.search_runs([experiment], order_by=["attributes.start_time DESC"])
    for one, other in zip(results["alone"], results["killed"], strict=True):
        np.testing.assert_array_equal(one, other)
    run = runs["killed"][0]
    assert "tfmon.resumed" in run.data.tags
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    recorded = mlflow_tfmon.load_run(run.info.run_id, store)
    reference = mlflow_tfmon.load_run(runs["alone"][0].info.run_id, store)
    assert recorded.steps.index.tolist() == list(range(1, 41))
    for column in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_array_equal(recorded.steps[column], reference.steps[column])
    assert recorded.epochs.index.tolist() == list(range(8))
    points = [point.step for point in client.get_metric_history(run.info.run_id, "batch/loss")]
    assert sorted(points) == list(range(1, 41))
