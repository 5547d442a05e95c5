"""The best epoch so far, by one metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlflow_tfmon.errors import say_once
from mlflow_tfmon.settings import Settings


class Best:
    """Follows a metric over the epochs of one model within one run.

    Attributes:
        metric: the metric it uses, None until one has been logged.
        value: the best value so far, None until there is one.
        epoch: the epoch that had it.
        more: whether higher values are better.

    Args:
        settings: the metric and its direction.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._came: list[str] = []
        self.metric: str | None = None
        self.value: float | None = None
        self.epoch = -1
        self.more = False

    def consider(
        self,
        epoch: int,
        metrics: Mapping[str, float],
        directions: Mapping[str, str] | None = None,
        validated: bool = False,
    ) -> bool:
        """Takes an epoch's metrics; returns whether it is the best so far. A non-finite value never is.

        Args:
            epoch: its number.
            metrics: by name.
            directions: as in `Settings.maximizes`.
            validated: whether there are validation data, even if they are not used at each epoch.
        """
        self._came += [name for name in metrics if name not in self._came]
        if self.metric != self._settings.monitor and self._settings.monitor in metrics:
            self.metric, self.value = self._settings.monitor, None  # no metric replaces it any longer
        self.metric = self.metric or self._choose(metrics, validated)
        value = metrics.get(self.metric) if self.metric else None
        if value is None or not math.isfinite(value):
            return False
        assert self.metric is not None
        self.more = self._settings.maximizes(self.metric, directions)
        if not self._settings.is_told(self.metric, directions):
            say_once(
                f"direction of {self.metric}",
                f"mlflow_tfmon: monitor={self.metric!r}: lower values are assumed to be better, since neither Keras "
                'nor the name tells; set mode="max" or mode="min".',
            )
        if self.value is not None:
            gain = value - self.value if self.more else self.value - value
            if gain <= self._settings.min_delta:
                return False
        self.value, self.epoch = value, epoch
        return True

    def text(self, prefix: str, epochs: int) -> str:
        """Description such as "val_loss 0.1234 at epoch 7 of 12"; "" if there is none. Keras too counts from 1."""
        if self.value is None:
            return ""
        return f"{prefix}{self.metric} {self.value:.5g} at epoch {self.epoch + 1} of {max(epochs, self.epoch + 1)}"

    def state(self) -> dict[str, Any]:
        """Returns its state as JSON-compatible data."""
        return {name: getattr(self, name) for name in ("metric", "value", "epoch", "more")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from the state of another, if that used a metric that this one may use."""
        if state["metric"] in (self._settings.monitor, "loss"):
            self.metric, self.value = state["metric"], state["value"]
            self.epoch, self.more = state["epoch"], state["more"]

    def _choose(self, metrics: Mapping[str, float], validated: bool) -> str | None:
        wanted = self._settings.monitor
        if wanted in metrics:
            return wanted
        validated = validated or any(name.startswith("val_") for name in metrics)
        if wanted != "val_loss" or "loss" not in metrics or validated:
            return None
        say_once(
            "no val_loss",
            "mlflow_tfmon: monitor='val_loss', but there is no validation data: 'loss' is used.",
        )
        return "loss"

    def complaint(self) -> str | None:
        """Returns a message if metrics were logged, but never the chosen one; else None."""
        if self.metric is not None or not self._came:
            return None
        return (
            f"mlflow_tfmon: monitor={self._settings.monitor!r} was never logged, so there is no best epoch; logged "
            f"metrics: {', '.join(self._came)}. Set monitor to one of them."
        )


def directions_of(model: Any) -> dict[str, str]:
    """Returns for a model's metrics whether "up" or "down" is better, as far as Keras (3.7 and newer) knows it."""
    found: dict[str, str] = {}
    try:
        waiting = list(getattr(model, "metrics", None) or ())
    except Exception:  # a property that the user wrote
        return found
    while waiting:
        metric = waiting.pop()
        waiting += getattr(metric, "metrics", None) or ()
        if getattr(metric, "_direction", None):
            found[str(metric.name)] = str(metric._direction)
    return found
