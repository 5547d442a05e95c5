"""Searches whose trials are trainings that write down their own steps; run by `tests.promises.test_searches`.

python -m tests.searches FOLDER tune|optuna INDEX

Several processes may search at once with Optuna. One that is started again goes on with the same search.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import mlflow

import mlflow_tfmon

EPOCHS, OF_EPOCH, BATCH = 3, 20, 16
HELD = 30  # the step after which a trial waits for the file "go"
PAUSE = 0.05  # s after each step
RATES = [0.01, 0.03]
TRIALS = 2  # of each process that searches with Optuna


def train(folder: Path, name: str, rate: float) -> float:
    """One trial; gives its loss."""
    import keras
    import numpy as np

    class Notes(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.reset_metrics()  # so that the loss in the logs is the step's own

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            step = int(self.model.optimizer.iterations)
            with (folder / f"{name}.steps").open("a") as file:
                file.write(f"{step} {float(logs['loss'])!r}\n")
            if step == HELD:
                (folder / f"{name}.held").touch()
                while not (folder / "go").exists():
                    time.sleep(0.05)
            time.sleep(PAUSE)

    x = np.random.default_rng(0).normal(size=(OF_EPOCH * BATCH, 6))
    net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    net.compile(keras.optimizers.SGD(rate), "mse")
    history = net.fit(x, x.sum(axis=1), BATCH, EPOCHS, verbose=0, callbacks=[Notes()])
    return float(history.history["loss"][-1])


def parent(folder: Path) -> Any:
    """The run that all trials are below: made by the first process, opened again by one that takes its place."""
    noted = folder / "parent"
    run = mlflow.start_run(run_id=noted.read_text() if noted.exists() else None, run_name="search")
    noted.write_text(run.info.run_id)
    return run


def trial(config: dict[str, Any]) -> None:
    """One of Ray Tune, in a process of its own."""
    import ray.tune

    name = f"{config['rate']}-{os.getpid()}"
    tags = {"mlflow.parentRunId": config["parent"], "attempt": name}
    mlflow_tfmon.autolog(extra_tags=tags, log_models=False, log_datasets=False)
    ray.tune.report({"loss": train(Path(config["folder"]), name, config["rate"])})


def tune(folder: Path) -> None:
    import ray
    import ray.tune

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=True)
    with parent(folder) as run:
        if ray.tune.Tuner.can_restore(f"{folder}/ray/search"):
            tuner = ray.tune.Tuner.restore(f"{folder}/ray/search", trial)
        else:
            tuner = ray.tune.Tuner(
                trial,
                param_space={
                    "rate": ray.tune.grid_search(RATES), "parent": run.info.run_id, "folder": str(folder)
                },
                run_config=ray.tune.RunConfig(
                    name="search", storage_path=f"{folder}/ray",
                    failure_config=ray.tune.FailureConfig(max_failures=2),
                ),
            )  # fmt: skip
        found = tuner.fit()
    assert not found.errors, found.errors


def optuna(folder: Path, index: int) -> None:
    import optuna

    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    while index and not (folder / "parent").exists():  # which comes after the study
        time.sleep(0.1)
    study = optuna.create_study(
        study_name="search", storage=f"sqlite:///{folder}/optuna.db", load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )  # fmt: skip

    run = parent(folder) if index == 0 else None

    def objective(of: optuna.Trial) -> float:
        rate, name = of.suggest_float("rate", 0.01, 0.1, log=True), f"{of.number}-{os.getpid()}"
        above = (folder / "parent").read_text()
        with mlflow.start_run(nested=run is not None, parent_run_id=above, tags={"attempt": name}):
            return train(folder, name, rate)

    study.optimize(objective, TRIALS)
    if run is not None:
        mlflow.end_run()


if __name__ == "__main__":
    if sys.argv[2] == "tune":
        tune(Path(sys.argv[1]))
    else:
        optuna(Path(sys.argv[1]), int(sys.argv[3]))
