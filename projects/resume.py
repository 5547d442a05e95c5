"""A training that is killed half-way and resumed; it ends with exactly the weights of an uninterrupted one.

Three processes: one trains in peace; one is killed in the middle of an epoch, as a lost machine would be; the third
goes on with its run, from the last epoch that was kept. Dropout, Adam's moments and the shuffling go on as well.
"""

import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from functools import partial

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

BATCH = 32


class Killed(keras.callbacks.Callback):
    """Kills the process, without a word, in the middle of an epoch.

    These epochs take a moment, real ones take as long as a checkpoint needs to arrive: so it waits for one.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch, self.now = epoch, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.now = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if (self.now, batch) == (self.epoch, 20):
            until = time.monotonic() + 120
            while time.monotonic() < until and not self._has_checkpoint():
                time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _has_checkpoint() -> bool:
        run = mlflow.active_run()
        return run is not None and "mlflow.tfmon.resume_model" in mlflow.get_run(run.info.run_id).data.tags


def build(shape: tuple[int, ...]) -> keras.Model:
    hidden, dropout = keras.layers.Dense(64, "relu", name="hidden"), keras.layers.Dropout(0.3)
    logits = keras.layers.Dense(10, name="logits")
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), hidden, dropout, logits], name="digits"
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    return model


def train(
    name: str, parent: str, experiment: str, dataset: str, epochs: int, killed: int | None, resume: str | None
) -> None:
    """Trains in a process of its own: in a new run, or on with the run `resume`."""
    keras.utils.set_random_seed(1)
    digits = images(dataset)
    training = tf.data.Dataset.from_tensor_slices((digits.x, digits.y)).shuffle(2000, seed=1).batch(BATCH)
    mlflow_tfmon.autolog(resume=resume)
    with (
        nullcontext()
        if resume
        else mlflow.start_run(run_name=name, parent_run_id=parent, experiment_id=experiment)
    ):
        build(digits.x.shape[1:]).fit(
            training,
            epochs=epochs,
            validation_data=digits.validation,
            verbose=0,
            callbacks=[] if killed is None else [Killed(killed)],
        )


def in_a_process(*given: object) -> int | None:
    """Trains, and returns the exit code: minus the signal where the process was killed."""
    process = multiprocessing.get_context("spawn").Process(target=train, args=given)
    process.start()
    process.join()
    return process.exitcode


def main() -> None:
    parameters = Parameters("projects.resume", __doc__)
    parameters.add("epochs", partial(count, least=2), 12, quick=4)  # one to keep, one to be killed in
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    half = args.epochs // 2

    with parent_run("resume") as parent:
        ids = parent.info.run_id, parent.info.experiment_id, args.dataset
        print("training undisturbed", flush=True)
        exit_code = in_a_process("whole", *ids, args.epochs, None, None)
        if exit_code:
            raise SystemExit("error: the training failed; see above")
        print(f"training again, to be killed in epoch {half + 1} once a checkpoint has arrived", flush=True)
        exit_code = in_a_process("killed and resumed", *ids, args.epochs, half, None)
        if exit_code != -signal.SIGKILL:
            raise SystemExit("error: the training that was to be killed failed; see above")
        found = mlflow.search_runs([ids[1]], f"tags.mlflow.parentRunId = '{ids[0]}'", output_format="list")
        runs = {run.info.run_name: run.info.run_id for run in found}
        print(f"killed in epoch {half + 1} (exit code {exit_code}); resuming", flush=True)
        if in_a_process("", *ids, args.epochs, None, runs["killed and resumed"]):
            raise SystemExit("error: the resumed training failed; see above")

        weights, rows = {}, []
        for name in ("whole", "killed and resumed"):
            tags = mlflow.get_run(runs[name]).data.tags
            weights[name] = mlflow.tensorflow.load_model(
                f"models:/{tags['mlflow.tfmon.model']}"
            ).get_weights()
            recorded = mlflow_tfmon.load_run(runs[name])
            rows.append(
                {
                    "variant": name,
                    "seed": 1,
                    "run_id": runs[name],
                    "steps": len(recorded.steps),
                    "val_loss": recorded.epochs.val_loss.iloc[-1],
                }
            )
        conclude(pd.DataFrame(rows))
        apart = max(float(np.abs(a - b).max()) for a, b in zip(*weights.values(), strict=True))
        mlflow.log_metric("weights_difference", apart)
        mlflow.log_param("killed_in_epoch", half)
        print(f"largest difference of a weight: {apart}")

        figure, (axes,) = panels(1)
        for row, style in zip(rows, ("-", ":"), strict=True):
            steps = mlflow_tfmon.load_run(row["run_id"]).steps
            axes.semilogy(steps.index, steps.loss, style, label=row["variant"], linewidth=0.9)
        axes.axvline(half * len(steps) / args.epochs, color="0.7", linestyle="--", label="resumed from here")
        axes.set(title="loss", xlabel="step")
        axes.legend(fontsize=8)
        log(figure, "resume")


if __name__ == "__main__":
    main()
