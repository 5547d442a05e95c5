"""Changes of the learning rate between steps, by a callback or by hand."""

from __future__ import annotations

from typing import Any

from mlflow_tfmon.probes.alone import alone
from mlflow_tfmon.stream.records import Facts

CHANGED = "learning_rate_changed"


class Rate:
    """An optimizer's learning rate from epoch to epoch.

    Example:
        >>> rate = Rate(model.optimizer)  # 0.1
        >>> model.optimizer.learning_rate = 0.05
        >>> rate.change(epoch=3).metrics
        (('learning_rate_changed', 0.05, 3),)
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._known = _value(optimizer)

    def change(self, epoch: int, prefix: str = "", time: float = 0.0) -> Facts | None:
        """What is to be recorded if the rate is another than at the last call.

        Args:
            epoch: the run's number of the epoch that is over.
            prefix: what precedes the metric's name.
            time: Unix time, seconds.

        Returns:
            The metric "learning_rate_changed" with the new rate, or None. What a schedule does is not a change.
        """
        now = _value(self._optimizer)
        if now is None or now == self._known:
            return None
        self._known = now
        return Facts(metrics=((prefix + CHANGED, now, epoch),), time=time)


def _value(optimizer: Any) -> float | None:
    """The rate, None where it is a schedule or another callable (Keras 2 and 3 keep it in the same place)."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(inner, "_learning_rate", None)
    if rate is None or callable(rate):
        return None
    with alone():
        return float(rate.numpy())
