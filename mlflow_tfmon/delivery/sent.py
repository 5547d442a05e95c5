"""Record of what has been handed over, on which later calls depend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlflow_tfmon.delivery.tally import Tally
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.translation.state import State


@dataclass
class Sent:
    """Plain data, which a delivery that takes over from another goes on with.

    Attributes:
        tally: the count of points and rows, and the names of all else.
        uncounted: metrics with points, and files, that were not looked for in the store yet.
        linkable: points that a model's metrics may be, by metric and step.
        models: of models that are kept: path -> step.
        to_register: a run's tag that says which model -> registered model.
        changed: what no store takes, and how it was changed: name -> how.
        tagged: the state of delivery, as the run's tag says it.
        progress: the same for how far the training has come.
    """

    tally: Tally = field(default_factory=Tally)
    uncounted: set[str] = field(default_factory=set)
    linkable: dict[tuple[str, int], Point] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    to_register: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    tagged: str = ""
    progress: str = ""

    def state(self) -> dict[str, Any]:
        """Returns the state as JSON-compatible data."""
        points = [point._asdict() for point in self.linkable.values()]
        return {
            "tally": self.tally.state(), "uncounted": sorted(self.uncounted), "linkable": points,
            "models": self.models, "to_register": self.to_register, "changed": self.changed, "tagged": self.tagged,
            "progress": self.progress,
        }  # fmt: skip

    @classmethod
    def restored(cls, state: State) -> Sent:
        """Restores the state.

        Raises:
            StateError: it is none.
        """
        points = [
            Point(one.text("key"), one.number("value", finite=True), one.integer("step"), one.integer("time"))
            for one in state.parts("linkable")
        ]
        return cls(
            Tally.restored(state.part("tally")), set(state.list_of_texts("uncounted")),
            {(point.key, point.step): point for point in points}, state.integers("models"),
            state.texts("to_register"), state.texts("changed"), state.text("tagged"), state.text("progress"),
        )  # fmt: skip
