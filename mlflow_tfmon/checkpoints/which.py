"""Which checkpoints are kept."""

from __future__ import annotations

import math

from mlflow_tfmon.settings import Settings


class Kept:
    """Decides, checkpoint by checkpoint, which of them are kept: the n best, the last, or all.

    Args:
        settings: how many.

    Example:
        >>> kept = Kept(Settings.make(checkpoint_keep=1))
        >>> for number, value in enumerate([0.5, 0.3, 0.4]):
        ...     kept.add(number, value, more=False, metric="val_loss")
        >>> sorted(kept.wanted)
        [1, 2]
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._values: dict[int, float] = {}
        self._all: set[int] = set()
        self._metric = ""
        self._last: int | None = None

    def joins(self, value: float | None, more: bool, metric: str) -> bool:
        """Whether a checkpoint with this value of the metric (None where there is none) would be among the n best."""
        if value is None or not math.isfinite(value):
            return False
        if metric != self._metric:
            return True
        worse = [kept for kept in self._values.values() if (value > kept if more else value < kept)]
        return bool(worse) or len(self._values) < self._settings.checkpoint_keep

    def add(self, number: int, value: float | None, more: bool, metric: str) -> None:
        """Takes a checkpoint, numbered upwards; it is the last one now."""
        if value is not None and self.joins(value, more, metric):
            if metric != self._metric:  # another stood in for it
                self._metric, self._values = metric, {}
            self._values[number] = value
            best_first = sorted(self._values.items(), key=lambda one: -one[1] if more else one[1])
            self._values = dict(best_first[: self._settings.checkpoint_keep])
        if not self._settings.checkpoint_save_best_only:
            self._all.add(number)
        self._last = number

    @property
    def wanted(self) -> frozenset[int]:
        """The numbers of those that are kept."""
        last = set() if self._last is None else {self._last}
        return frozenset(self._all | last | self._values.keys())
