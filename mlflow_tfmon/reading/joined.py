"""Several recordings of one run, read as one training: rows of a resumed one replace earlier rows of the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_tfmon.reading import files

_END = "~"  # after any recording
Cuts = Sequence[tuple[str, Mapping[str, int]]]


def cuts(folder: Path) -> Cuts:
    """The recordings of a run after its first: when each began, and how many steps each stream had made by then.

    Args:
        folder: with the run's telemetry files.
    """
    found = [files.about(path) for path in sorted(folder.glob("*.parquet"))]
    return sorted({one["recording"]: one["after"] for one in found if one.get("after")}.items())


def join(folder: Path, later: Cuts) -> None:
    """Takes from the files of each recording the rows at steps from which a later one went on.

    Args:
        folder: with telemetry files, which are written anew where rows go.
        later: from `cuts`.
    """
    for path in sorted(folder.glob("*.parquet")) if later else ():
        told = files.about(path)
        after: dict[str, int] = {}
        for begun, steps in later:
            if begun > told.get("recording", ""):
                for prefix, last in steps.items():
                    after[prefix] = min(last, after.get(prefix, last))
        if after:
            table = files.table(path)
            keeps = _kept(table, told, after)
            if not keeps.any():
                path.unlink()
            elif not keeps.all():
                pq.write_table(table.filter(pa.array(keeps)), path)


def cut(folder: Path, after: Mapping[str, int]) -> None:
    """Takes from the files the rows after so many steps, by the prefixes of the streams."""
    join(folder, [(_END, after)])


def _kept(table: pa.Table, told: Mapping[str, Any], after: Mapping[str, int]) -> np.ndarray:
    """Which rows no later recording has made again; a file has one prefix, or one a row."""
    steps = table["step"].to_numpy()
    if "prefix" not in table.column_names:
        return np.asarray(steps <= after.get(told.get("prefix", ""), np.inf))
    limits = [after.get(prefix, np.inf) for prefix in table["prefix"].to_pylist()]
    return np.asarray(steps <= np.array(limits, float))
