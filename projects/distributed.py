"""One training on one device, on two (MirroredStrategy), and on two workers (MultiWorkerMirroredStrategy).

Each takes the same batches, split among the replicas, so the losses are the same step by step. The devices are two
logical CPUs, the workers two processes of this machine; the chief's run has the step times of both workers.
"""

import json
import multiprocessing
import os
import socket
from contextlib import ExitStack

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import conclude, parent_run

BATCH = 64


def train(strategy: tf.distribute.Strategy, dataset: str, epochs: int) -> None:
    """Trains a classifier with the custom loop of TensorFlow's guide, which knows nothing of being watched."""
    keras.utils.clear_session()  # so that the optimizer has the same name in each run
    keras.utils.set_random_seed(1)
    digits = images(dataset)
    with strategy.scope():
        hidden, logits = keras.layers.Dense(64, "relu", name="hidden"), keras.layers.Dense(10, name="logits")
        model = keras.Sequential(
            [keras.Input(digits.x.shape[1:]), keras.layers.Flatten(), hidden, logits], name="digits"
        )
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    @tf.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        def replica_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                losses = loss_of(y, model(x, training=True))
                loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce("SUM", strategy.run(replica_step, args=(x, y)), axis=None)

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices((digits.x, digits.y)).shuffle(2000, seed=1)
    batches = batches.batch(BATCH, drop_remainder=True).repeat(epochs).with_options(options)
    for x, y in strategy.experimental_distribute_dataset(batches):
        train_step(x, y)


def worker(index: int, ports: list[int], parent: str, experiment: str, dataset: str, epochs: int) -> None:
    """One of the two workers: watched on each, recorded in the run that the chief makes."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    mlflow_tfmon.autolog()
    with ExitStack() as stack:
        if index == 0:
            stack.enter_context(
                mlflow.start_run(run_name="two workers", parent_run_id=parent, experiment_id=experiment)
            )
        train(strategy, dataset, epochs)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def main() -> None:
    parameters = Parameters("projects.distributed", __doc__)
    parameters.add("epochs", count, 10, quick=1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mlflow_tfmon.autolog()
    with parent_run("distributed") as run:
        for name, strategy in {
            "one device": tf.distribute.get_strategy(),
            "two devices": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        }.items():
            print(f"training on {name}", flush=True)
            with mlflow.start_run(run_name=name, nested=True):
                train(strategy, args.dataset, args.epochs)

        print("training by two workers", flush=True)
        ports, spawn = free_ports(2), multiprocessing.get_context("spawn")
        given = ports, run.info.run_id, run.info.experiment_id, args.dataset, args.epochs
        workers = [spawn.Process(target=worker, args=(index, *given)) for index in range(2)]
        for process in workers:
            process.start()
        for process in workers:
            process.join()
        if any(process.exitcode for process in workers):
            raise SystemExit("error: a worker failed; see above")

        children = mlflow.search_runs(
            [run.info.experiment_id],
            f"tags.mlflow.parentRunId = '{run.info.run_id}'",
            output_format="list",
            order_by=["attributes.start_time"],
        )
        recorded = {child.info.run_name: mlflow_tfmon.load_run(child.info.run_id) for child in children}
        losses = {name: one.steps.loss for name, one in recorded.items()}
        rows = [
            {
                "variant": name,
                "seed": 1,
                "run_id": one.run_id,
                "last_loss": losses[name].iloc[-1],
                "loss_difference": np.abs(
                    losses[name] / losses["one device"] - 1
                ).max(),  # largest of any step
            }
            for name, one in recorded.items()
        ]
        conclude(pd.DataFrame(rows))
        figure, (loss, times) = panels(2)
        for name, style in zip(losses, ("-", "--", ":"), strict=True):
            losses[name].plot(ax=loss, title="loss", label=name, style=style, logy=True, legend=True)
        own = [f"worker_{index}/step_time_ms" for index in range(2)]
        recorded["two workers"].steps[own][2:].plot(
            ax=times, title="step time of each worker, ms", linewidth=0.7
        )
        log(figure, "distributed")
        print(recorded["two workers"].steps[own][2:].median().to_string())


if __name__ == "__main__":
    main()
