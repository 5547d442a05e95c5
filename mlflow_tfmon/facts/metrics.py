"""Epoch metrics, and the outcome of early stopping."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_tfmon import kerases
from mlflow_tfmon.stream.records import Facts


def epoch_metrics(logs: dict[str, Any] | None, mlflow_names: bool = False) -> dict[str, float]:
    """Keras's logs of an epoch as plain numbers.

    Args:
        logs: what Keras gives to `on_epoch_end`.
        mlflow_names: whether each `val_<name>` comes a second time as `validation_<name>`, the name under which
            `mlflow.tensorflow.autolog` logs it.

    Returns:
        The metrics as Keras names them. What is not a single number is left out.

    Example:
        >>> epoch_metrics({"loss": 0.5, "val_loss": 0.7})
        {'loss': 0.5, 'val_loss': 0.7}
    """
    metrics: dict[str, float] = {}
    for name, value in (logs or {}).items():
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if value is not None and array.size == 1:
            metrics[name] = float(array.reshape(()))
    validation = [name for name in metrics if name.startswith("val_")] if mlflow_names else []
    return {**metrics, **{f"validation_{name.removeprefix('val_')}": metrics[name] for name in validation}}


def early_stopping_facts(callbacks: list[Any], epoch_offset: int = 0, time: float = 0.0) -> Facts:
    """What `EarlyStopping` did, to be asked at fit's end.

    Args:
        callbacks: the callbacks of the fit.
        epoch_offset: what is to be added to Keras's number of an epoch to get the run's.
        time: Unix time, seconds.

    Returns:
        Metric `stopped_epoch` if one of them stopped the training, `restored_epoch` if weights of an earlier epoch
        were put back; value and step are that epoch. Else an empty record.

    Example:
        >>> early_stopping_facts([stopped_at_7_best_at_4]).metrics
        (('stopped_epoch', 7.0, 7), ('restored_epoch', 4.0, 4))
    """
    found: dict[str, int] = {}
    for callback in callbacks:
        if not isinstance(callback, kerases.every("callbacks.EarlyStopping")):
            continue
        # Keras leaves 0 where the training was not stopped, and never stops it after epoch 0.
        if callback.stopped_epoch > 0:
            found["stopped_epoch"] = int(callback.stopped_epoch) + epoch_offset
        if callback.restore_best_weights and callback.best_weights is not None:
            found["restored_epoch"] = int(callback.best_epoch) + epoch_offset
    return Facts(metrics=tuple((name, float(epoch), epoch) for name, epoch in found.items()), time=time)
