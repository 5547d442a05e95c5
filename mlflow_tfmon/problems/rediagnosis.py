"""Repeated diagnosis of a run, from its recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_tfmon.detectors import Problem
from mlflow_tfmon.detectors.thresholds import Chosen
from mlflow_tfmon.problems.current import Standing
from mlflow_tfmon.problems.plugins import others
from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.reading import files, frames
from mlflow_tfmon.stream import records

if TYPE_CHECKING:
    from mlflow_tfmon.reading.recorded import RecordedRun

_JUDGEMENTS = 50
_MOST_CHANGES = 4  # of what is measured, within a fiftieth of the training, that are followed one by one
_LISTS = "variables."


def diagnose(run: RecordedRun, chosen: Chosen | None = None) -> list[Problem]:
    """Diagnoses a run again, with the detectors of this version and those that are defined or installed.

    The records are replayed in order, and diagnosed at fiftieths of the training, so that a temporary problem is
    distinguished from a lasting one.

    Args:
        run: from `load_run`.
        chosen: detectors that are turned off, and thresholds, as in the setting `detectors`.

    Example:
        >>> diagnose(mlflow_tfmon.load_run(run_id))
        []
    """
    return replayed(run, run.ended, chosen=chosen)[1].problems


def replayed(
    run: RecordedRun, ended: bool = False, *, chosen: Chosen | None = None
) -> tuple[Replay, Standing]:
    """Goes through what was recorded of a run: its histories, and the problems that stand at the end.

    Args:
        run: the run.
        ended: whether its training is over, by itself.
        chosen: as in the setting `detectors`.
    """
    replay, standing = Replay(), Standing(others(), chosen)
    found = sorted(_records(run), key=lambda one: one[:2])
    last = found[-1][0] if found else 0
    due = 0.0
    for step, _, record in found:
        if step > due:
            due = step + last / _JUDGEMENTS
            standing.judge(replay.histories())
        replay.take(record)
    standing.judge(replay.histories(ended))
    return replay, standing


def _records(run: RecordedRun) -> Iterator[tuple[float, int, records.Record]]:
    """The records of a run, each with its step and its place among those of one step."""
    deep = {about["stream"]: _layout(files.table(path), about) for path, about in run.parts("deep-*")}
    for path, about in run.parts("steps-*"):
        table = files.table(path)
        layout = _layout(table, about)
        if layout.stream in deep:
            layout = dataclasses.replace(layout, deep_columns=deep[layout.stream].deep_columns)
        steps = table["step"].to_numpy()
        scalars = [table[name].to_numpy().astype(float)[:, None] for name in layout.columns]
        of_variables = _lists(table, layout.variable_columns, len(layout.variables))
        columns = [*layout.columns, *(_LISTS + name for name in layout.variable_columns)]
        measured = np.column_stack([frames.measured(table[name]) for name in columns])
        before = None
        for rows in alike(measured):
            there, at = measured[rows[0]], float(steps[rows[0]])
            if before is None or (there != before).any():
                # What was not measured has no column, as when it was recorded.
                yield at, 0, _only(layout, dict(zip(columns, there.tolist(), strict=True)))
            before = there
            columns_there = [
                one[rows] for one, is_there in zip([*scalars, *of_variables], there, strict=True) if is_there
            ]
            yield at, 2, records.Steps(layout.stream, 0.0, np.column_stack(columns_there))
    for path, about in run.parts("deep-*"):
        table = files.table(path)
        layout = _layout(table, about)
        values = np.column_stack(
            [table["step"].to_numpy(), *_lists(table, layout.deep_columns, len(layout.variables))]
        )
        for row in values:
            yield float(row[0]), 3, records.DeepSteps(layout.stream, 0.0, row[None])
    for path, _ in run.parts("epochs-*"):
        for (epoch, step, prefix), rows in files.table(path).to_pandas().groupby(["epoch", "step", "prefix"]):
            metrics = dict(zip(rows["name"].astype(str), rows["value"].astype(float), strict=True))
            yield step + 0.5, 4, records.EpochEnded(int(epoch), int(step), 0.0, metrics, str(prefix))
    for path, _ in run.parts("activations-*"):
        table = files.table(path).to_pandas()
        for (epoch, step, examples, prefix), rows in table.groupby(["epoch", "step", "examples", "prefix"]):
            layers = tuple(
                records.LayerActivations(
                    str(row.layer),
                    str(row.activation),
                    int(row.units),
                    bool(row.output),
                    row.mean,
                    row.std,
                    row.zero_fraction,
                    row.dead_fraction,
                    row.saturated_fraction,
                )
                for row in rows.itertuples()
            )
            yield (
                step + 0.5,
                5,
                records.Activations(int(epoch), int(step), 0.0, int(examples), layers, str(prefix)),
            )
    for path, _ in run.parts("system-*"):
        for (step, when), rows in files.table(path).to_pandas().groupby(["step", "time"]):
            used = dict(zip(rows["name"].astype(str), rows["value"].astype(float), strict=True))
            yield step + 0.5, 7, records.System(int(step), float(when), used)
    for kept in run.batches:
        about = {"kind": kept.kind, "text": kept.text}
        yield float(kept.step), 4, records.Evidence(kept.step, 0.0, about, b"", kept.prefix)
    for path in run.files("premises-*.json"):
        about = files.read_json(path)
        step = about.get("step", 0)
        yield step + 0.5 if step else 0.0, 6, records.Premises(about["about"], about["prefix"], step)


def alike(measured: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a stream in parts, of each of which the same columns were measured.

    A fiftieth of the rows at a time: in their order; or, where what is measured changes often (a loop that has a loss
    at every second step), all those of a kind together, so that there are few parts however many rows.

    Args:
        measured: array (rows, columns).
    """
    size = max(1, len(measured) // _JUDGEMENTS)
    for begin in range(0, len(measured), size):
        part = measured[begin : begin + size]
        edges = np.flatnonzero((part[1:] != part[:-1]).any(axis=1)) + 1
        rows = begin + np.arange(len(part))
        if len(edges) <= _MOST_CHANGES:
            yield from np.split(rows, edges)
        else:
            _, first, kind = np.unique(part, axis=0, return_index=True, return_inverse=True)
            for one in np.argsort(first):
                yield rows[kind.reshape(-1) == one]


def _layout(table: Any, about: dict[str, Any]) -> records.StreamOpened:
    lists = tuple(name.removeprefix(_LISTS) for name in table.column_names if name.startswith(_LISTS))
    return records.StreamOpened(
        about["stream"], about["prefix"],
        tuple(records.Variable(name, tuple(shape), kernel) for name, shape, kernel in about["variables"]),
        tuple(name for name in table.column_names if not name.startswith(_LISTS)),
        lists, lists, about.get("total_steps"), about.get("model", ""),
    )  # fmt: skip


def _only(layout: records.StreamOpened, measured: dict[str, bool]) -> records.StreamOpened:
    """The layout with those of its columns that were measured."""
    return dataclasses.replace(
        layout,
        columns=tuple(name for name in layout.columns if measured[name]),
        variable_columns=tuple(name for name in layout.variable_columns if measured[_LISTS + name]),
    )


def _lists(table: Any, names: tuple[str, ...], count: int) -> list[np.ndarray]:
    return [
        table[_LISTS + name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, count)
        for name in names
    ]
