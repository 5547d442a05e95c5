"""Selection of the checkpoints that are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_tfmon.checkpoints.names import LAST, RESUME
from mlflow_tfmon.settings import Settings


@dataclass(frozen=True)
class Before:
    """A checkpoint in MLflow of an earlier recording of the run.

    Attributes:
        model_id: of the logged model.
        pointers: its roles among `names.BEST`, `names.LAST`, `names.RESUME`; none for another of the n best.
        epoch: its number.
        step: optimizer steps done.
        metric, value, more: the metric by which it is compared ("" and None for none), and whether higher is better.
        whole: whether MLflow can load it.
        registered: the registered models that it is a version of.
    """

    model_id: str
    pointers: tuple[str, ...]
    epoch: int
    step: int
    metric: str
    value: float | None
    more: bool
    whole: bool
    registered: tuple[str, ...]

    @property
    def within(self) -> bool | None:
        """For a last one, whether it was made within an epoch; None for any other."""
        if RESUME in self.pointers:
            return False
        return True if LAST in self.pointers else None


class Kept:
    """Selection of kept checkpoints, one by one: the n best, the last, the last at an epoch's end, or all.

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
        self._last: dict[bool, int] = {}  # at an epoch's end, and within an epoch

    def joins(self, value: float | None, more: bool, metric: str) -> bool:
        """Whether a checkpoint with this value of the metric (None without one) would be among the n best."""
        if value is None or not math.isfinite(value):
            return False
        if metric != self._metric:
            return True
        worse = [kept for kept in self._values.values() if (value > kept if more else value < kept)]
        return bool(worse) or len(self._values) < self._settings.checkpoint_keep

    def add(
        self, number: int, value: float | None, more: bool, metric: str, within: bool | None = False
    ) -> None:
        """Takes a checkpoint, in ascending order; it is now the last one of its kind (of neither, if that is None)."""
        if value is not None and self.joins(value, more, metric):
            if metric != self._metric:  # another metric replaced it
                self._metric, self._values = metric, {}
            self._values[number] = value
            best_first = sorted(self._values.items(), key=lambda one: -one[1] if more else one[1])
            self._values = dict(best_first[: self._settings.checkpoint_keep])
        if not self._settings.checkpoint_save_best_only:
            self._all.add(number)
        if within is not None:
            self._last[within] = number

    def forget(self, number: int, others: Mapping[int, float]) -> None:
        """Gives up a checkpoint that cannot be written.

        Args:
            number: of it.
            others: with their values, those that are among the best again if it had replaced them.
        """
        if self._values.pop(number, None) is not None:
            self._values |= others
        self._all.discard(number)

    @property
    def wanted(self) -> frozenset[int]:
        """The numbers of the kept checkpoints."""
        last = {max(self._last.values())} if self._last else set()
        whole = {self._last[False]} if False in self._last else set()
        return frozenset(self._all | last | whole | self._values.keys())
