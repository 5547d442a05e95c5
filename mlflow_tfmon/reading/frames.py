"""Tables of a run, from its telemetry files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mlflow_tfmon.reading import files
from mlflow_tfmon.stream import bins

_LISTS = "variables."
Parts = Iterable[tuple[Path, dict[str, Any]]]  # files, each with what its metadata tell


def steps(parts: Parts, logged_parts: Parts) -> pd.DataFrame:
    """A row per step, the columns of several streams beside one another; the user's own figures are columns too."""
    tables: dict[str, list[pd.DataFrame]] = {}
    for path, about in parts:
        columns = [name for name in files.names_of(path) if not name.startswith(_LISTS)]
        frame = files.table(path, columns).to_pandas().set_index("step")
        tables.setdefault(about["prefix"], []).append(frame)
    logged: dict[str, list[pd.DataFrame]] = {}
    for path, about in logged_parts:
        logged.setdefault(about["prefix"], []).append(files.table(path).to_pandas())
    frames = []
    for prefix in dict.fromkeys([*tables, *logged]):
        frame = (
            pd.concat(tables[prefix]) if prefix in tables else pd.DataFrame(index=pd.Index([], name="step"))
        )
        if prefix in logged:
            frame = frame.join(wide(pd.concat(logged[prefix]), "step"), how="outer", rsuffix="_logged")
        frames.append(frame.add_prefix(prefix))
    return pd.concat(frames, axis=1).sort_index() if frames else pd.DataFrame(index=pd.Index([], name="step"))


def measured_at(parts: Parts, logged_parts: Parts, column: str) -> np.ndarray:
    """The steps at which a column of `steps` was measured: there a NaN is what the training computed."""
    found = [np.empty(0, int)]
    for path, about in parts:
        name = column.removeprefix(about["prefix"])
        if about["prefix"] + name == column and name in files.names_of(path):
            table = files.table(path, ["step", name])
            found.append(table["step"].to_numpy()[measured(table[name])])
    for path, about in logged_parts:
        table = files.table(path).to_pandas()
        own = about["prefix"] + table["name"].astype(str)
        found.append(table["step"][(own == column) | (own + "_logged" == column)].to_numpy())
    return np.concatenate(found)


def measured(column: pa.ChunkedArray) -> np.ndarray:
    """In which rows of a file a column, of numbers or of lists, was measured: it is null in the others."""
    column = column.combine_chunks()
    if not pa.types.is_list(column.type):
        return np.asarray(column.is_valid())
    elements = np.asarray(column.flatten().is_valid())
    return np.asarray(elements.reshape(len(column), -1).any(axis=1))


def layers(kinds: Iterable[Parts]) -> pd.DataFrame:
    """A row per step and variable, what kinds of files tell of it side by side."""
    frames = []
    for parts in kinds:
        found = [_long(files.table(path), about) for path, about in parts]
        found = [part for part in found if len(part.columns) > 2]
        if found:
            frames.append(pd.concat(found, ignore_index=True))
    if not frames:
        return pd.DataFrame(columns=["step", "variable"])
    if len(frames) == 2:
        frame = frames[0].merge(frames[1], on=["step", "variable"], how="outer", sort=False)
    else:
        frame = frames[0]
    order = {name: at for at, name in enumerate(dict.fromkeys(frame["variable"]))}
    frame["variable"] = pd.Categorical(frame["variable"], categories=list(order))
    return frame.sort_values(["step", "variable"], kind="stable", ignore_index=True)


def histograms(parts: Parts) -> pd.DataFrame:
    """A row per histogram, with its edges and quantiles."""
    frames = []
    for path, about in parts:
        frame = files.table(path).to_pandas()
        frame["variable"] = about["prefix"] + frame["variable"].astype(str)
        frames.append(frame)
    columns = ["step", "variable", "kind", "edges", "counts", "zeros", "nonfinite", "min", "max"]
    if not frames:
        return pd.DataFrame(columns=columns)
    table = pd.concat(frames, ignore_index=True)
    table["edges"] = [
        bins.EDGES[first : first + len(counts) + 1]
        for first, counts in zip(table["first_bin"], table["counts"], strict=True)
    ]
    shares = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    figures = zip(table["edges"], table["counts"], table["min"], table["max"], strict=True)
    found = [bins.quantiles(edges, counts, shares, *ends) for edges, counts, *ends in figures]
    table[["q05", "q25", "q50", "q75", "q95"]] = np.array(found).reshape(-1, len(shares))
    return table[[*columns, "q05", "q25", "q50", "q75", "q95"]]


