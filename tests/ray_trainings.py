"""Trainings that Ray starts on this machine; run by `tests.promises.test_ray`.

python -m tests.ray_trainings FOLDER fit|loop
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.tensorflow

EPOCHS, STEPS, BATCH = 6, 20, 16


def fit(config: dict[str, Any]) -> None:
    """On each worker: `fit` of Keras 2 that goes on from its last checkpoint, and notes itself step and loss."""
    import mlflow
    import numpy as np
    import tensorflow as tf

    import mlflow_tfmon

    rank = note_process(config)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    mlflow_tfmon.autolog(log_datasets=False, resume="latest", monitor="loss")
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * BATCH, 6)).astype("float32")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, (x.sum(axis=1) > 0).astype("int64")))
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        net = tf.keras.Sequential([tf.keras.Input((6,)), tf.keras.layers.Dense(2)])
        net.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    class Notes(tf.keras.callbacks.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.reset_metrics()  # so that the loss in the logs is the step's own

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            # Each worker knows the mean of the whole batch; in the logs Keras 2 sums what all of them know (2.21).
            loss = logs["loss"] / strategy.num_replicas_in_sync
            with Path(config["folder"], f"steps{rank}.txt").open("a") as file:
                file.write(f"{int(self.model.optimizer.iterations.numpy())} {loss!r}\n")
            time.sleep(float(os.environ["PAUSE"]))

    net.fit(data.batch(BATCH).repeat().with_options(options), epochs=EPOCHS, steps_per_epoch=STEPS, verbose=0,
            callbacks=[Notes()])  # fmt: skip
    if rank == 0:
        run = mlflow.last_active_run()
        Path(config["folder"], "worker0.json").write_text(json.dumps({"resumable": run and run.info.run_id}))


def note_process(config: dict[str, Any]) -> int:
    """Writes down which process this worker is; gives its rank."""
    rank = int(ray.train.get_context().get_world_rank())
    Path(config["folder"], f"pid{rank}").write_text(str(os.getpid()))
    return rank


def loop(config: dict[str, Any]) -> None:
    """On each worker: a custom loop of Keras 3 that goes on from its last checkpoint."""
    sys.argv = ["", config["folder"], "resumable", str(note_process(config))]
    runpy.run_module("tests.workers", run_name="__main__")


def main(folder: str, case: str) -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = str(int(case == "fit"))  # before Ray starts what its workers come of
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=True)
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
