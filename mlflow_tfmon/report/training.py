"""Report panels of the whole training: loss, metrics, learning rate, gradient, gap, throughput."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlflow_tfmon.reading.recorded import RecordedRun
from mlflow_tfmon.report.panels import Curve, Panel, Section, needs_log

_FIRST = "What takes far longer than most steps, such as the first one, sticks out of a linear scale."
_WAIT = "Share of the step spent waiting for input"
_MAX_CURVES = 12  # curves of one kind that can be told apart


def training(run: RecordedRun) -> list[Section]:
    """Returns the sections on the training as a whole and on its speed."""
    panels = [_loss(run), _metric(run), _learning_rate(run), _gradient(run), _gap(run)]
    speed = [
        _paced(_stepwise(run, "step_time", "Step time", {"step_time_ms": "step time"}, "ms"), _FIRST),
        _paced(_stepwise(run, "throughput", "Throughput", {"examples_per_second": "examples"}, "examples/s")),
        replace(_paced(_stepwise(run, "input_wait", _WAIT, {"input_wait_share": "input wait"})), share=True),
    ]
    speed += _system(run)
    own = [_others(run)]
    return [
        Section(title, kept)
        for title, found in (
            ("Training", panels),
            ("More figures", own),
            ("Throughput, input and machine", speed),
        )
        if (kept := tuple(panel for panel in found if panel is not None and panel.curves))
    ]


def _stepwise(run: RecordedRun, key: str, title: str, columns: dict[str, str], unit: str = "") -> Panel:
    """Columns of `run.steps`, those of each stream."""
    curves, marks = [], set[int]()
    for prefix in run.streams:
        for column, name in columns.items():
            if prefix + column not in run.steps:
                continue
            values = run.steps[prefix + column].to_numpy(float)
            curves.append(Curve.of(prefix + name, run.steps.index, values))
            if column in ("loss", "grad_norm"):  # others may be undefined
                bad = ~np.isfinite(values) & run.steps.index.isin(run.measured_at(prefix + column))
                if f"{prefix}skipped" in run.steps:  # left out by loss scaling, as it should be
                    bad &= run.steps[f"{prefix}skipped"].to_numpy(float) != 1
                marks |= set(run.steps.index[bad].tolist())
    kept = tuple(curve for curve in curves if curve.points)
    return Panel(key, title, kept, unit, needs_log(kept), marks=tuple(sorted(marks)[:200]))


def _paced(panel: Panel, note: str = "") -> Panel:
    """A panel of how fast steps are: the first one, which is traced, tells nothing of the others, nor do pauses."""
    return replace(panel, log=needs_log(panel.curves, outliers=True), outliers=True, note=note)


def epoch_curve(run: RecordedRun, metric: str, name: str | None = None) -> Curve | None:
    """An epoch metric over the steps at which its epochs ended."""
    if metric not in run.epochs:
        return None
    ends = run.epoch_ends
    prefix = next((p for p in sorted(set(ends.prefix), key=len, reverse=True) if metric.startswith(p)), "")
    steps = ends[ends.prefix == prefix].set_index("epoch").step
    values = run.epochs[metric].dropna()
    values = values[values.index.isin(steps.index)]
    curve = Curve.of(name or metric, steps.loc[values.index], values)
    return curve if curve.points else None


def _epoch_curves(run: RecordedRun, names: list[str]) -> list[Curve]:
    return [curve for name in names if (curve := epoch_curve(run, name)) is not None]


def _is_loss(metric: str) -> bool:
    return metric.rpartition(".")[2].removeprefix("val_") == "loss"


def _loss(run: RecordedRun) -> Panel:
    steps = _stepwise(run, "loss", "Loss, training and validation", {"loss": "loss of the step"})
    epochs = _epoch_curves(run, [name for name in run.epochs if _is_loss(name)])
    faint = tuple(Curve(c.name, c.points, faint=bool(epochs)) for c in steps.curves)
    curves = faint + tuple(epochs)
    return Panel("loss", steps.title, curves, log=needs_log(curves), marks=steps.marks)


def _metrics(run: RecordedRun) -> list[str]:
    """The epoch metrics besides the loss, each with its `val_` twin after it; first the one that tells most."""
    names = [n for n in run.epochs if not _is_loss(n) and not n.endswith("learning_rate")]
    names = [n for n in names if not n.startswith("validation_")]  # MLflow's second name of a `val_` metric
    first = [n for n in names if (twin := _of_training(n)) == n or twin not in names]
    first.sort(key=lambda n: not any(word in n for word in ("acc", "auc", "f1", "iou")))
    return first


def _of_training(name: str) -> str:
    head, dot, tail = name.rpartition(".")
    return f"{head}{dot}{tail.removeprefix('val_')}"


def _twins(run: RecordedRun, name: str) -> list[str]:
    head, dot, tail = name.rpartition(".")
    return [n for n in (name, f"{head}{dot}val_{tail}") if n in run.epochs]


def _metric(run: RecordedRun) -> Panel | None:
    names = _metrics(run)
    if not names:
        return None
    title = f"{names[0][:1].upper()}{names[0][1:]}, training and validation"
    return Panel("metric", title, tuple(_epoch_curves(run, _twins(run, names[0]))))


def _others(run: RecordedRun) -> Panel:
    names = [twin for name in _metrics(run)[1:] for twin in _twins(run, name)]
    return Panel("others", "Other epoch metrics", tuple(_epoch_curves(run, names[:_MAX_CURVES])))


def _learning_rate(run: RecordedRun) -> Panel:
    return _stepwise(run, "learning_rate", "Learning rate", {"learning_rate": "learning rate"})


def _gradient(run: RecordedRun) -> Panel:
    columns = {"grad_norm": "gradient norm", "grad_norm_clipped": "after clipping"}
    return _stepwise(run, "gradient", "Gradient norm", columns)


def _gap(run: RecordedRun) -> Panel | None:
    gaps = []
    for name in [n for n in run.epochs if n.rpartition(".")[2] == "val_loss"]:
        twin = name.removesuffix("val_loss") + "loss"
        here, there = epoch_curve(run, name), epoch_curve(run, twin)
        if here is not None and there is not None:
            train = dict(there.points)
            points = [(step, value - train[step]) for step, value in here.points if step in train]
            gaps.append(Curve(f"{name} - {twin}", points))
    note = "The validation loss minus the training loss: growth indicates overfitting."
    return Panel("gap", "Overfitting gap", tuple(gaps), note=note)


def _system(run: RecordedRun) -> list[Panel]:
    """What the training took of the machine."""
    panels = []
    for key, title, columns, unit in (
        ("processor", "Processor of this training", {"process_cpu_percent": "processor"}, "% of a core"),
        ("gpu", "GPUs, how busy", {"gpu_percent": "GPUs"}, "%"),
        ("memory", "Memory", {"process_memory_mb": "of this training", "memory_free_mb": "free"}, "MB"),
        ("gpu memory", "Memory of the GPUs", {"gpu_memory_mb": "used"}, "MB"),
    ):
        curves = tuple(
            Curve.of(name, run.system.index, run.system[column])
            for column, name in columns.items()
            if column in run.system
        )
        panels.append(Panel(key, title, tuple(one for one in curves if one.points), unit))
    return panels
