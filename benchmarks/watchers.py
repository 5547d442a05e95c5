"""The compared ways to monitor a training; each enables itself and returns the callbacks for `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def unwatched() -> list[Any]:
    """Nobody watches."""
    return []


def ours() -> list[Any]:
    """`mlflow_tfmon.autolog()` as it comes: every step and variable, best and last model, report."""
    import mlflow_tfmon

    mlflow_tfmon.autolog()
    return []


def ours_everything() -> list[Any]:
    """The same with weights and histograms at every fifth step, series for all variables, and event files."""
    import mlflow_tfmon

    mlflow_tfmon.autolog(deep_every=5, max_variables=100_000, tensorboard=True)
    return []


def ours_steps() -> list[Any]:
    """Every step and variable, and no models: what the step time is made of."""
    import mlflow_tfmon

    mlflow_tfmon.autolog(log_models=False, log_datasets=False, report=False)
    return []


def mlflow_epoch() -> list[Any]:
    """`mlflow.tensorflow.autolog` per epoch, its default."""
    import mlflow

    mlflow.tensorflow.autolog(log_models=False, log_datasets=False, checkpoint=False)
    return []


def mlflow_step() -> list[Any]:
    """`mlflow.tensorflow.autolog` per step."""
    import mlflow

    mlflow.tensorflow.autolog(
        log_models=False, log_datasets=False, checkpoint=False, log_every_epoch=False, log_every_n_steps=1
    )
    return []


def tensorboard() -> list[Any]:
    """Keras's TensorBoard callback: every step, histograms of weights at each epoch's end."""
    import keras

    return [keras.callbacks.TensorBoard("tensorboard", update_freq=1, histogram_freq=1)]


def wandb() -> list[Any]:
    """W&B offline, every step."""
    import os

    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    import wandb as library
    from wandb.integration.keras import WandbMetricsLogger

    library.init(project="benchmark")
    return [WandbMetricsLogger(log_freq=1)]


WATCHERS: dict[str, Callable[[], list[Any]]] = {
    "unwatched": unwatched,
    "ours": ours,
    "ours, everything": ours_everything,
    "ours, no models": ours_steps,
    "mlflow per epoch": mlflow_epoch,
    "mlflow per step": mlflow_step,
    "tensorboard": tensorboard,
    "wandb": wandb,
}
ONLY_FIT = {
    "mlflow per epoch",
    "mlflow per step",
    "tensorboard",
    "wandb",
}  # these see nothing of a custom loop
