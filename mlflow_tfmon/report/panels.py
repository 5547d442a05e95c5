"""Panels as plain data: curves over the steps, or a heatmap; each with a text alternative.

A panel of several runs is that of each run, laid over one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlflow_tfmon.report.thin import thin

_WIDE, _TOWERS = 50.0, 30.0  # between most values of a panel; of its largest above its median


@dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
        name: in the legend.
        points: (step, value), in the order of the steps.
        faint: whether it is the background of another.
        run: position of the run that it is of, where there are several.
        layer: that it is of, or "".
    """

    name: str
    points: list[tuple[float, float]]
    faint: bool = False
    run: int = 0
    layer: str = ""

    @classmethod
    def of(cls, name: str, steps: Any, values: Any, faint: bool = False, layer: str = "") -> Curve:
        """A curve of many points, thinned."""
        at, kept = thin(np.asarray(steps), np.asarray(values, float))
        digits = (float(f"{value:.5g}") for value in kept)
        return cls(name, list(zip(at.tolist(), digits, strict=True)), faint, layer=layer)

    @property
    def text(self) -> str:
        """The curve in words."""
        values = np.array([value for _, value in self.points])
        steps = [int(step) for step, _ in self.points]
        least, most = int(values.argmin()), int(values.argmax())
        if len(values) == 1:
            return f"{self.name}: {values[0]:.4g} at step {steps[0]}"
        return (
            f"{self.name}: from {values[0]:.4g} (step {steps[0]}) to {values[-1]:.4g} (step {steps[-1]}), "
            f"least {values[least]:.4g} (step {steps[least]}), largest {values[most]:.4g} (step {steps[most]})"
        )


def needs_log(curves: Sequence[Curve], outliers: bool = False) -> bool:
    """Whether a linear scale would show some of the curves as lines at its bottom, and nothing of them.

    Args:
        curves: of a panel.
        outliers: whether a few values may be far from the others: above, they stick out of a linear scale.
    """
    found = np.array([value for curve in curves for _, value in curve.points])
    values = found[found > 0]
    if _below_zero(curves) or len(values) <= len(found) / 2:  # what is not above 0 is left out
        return False
    low, middle, high = np.quantile(values, [0.02, 0.5, 0.98])
    if outliers:  # what is below is seen on a linear scale, unless it is half of a curve
        each = ([y for _, y in one.points] for one in curves if one.points)
        return bool(high > _WIDE * min(np.quantile(some, 0.5, method="lower") for some in each))
    return bool(high > _WIDE * low or values.max() > _TOWERS * middle)


def _below_zero(curves: Sequence[Curve]) -> bool:
    return any(value < 0 for curve in curves for _, value in curve.points)


@dataclass(frozen=True)
class Panel:
    """Curves over the steps.

    Attributes:
        key: what it is, the same in every run.
        title: above it.
        curves: what is drawn.
        unit: of the values.
        log: whether the axis of the values is logarithmic at first.
        share: whether the values are shares of a whole, so that a linear axis ends at 1.
        outliers: whether a linear axis ends at what is usual, so that a few values far above that stick out of it.
        band: from where to where values are healthy, or None.
        marks: steps at which a value was not finite.
        note: what to know when looking at it.
    """

    key: str
    title: str
    curves: tuple[Curve, ...]
    unit: str = ""
    log: bool = False
    share: bool = False
    outliers: bool = False
    band: tuple[float, float] | None = None
    marks: tuple[int, ...] = ()
    note: str = ""

    @property
    def text(self) -> str:
        """The picture in words."""
        said = [curve.text for curve in self.curves[:6]]
        if len(self.curves) > 6:
            said.append(f"and {len(self.curves) - 6} more")
        if self.marks:
            said.append(f"not finite at {len(self.marks)} steps, first at step {self.marks[0]}")
        return "; ".join(said) + "."


@dataclass(frozen=True)
class Cells:
    """A heatmap: columns are steps, rows are bins of values, or variables.

    Attributes:
        name: what to choose it by, among the pictures of a `Picture`.
        steps: of the columns.
        rows: their names, from the bottom to the top.
        cells: (column, row, value); a cell that is left out is empty.
        text: the picture in words.
        logarithmic: whether the rows are values that grow by a factor.
        layers: what each row is of, where rows are variables; else the layer of the picture, or none.
    """

    name: str
    steps: list[int]
    rows: list[str]
    cells: list[tuple[int, int, float]] = field(repr=False)
    text: str
    logarithmic: bool = False
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """Heatmaps of which one is shown at a time.

    Attributes:
        key: what it is, the same in every run.
        title: above it.
        choices: the pictures.
        scale: what the colours say.
        log: whether the colours are by the logarithm of that; else they are by its root.
        note: what to know when looking at it.
    """

    key: str
    title: str
    choices: tuple[Cells, ...]
    scale: str
    note: str = ""
    log: bool = False

    @property
    def text(self) -> str:
        """The first picture in words."""
        return self.choices[0].text


@dataclass(frozen=True)
class Section:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel | Picture, ...]


def laid_over(runs: Sequence[tuple[str, Sequence[Section]]]) -> list[Section]:
    """The curves of several runs in the same panels; pictures of cells can't be laid over one another.

    Args:
        runs: the name of each run, and its sections.

    Example:
        >>> laid_over([("one", sections_one), ("two", sections_two)])
    """
    titles: dict[str, dict[str, Panel]] = {}
    for at, (name, sections) in enumerate(runs):
        for section in sections:
            panels = titles.setdefault(section.title, {})
            for panel in section.panels:
                if not isinstance(panel, Panel):
                    continue
                curves = tuple(replace(c, name=f"{name} · {c.name}", run=at) for c in panel.curves)
                first = panels.get(panel.key)
                together = (first.curves if first else ()) + curves
                log = (panel.log or (first is not None and first.log)) and not _below_zero(together)
                log = log or needs_log(together, panel.outliers)
                panels[panel.key] = replace(panel, curves=together, log=log, marks=())
    return [Section(title, tuple(panels.values())) for title, panels in titles.items() if panels]
