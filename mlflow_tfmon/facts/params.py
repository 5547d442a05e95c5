"""Params of a fit, as MLflow shows them."""

from __future__ import annotations

import logging
from typing import Any

from mlflow_tfmon import kerases
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.facts.geometry import batch_size
from mlflow_tfmon.probes.alone import alone

_logger = logging.getLogger(__name__)
# These are data or wiring; the data are described as dataset inputs.
_NOT_PARAMS = frozenset(("x", "y", "callbacks", "validation_data", "verbose", "batch_size"))


def fit_params(arguments: FitArguments) -> dict[str, str]:
    """The params of a fit: its arguments, the optimizer's configuration (`opt_*`), and those of early stopping.

    Args:
        arguments: the call.

    Returns:
        Names and values, as `mlflow.tensorflow.autolog` gives them. `batch_size` is the one that is really used, and
        is left out where it is not known. Arrays are described by shape and type.

    Example:
        >>> fit_params(bind_fit(keras.Model.fit, model, (x, y), {"epochs": 3}))["epochs"]
        '3'
    """
    params = {name: _text(value) for name, value in arguments.values.items() if name not in _NOT_PARAMS}
    size = batch_size(arguments)
    if size is not None:
        params["batch_size"] = str(size)
    params.update(optimizer_params(arguments.model))
    params.update(early_stopping_params(arguments.callback_list))
    return params


def optimizer_params(model: Any) -> dict[str, str]:
    """The configuration of a compiled model's optimizer as `opt_<name>`; empty where there is none."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return {}
    try:
        with alone():
            return {f"opt_{name}": str(value) for name, value in optimizer.get_config().items()}
    except Exception:
        # A user's optimizer need not have a configuration.
        _logger.debug("The optimizer %s has no configuration.", type(optimizer).__name__, exc_info=True)
        return {}


def early_stopping_params(callbacks: list[Any]) -> dict[str, str]:
    """What the first `EarlyStopping` among the callbacks watches, and how; empty where there is none."""
    for callback in callbacks:
        if isinstance(callback, kerases.every("callbacks.EarlyStopping")):
            names = ("monitor", "min_delta", "patience", "baseline", "restore_best_weights")
            return {name: str(getattr(callback, name, None)) for name in names}
    return {}


def _text(value: Any) -> str:
    """A param's value; an array is never written out."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and len(shape):
        return f"{type(value).__name__}(shape={tuple(shape)}" + (
            f", dtype={dtype})" if dtype is not None else ")"
        )
    if isinstance(value, (list, tuple)) and any(getattr(item, "shape", ()) for item in value):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if isinstance(value, dict) and any(getattr(item, "shape", ()) for item in value.values()):
        return "{" + ", ".join(f"{key!r}: {_text(item)}" for key, item in value.items()) + "}"
    return str(value)