def norm_histograms(deep: Parts, steps: Parts) -> pd.DataFrame:
    """A row per deep step and kind of norm: how the norms of all variables are distributed."""
    columns = ["step", "prefix", "kind", "edges", "counts", "zeros", "nonfinite"]
    rows: list[tuple[Any, ...]] = []
    deep_steps: dict[str, list[np.ndarray]] = {}
    for path, about in deep:
        _, at, wide = wide_block(path, about)
        deep_steps.setdefault(about["prefix"], []).append(at)
        rows += _distributed(at, about["prefix"], "weight_norm", wide.get("weight_norm"))
    for path, about in steps:
        _, at, wide = wide_block(path, about)
        wanted = np.isin(at, np.concatenate(deep_steps.get(about["prefix"], [np.empty(0, int)])))
        norms = wide.get("grad_norm")
        if norms is not None:
            wanted &= measured(files.table(path, [f"{_LISTS}grad_norm"])[f"{_LISTS}grad_norm"])
        if norms is not None and wanted.any():
            rows += _distributed(at[wanted], about["prefix"], "grad_norm", norms[wanted])
    return pd.DataFrame(rows, columns=columns).sort_values(["prefix", "kind", "step"], ignore_index=True)


def _distributed(
    steps: np.ndarray, prefix: str, kind: str, norms: np.ndarray | None
) -> Iterator[tuple[Any, ...]]:
    if norms is None:
        return
    edges, many = bins.NORM_EDGES, len(bins.NORM_EDGES) - 1
    counted = np.isfinite(norms) & (norms > 0)
    bin_ = np.clip(np.searchsorted(edges, np.where(counted, norms, 1.0), side="right") - 1, 0, many - 1)
    at = (np.arange(len(steps))[:, None] * many + bin_)[counted]
    counts = np.bincount(at, minlength=len(steps) * many).reshape(len(steps), many)
    zeros, nonfinite = (norms == 0).sum(axis=1).tolist(), (~np.isfinite(norms)).sum(axis=1).tolist()
    for step, row, *apart in zip(steps.tolist(), counts, zeros, nonfinite, strict=True):
        first, end = bins.trimmed(row)
        yield (step, prefix, kind, edges[first : end + 1], row[first:end], *apart)


def wide_block(path: Path, about: dict[str, Any]) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """What a file tells of the variables: their names, the steps, and each quantity as (steps, variables)."""
    names = [about["prefix"] + name for name, _, _ in about["variables"]]
    lists = [name for name in files.names_of(path) if name.startswith(_LISTS)]
    table = files.table(path, ["step", *lists])
    found = {name.removeprefix(_LISTS): _flat(table[name]).reshape(-1, len(names)) for name in lists}
    return names, table["step"].to_numpy(), found


def wide(table: pd.DataFrame, index: str) -> pd.DataFrame:
    """Rows of (index, name, value) as one column a name, in the order of appearance; of doubles, the last counts."""
    names = list(dict.fromkeys(table["name"].astype(str)))
    table = table.assign(name=table["name"].astype(str)).drop_duplicates([index, "name"], keep="last")
    wide = table.pivot(index=index, columns="name", values="value")[names]
    wide.columns.name = None
    return wide


def _long(table: pa.Table, about: dict[str, Any]) -> pd.DataFrame:
    """A file's list columns as a row per step and variable."""
    variables = [about.get("prefix", "") + name for name, _, _ in about.get("variables", [])]
    quantities = [name for name in table.column_names if name.startswith(_LISTS)]
    steps = table["step"].to_numpy()
    columns: dict[str, Any] = {
        "step": np.repeat(steps, len(variables)),
        "variable": pd.Categorical.from_codes(
            np.tile(np.arange(len(variables)), len(steps)), categories=variables
        ),
    }
    for name in quantities:
        columns[name.removeprefix(_LISTS)] = _flat(table[name])
    return pd.DataFrame(columns)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values
