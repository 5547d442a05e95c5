"""Summary at the end of a training, on one screen: as text, and in a notebook as a card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.errors import logger
from mlflow_tfmon.reading.card import card, verdict_of
from mlflow_tfmon.tracking.links import charts, where
from mlflow_tfmon.uris import visible, without_secrets
from mlflow_tfmon.watching.terminal import in_notebook

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
        best: the best epochs, such as "val_loss 0.1234 at epoch 7 of 12".
        problems: the current ones.
        waiting: how many records wait for delivery.
        why: they wait, or None.
        not_kept: what was measured and not kept, and why, or "".
        name: of the run.
        curves: losses and gradient norms by name, coarse.
    """

    run_id: str | None
    experiment_id: str
    tracking_uri: str
    steps: int
    epochs: int
    best: tuple[str, ...] = ()
    problems: Sequence[Problem] = ()
    waiting: int = field(default=0, compare=False)
    why: str | None = None
    not_kept: str = ""
    name: str | None = None
    curves: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def say(self) -> None:
        """Shows it: in a notebook below its cell, else in the log; nowhere if the log is silent."""
        level = logging.INFO if self.calm else logging.WARNING
        if logger.isEnabledFor(level) and in_notebook():
            from IPython.display import display

            # The log's own filter does the same to what is logged.
            texts = {"text/html": self.card(), "text/plain": self.text()}
            display({kind: visible(without_secrets(text)) for kind, text in texts.items()}, raw=True)
        else:
            logger.log(level, self.text())

    def is_news(self, before: Summary | None) -> bool:
        """Whether it says anything that an earlier one has not said: the run's end, after that of its last fit."""
        return before is None or self != before or bool(self.waiting and not before.waiting)

    @property
    def calm(self) -> bool:
        """Whether there is nothing that someone should look after."""
        return not self.problems and not self.waiting and not self.not_kept

    def text(self) -> str:
        """As some lines for a terminal."""
        rows = [("recorded", self._recorded)]
        rows += [("best", one) for one in self.best]
        rows.append(("look at", where(self.tracking_uri, self.experiment_id, self.run_id)))
        rows.append(("charts", charts(self.tracking_uri, self.experiment_id)))
        rows += [("problem", f"{one.severity}: {one.line()}") for one in self.problems[:_MOST_PROBLEMS]]
        if len(self.problems) > _MOST_PROBLEMS:
            rows.append(("", f"and {len(self.problems) - _MOST_PROBLEMS} more, in tfmon/problems.json"))
        if not self.problems:
            rows.append(("problems", "none"))
        rows += self._not_there
        lines = [f"  {name:<9} {text}" for name, text in rows]
        return "\n".join([f"mlflow_tfmon: run {self.run_id or '(not made yet)'}", *lines])

    def card(self) -> str:
        """As a piece of HTML for a notebook."""
        page = where(self.tracking_uri, self.experiment_id, self.run_id)
        linked = page.startswith(("http://", "https://"))
        facts = [f"recorded {self._recorded}", *(f"best {one}" for one in self.best)]
        facts += [] if linked else [f"look at it: {page}"]
        facts += [f"{name}: {text}" for name, text in self._not_there]
        links = [("the run", page), ("the charts of all runs", charts(self.tracking_uri, self.experiment_id))]
        return card(
            f"{self.name or 'run'} ({self.run_id or 'not made yet'})",
            verdict_of(self.problems, complete=True),
            facts,
            self.curves,
            links=links if linked else (),
        )

    @property
    def _recorded(self) -> str:
        epochs = f", {_count(self.epochs, 'epoch')}" if self.epochs else ""  # a plain loop tells of none
        return _count(self.steps, "step") + epochs

    @property
    def _not_there(self) -> list[tuple[str, str]]:
        """What was measured and MLflow lacks."""
        rows = [("not kept", self.not_kept)] if self.not_kept else []
        if self.waiting:
            why = f" ({self.why})" if self.why else ""
            what = f"{_count(self.waiting, 'record')} {'is' if self.waiting == 1 else 'are'}"
            after = "(continues up to 1 min after exit; then run `mlflow-tfmon sync`)."
            rows.append(("waiting", f"{what} still being uploaded{why} {after}"))
        return rows


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
