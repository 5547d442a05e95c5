"""Record of everything that was sent, its count, and the check that the store holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_tfmon import temporary
from mlflow_tfmon.tracking.names import HISTOGRAMS, TELEMETRY
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.translation.state import State, of_array

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from mlflow_tfmon.delivery.existing import Earlier

MANIFEST = "tfmon/delivery.json"  # artifact of the run
FORMAT = 1
# A telemetry file: a name that leads elsewhere would be written there.
_FILE = re.compile(rf"(?:{TELEMETRY}|{HISTOGRAMS})/[\w\-]+\.parquet", re.ASCII)
_MOST_BYTES = 64 * 2**20
_NAMES = ("texts", "params", "tags", "datasets")


@dataclass
class Tally:
    """Count of what one recording has sent.

    Attributes:
        steps: of each metric, the steps at which it has a point.
        rows: of each Parquet file, by its path among the run's artifacts, how many rows it has.
        sizes: of those that were uploaded whole, how many bytes.
        texts: paths of the other artifacts.
        params: names of params.
        tags: names of tags.
        datasets: names of datasets.
    """

    steps: dict[str, set[int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    params: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)

    def points(self, points: Iterable[Point]) -> None:
        """Counts points; one that is sent again counts once."""
        for point in points:
            self.steps.setdefault(point.key, set()).add(point.step)

    def manifest(self, refused: Mapping[str, str], earlier: Earlier) -> str:
        """What the store must hold, as JSON; what it refuses is left out.

        Args:
            refused: name -> reason.
            earlier: what it held before.
        """
        series = dict(earlier.series)
        for key, steps in self.steps.items():
            if key not in refused:
                series[key] = series.get(key, 0) + sum(not earlier.has(key, step) for step in steps)
        files = earlier.files | {name: rows for name, rows in self.rows.items() if name not in refused}
        return json.dumps({"format": FORMAT, "series": series, "files": files}, indent=1)

    def state(self) -> dict[str, Any]:
        """Returns the state as JSON-compatible data."""
        steps = {key: of_array(np.array(sorted(steps), np.int64)) for key, steps in self.steps.items()}
        names = {name: sorted(getattr(self, name)) for name in _NAMES}
        return {"steps": steps, "rows": self.rows, "sizes": self.sizes, **names}

    @classmethod
    def restored(cls, state: State) -> Tally:
        """Restores the state.

        Raises:
            StateError: it is none.
        """
        steps = state.part("steps")
        return cls(
            {key: set(steps.array(key, "<i8").tolist()) for key in steps.names()},
            state.integers("rows"),
            state.integers("sizes"),
            *(set(state.list_of_texts(name)) for name in _NAMES),
        )

    def not_there(self, client: MlflowClient, run_id: str, refused: Collection[str]) -> list[str]:
        """Tells which params, tags, datasets and texts a run does not have, a line each.

        Args:
            client: of the store.
            run_id: the run.
            refused: names of what the store does not take.
        """
        run = client.get_run(run_id)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        folders = {path.rpartition("/")[0] for path in self.texts.difference(refused)}
        there = {item.path for folder in folders for item in client.list_artifacts(run_id, folder or None)}
        return [
            f"{what} {name}: missing"
            for what, wanted, has in (
                ("param", self.params, run.data.params.keys()),
                ("tag", self.tags, run.data.tags.keys()),
                ("dataset", self.datasets, {one.dataset.name for one in inputs}),
                ("file", self.texts, there),
            )
            for name in sorted(wanted - has)
            if not {"file": {name}, "dataset": {"dataset"}}.get(what, {f"{what} {name}"}) & set(refused)
        ]


def missing(
    client: MlflowClient,
    run_id: str,
    manifest: str,
    of: Container[str] | None = None,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """Counts what the store holds of a run, and tells what is not there, a line each.

    Args:
        client: of the store.
        run_id: the run.
        manifest: what must be there.
        of: the metrics and files to count; that the others' files are there is seen too. Default: all.
        sizes: of files, in bytes: one that has its size has its rows, and need not come back to be counted.
    """
    wanted = json.loads(manifest)
    found = []
    for key, count in wanted["series"].items():
        if of is None or key in of:
            steps = {point.step for point in client.get_metric_history(run_id, key)}
            if len(steps) < count:
                found.append(f"metric {key}: {len(steps)} of {count} points")
    folders = sorted({name.rpartition("/")[0] for name in wanted["files"]})
    there = {
        item.path: item.file_size for folder in folders for item in client.list_artifacts(run_id, folder)
    }
    for name, rows in wanted["files"].items():
        if name not in there:
            found.append(f"file {name}: missing")
        elif of is not None and (name not in of or sizes.get(name, -1) == there[name]):
            continue
        elif (got := _rows(client, run_id, name)) != rows:
            found.append(f"file {name}: {got} of {rows} rows")
    return found


def read_manifest(text: str) -> dict[str, Any] | None:
    """A manifest as it was written; None if it is none: anybody who may write to the store may have made it."""
    try:
        found = json.loads(text)
        counted = [count for what in ("series", "files") for count in found[what].values()]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    whole = all(type(count) is int and 0 <= count < 2**53 for count in counted)
    return found if whole and all(_FILE.fullmatch(name) for name in found["files"]) else None


def _rows(client: MlflowClient, run_id: str, name: str) -> int:
    import pyarrow.parquet as pq

    with temporary.Folder() as folder:
        try:
            return int(pq.read_metadata(client.download_artifacts(run_id, name, folder)).num_rows)
        except (OSError, ValueError):
            return 0


def load_manifest(client: MlflowClient, run_id: str) -> str | None:
    """What the store must hold of a run; None if its delivery has not come to an end."""
    if not any(item.path == MANIFEST for item in client.list_artifacts(run_id, "tfmon")):
        return None
    with temporary.Folder() as folder:
        path = Path(client.download_artifacts(run_id, MANIFEST, folder))
        return path.read_text("utf-8", "replace") if path.stat().st_size <= _MOST_BYTES else ""


@dataclass
class Sent:
    """Record of what has been handed over, on which later calls depend.

    Plain data, which a delivery that takes over from another goes on with.

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
