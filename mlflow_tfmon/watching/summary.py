"""Summary at the end of a training, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.tracking.links import charts, where

_MOST_PROBLEMS = 6


@dataclass(frozen=True)
class Summary:
    """Summary of a run.

    Attributes:
        run_id: the run, or None if it is not made yet.
        experiment_id: its experiment.
        tracking_uri: the store.
        steps: how many optimizer steps were recorded.
        epochs: how many epochs.
        best: the best epochs, such as "val_loss 0.1234 at epoch 7".
        problems: the current ones.
        waiting: how many records wait for delivery.
        why: they wait, or None.
        not_kept: what was measured and not kept, and why, or "".
    """

    run_id: str | None
    experiment_id: str
    tracking_uri: str
    steps: int
    epochs: int
    best: tuple[str, ...] = ()
    problems: Sequence[Problem] = ()
    waiting: int = 0
    why: str | None = None
    not_kept: str = ""

    @property
    def calm(self) -> bool:
        """Whether there is nothing that someone should look after."""
        return not self.problems and not self.waiting and not self.not_kept

    def text(self) -> str:
        """As some lines for a terminal."""
        epochs = f", {_count(self.epochs, 'epoch')}" if self.epochs else ""  # a plain loop tells of none
        rows = [("recorded", _count(self.steps, "step") + epochs)]
        rows += [("best", one) for one in self.best]
        rows.append(("look at", where(self.tracking_uri, self.experiment_id, self.run_id)))
        rows.append(("charts", charts(self.tracking_uri, self.experiment_id)))
        rows += [("problem", f"{one.severity}: {one.line()}") for one in self.problems[:_MOST_PROBLEMS]]
        if len(self.problems) > _MOST_PROBLEMS:
            rows.append(("", f"and {len(self.problems) - _MOST_PROBLEMS} more, in tfmon/problems.json"))
        if not self.problems:
            rows.append(("problems", "none"))
        if self.not_kept:
            rows.append(("not kept", self.not_kept))
        if self.waiting:
            why = f" ({self.why})" if self.why else ""
            what = _count(self.waiting, "record")
            rows.append(
                (
                    "waiting",
                    f"{what} {'is' if self.waiting == 1 else 'are'} still being uploaded{why} (continues up to 1 min "
                    "after exit; then run `mlflow-tfmon sync`).",
                )
            )
        lines = [f"  {name:<9} {text}" for name, text in rows]
        return "\n".join([f"mlflow_tfmon: run {self.run_id or '(not made yet)'}", *lines])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
