"""Custom metrics, computed by the user's function at each epoch's end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mlflow_tfmon.errors import say_once
from mlflow_tfmon.random_state import same_random_numbers
from mlflow_tfmon.settings import Settings


def measured(model: Any, settings: Settings) -> dict[str, float]:
    """What the function given as `epoch_metrics` says of a model.

    Args:
        model: at the end of an epoch.
        settings: of the training.

    Returns:
        Its numbers by name; none where there is no such function, or where it failed, of which it is told once.

    Example:
        >>> measured(model, Settings.make(epoch_metrics=lambda model: {"val_map": 0.5}, mode="max"))
        {'val_map': 0.5}
    """
    function = settings.epoch_metrics
    if function is None:
        return {}
    try:
        with same_random_numbers():
            found = function(model)
        if not isinstance(found, Mapping):
            raise TypeError(f"it must return a dictionary of numbers, not {type(found).__name__}")
        metrics = {str(name): float(value) for name, value in found.items()}
    except Exception as error:  # the user's, not ours: never raised, not even in tests
        say_once(
            f"epoch_metrics {function!r}",
            f"mlflow_tfmon: the function given as epoch_metrics failed ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); fix it: epochs at which it fails lack its metrics; "
            "training continues.",
        )
        return {}
    if settings.mode == "auto" and settings.monitor in metrics:
        better = "higher" if settings.maximizes(settings.monitor) else "lower"
        say_once(
            f"direction of {settings.monitor}",
            f"mlflow_tfmon: monitor={settings.monitor!r}: {better} values are assumed to be better, judging by the "
            'name; set mode="max" or mode="min".',
            logging.INFO,
        )
    return metrics
