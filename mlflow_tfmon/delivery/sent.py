"""What the calls to come depend on: what has been handed over before them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlflow_tfmon.delivery.tally import Tally
from mlflow_tfmon.tracking.points import Point


@dataclass
class Sent:
    """Plain data, which a delivery that takes over from another goes on with.

    Attributes:
        tally: the count of points and rows.
        uncounted: metrics with points, and files, that were not looked for in the store yet.
        linkable: points that a model's metrics may be, by metric and step.
        models: of models that are kept: path -> step.
        to_register: a run's tag that says which model -> registered model.
        tagged: the state of delivery, as the run's tag says it.
        progress: the same for how far the training has come.
    """

    tally: Tally = field(default_factory=Tally)
    uncounted: set[str] = field(default_factory=set)
    linkable: dict[tuple[str, int], Point] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    to_register: dict[str, str] = field(default_factory=dict)
    tagged: str = ""
    progress: str = ""
