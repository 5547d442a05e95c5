"""Tests of simultaneous trainings in threads and processes: runs are not mixed, no row is lost, no lock fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.sync import find_waiting
from tests import trainings

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]


def check(run_id: str, losses: list[float], uri: str | None = None) -> None:
    """The run has each of these losses, and nothing else."""
    recorded = mlflow_tfmon.load_run(run_id, uri)
    assert recorded.steps.index.tolist() == list(range(1, len(losses) + 1))
    np.testing.assert_allclose(recorded.steps.loss, losses, rtol=1e-6)
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")


@pytest.mark.parametrize("how", ["fit", "loop", "monitor"])
def test_two_threads_train_two_models(how: str, fresh: None) -> None:
    if how != "monitor":
        mlflow_tfmon.autolog(log_models=False)
    together, done = threading.Barrier(2), {}

    class Losses(keras.callbacks.Callback):
        """By Keras's running mean: with one batch an epoch it is the step's."""

        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            self.losses.append(logs["loss"])

    def train(seed: int) -> None:
        x, y = trainings.data(seed=seed)
        net = keras.Sequential(
            [keras.Input((trainings.FEATURES,)), keras.layers.Dense(trainings.CLASSES)], name=f"net{seed}"
        )
        together.wait()
        if how == "monitor":
            step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
            with mlflow_tfmon.Monitor(net) as monitor:
                losses = [float(step(a, b)) for a, b in trainings.batches(x, y, 5)]
                run_id = str(monitor.run_id)
            done[run_id] = losses
            return
        with mlflow.start_run() as run:
            if how == "fit":
                net.compile(keras.optimizers.SGD(0.1), trainings.loss())
                told = Losses()
                net.fit(x, y, batch_size=len(x), epochs=50, verbose=0, callbacks=[told])
                losses = told.losses
            else:
                step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
                losses = [float(step(a, b)) for a, b in trainings.batches(x, y, 5)]
        done[run.info.run_id] = losses

    threads = [threading.Thread(target=train, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    for run_id, losses in done.items():
        check(run_id, losses)


LOOP = """
import json, multiprocessing, os, sys
import keras, numpy as np, tensorflow as tf
import mlflow, mlflow_tfmon

def train(seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(64, 4)).astype("float32"), random.normal(size=(64, 1)).astype("float32")
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(x, training=True) - y) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
        return loss

    # MLflow's own start_run fails where several make a store at once; a Monitor's does not.
    with mlflow_tfmon.Monitor(net) as monitor:
        run_id = monitor.run_id
        losses = [float(step(x, y)) for _ in range(100)]
    print(json.dumps([run_id, losses]), flush=True)

def forked(queue):
    queue.put(sum(range(1000)))  # a data worker: it trains nothing

if __name__ == "__main__":
    if sys.argv[1] == "spawned":
        workers = [multiprocessing.get_context("spawn").Process(target=spawned, args=(n,)) for n in (1, 2)]
    elif sys.argv[1] == "forked":
        train(0)  # threads, a journal and a delivery process are there when it forks
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        workers = [context.Process(target=forked, args=(queue,)) for n in (1, 2)]
    else:
        workers = []
    for worker in workers:
        worker.start()
    train(int(sys.argv[2]))
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0, worker.exitcode
"""
SPAWNED = """
def spawned(n):
    train(10 + n)
"""


def script(tmp_path: Path) -> Path:
    path = tmp_path / "loop.py"
    path.write_text(LOOP.replace("if __name__", SPAWNED.strip() + "\n\nif __name__"))
    return path


def told(text: str) -> dict[str, list[float]]:
    return dict(json.loads(line) for line in text.splitlines() if line.startswith('["'))


def start(path: Path, store: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, str(path), *arguments], env=environment, cwd=path.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(("how", "count"), [("spawned", 3), ("forked", 2)])
def test_worker_processes(how: str, count: int, store: str, home: Path, tmp_path: Path) -> None:
    process = start(script(tmp_path), store, how, "5")
    out, said = process.communicate()
    assert process.returncode == 0, said
    found = told(out)
    assert len(found) == count == len(mlflow.MlflowClient(store).search_runs(["0"]))
    for run_id, losses in found.items():
        check(run_id, losses, store)
    assert find_waiting() == []
    assert "lock" not in said and "failed" not in said


def test_four_trainings_at_once_on_a_store_that_is_not_there_yet(home: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/new/mlflow.db"
    path = script(tmp_path)
    processes = [start(path, store, "alone", str(seed)) for seed in range(4)]
    for process in processes:
        out, said = process.communicate()
        assert process.returncode == 0, said
        ((run_id, losses),) = told(out).items()
        check(run_id, losses, store)
        assert "locked" not in said and "failed" not in said, said
    assert len(mlflow.MlflowClient(store).search_runs(["0"])) == 4
    assert find_waiting() == []


CELL = """
import keras, numpy as np
import mlflow_tfmon
mlflow_tfmon.autolog(log_models=False)

class Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs):
        if epoch == 1 and interrupted:
            raise KeyboardInterrupt

model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
history = model.fit(np.ones((80, 2)), np.ones(80), batch_size=8, epochs=3, verbose=0, callbacks=[Interrupt()])
"""


def test_a_cell_that_is_run_again(fresh: None) -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    for interrupted in (False, True, False):
        shell.user_ns["interrupted"] = interrupted
        result = shell.run_cell(CELL)
        assert isinstance(result.error_in_exec, KeyboardInterrupt if interrupted else type(None))
    runs = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    found = [mlflow_tfmon.load_run(run.info.run_id) for run in runs]
    assert [len(one.steps) for one in found] == [30, 20, 30]
    assert [one.epochs.index.tolist() for one in found] == [[0, 1, 2], [0], [0, 1, 2]]
    assert [run.info.status for run in runs][::2] == ["FINISHED", "FINISHED"] and runs[
        1
    ].info.status != "RUNNING"
    assert {run.data.tags["tfmon.delivery"] for run in runs} == {"complete"}


IN_CHILDREN = """
import multiprocessing, sys
import keras, numpy as np, tensorflow as tf
import mlflow, mlflow_tfmon

def train(name, auto):
    if auto:
        mlflow_tfmon.autolog(log_models=False)
    fitted = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    fitted.compile("sgd", "mse")
    fitted.fit(np.ones((80, 4)), np.ones((80, 1)), epochs=2, batch_size=8, verbose=0)
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(net(x) ** 2)
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)

    for _ in range(30):
        step(tf.ones((8, 4)))  # its run ends with the process

if __name__ == "__main__":
    how = sys.argv[1]
    if how == "fork":
        mlflow_tfmon.autolog(log_models=False)  # threads and a delivery process are there when it forks
    child = multiprocessing.get_context(how).Process(target=train, args=(how, how != "fork"))
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_what_a_child_trains_is_the_childs(how: str, store: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "children.py"
    path.write_text(IN_CHILDREN)
    process = start(path, store, how)
    _, said = process.communicate()
    assert process.returncode == 0 and "failed" not in said, said
    runs = mlflow.MlflowClient(store).search_runs(["0"])
    counts = {run.info.run_id: len(mlflow_tfmon.load_run(run.info.run_id, store).steps) for run in runs}
    assert sorted(counts.values()) == [20, 30]
    assert {run.info.status for run in mlflow.MlflowClient(store).search_runs(["0"])} == {"FINISHED"}
    assert find_waiting() == []
