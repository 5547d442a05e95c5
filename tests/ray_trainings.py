"""Trainings that Ray starts on this machine; run by `tests.promises.test_ray`.

python -m tests.ray_trainings FOLDER fit|loop|tune
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.tensorflow
import ray.tune

EPOCHS, STEPS, BATCH = 3, 20, 16
RATES = [0.01, 0.1]


def fit(config: dict[str, Any]) -> None:
    """On each worker: `fit` of Keras 2, which notes itself which steps it makes, and how long they take."""
    import numpy as np
    import tensorflow as tf

    import mlflow_tfmon

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    mlflow_tfmon.autolog(log_datasets=False)
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * BATCH, 6)).astype("float32")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, (x.sum(axis=1) > 0).astype("int64")))
    with strategy.scope():
        net = tf.keras.Sequential([tf.keras.Input((6,)), tf.keras.layers.Dense(2)])
        net.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    path = Path(config["folder"], f"steps{ray.train.get_context().get_world_rank()}.txt")

    class Notes(tf.keras.callbacks.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            with path.open("a") as file:
                file.write(f"{batch}\n")

    net.fit(data.batch(BATCH).repeat().with_options(options), epochs=EPOCHS, steps_per_epoch=STEPS, verbose=0,
            callbacks=[Notes()])  # fmt: skip


def loop(config: dict[str, Any]) -> None:
    """On each worker: a custom loop of Keras 3 that goes on from its last checkpoint."""
    rank = ray.train.get_context().get_world_rank()
    Path(config["folder"], f"pid{rank}").write_text(str(os.getpid()))
    sys.argv = ["", config["folder"], "resumable", str(rank)]
    runpy.run_module("tests.workers", run_name="__main__")


def trial(config: dict[str, Any]) -> None:
    """One of a search."""
    import keras
    import numpy as np

    import mlflow_tfmon

    mlflow_tfmon.autolog(extra_tags={"mlflow.parentRunId": config["parent"]}, log_models=False)
    net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    net.compile(keras.optimizers.SGD(config["rate"]), "mse")
    history = net.fit(np.ones((STEPS * BATCH, 6)), np.ones(STEPS * BATCH), BATCH, EPOCHS, verbose=0)
    ray.tune.report({"loss": history.history["loss"][-1]})


def main(folder: str, case: str) -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = str(int(case == "fit"))  # before Ray starts what its workers come of
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=True)
    if case == "tune":
        import mlflow

        with mlflow.start_run(run_name="search") as run:
            space = {"rate": ray.tune.grid_search(RATES), "parent": run.info.run_id}
            at = ray.tune.RunConfig(storage_path=f"{folder}/ray")
            found = ray.tune.Tuner(trial, param_space=space, run_config=at).fit()
            assert not found.errors, found.errors
        return
    trainer = ray.train.tensorflow.TensorflowTrainer(
        {"fit": fit, "loop": loop}[case],
        train_loop_config={"folder": folder},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            storage_path=f"{folder}/ray", failure_config=ray.train.FailureConfig(max_failures=2)
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
