"""Data of earlier recordings in a run: MLflow cannot delete points, so an existing step is not sent again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from mlflow_tfmon import temporary, trusted_paths
from mlflow_tfmon.delivery.tally import load_manifest
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.reading import files
from mlflow_tfmon.stream.records import Problems
from mlflow_tfmon.tags import REACHED_TAG
from mlflow_tfmon.tracking import findings
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.translation.state import State

_FILE = "earlier.json"


@dataclass(frozen=True)
class Earlier:
    """Data that a run had when delivery of a recording to it began.

    Attributes:
        last: of each series that was recorded before, the last step that it has.
        series: how many points it has.
        files: of each Parquet file, how many rows it has.
        problems: those that were found, as `records.Problems` has them.
    """

    last: dict[str, int] = field(default_factory=dict)
    series: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    problems: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, client: MlflowClient, run_id: str, folder: Path) -> Earlier:
        """Looks at a run, once: whoever delivers the recording later finds the answer in its folder.

        Args:
            client: of the store.
            run_id: the run.
            folder: of the recording.

        Raises:
            Exception: MLflow's own, if the store does not answer.
        """
        path = folder / _FILE
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):  # a damaged one is made anew
            state = State(json.loads(trusted_paths.read_text(path)), "it")
            last, series, files = (state.integers(name) for name in ("last", "series", "files"))
            return cls(last, series, files, _known(state.items("problems")))
        found = cls._look(client, run_id)
        with contextlib.suppress(OSError):  # a full disk: what is asked again is only what has arrived since
            draft = path.with_suffix(".new")
            trusted_paths.write_text(draft, json.dumps(dataclasses.asdict(found)))
            os.replace(draft, path)
        return found

    @classmethod
    def _look(cls, client: MlflowClient, run_id: str) -> Earlier:
        data = client.get_run(run_id).data
        text = load_manifest(client, run_id) if REACHED_TAG in data.tags else None
        if text is None:
            return cls()
        # Of a series MLflow keeps the point of the highest step at hand (3.1 to 3.17).
        latest = {metric.key: int(metric.step) for metric in data._metric_objs}
        try:
            manifest = State(json.loads(text), "it")
            series, sent = manifest.integers("series"), manifest.integers("files")
        except (ValueError, RecursionError):  # somebody has changed it: any series may be of a recording
            return cls(latest, problems=problems_of(client, run_id))
        last = {key: latest[key] for key in series if key in latest}
        return cls(last, series, sent, problems_of(client, run_id))

    def new(self, points: Iterable[Point]) -> list[Point]:
        """Returns the points at steps that their series does not have yet."""
        return [point for point in points if not self.has(point.key, point.step)]

    def has(self, key: str, step: int) -> bool:
        """Whether a series reaches a step."""
        return key in self.last and step <= self.last[key]

    def linkable(self, client: MlflowClient, run_id: str, points: Sequence[Point]) -> list[Point]:
        """Points that a model's metrics may be: where the run has one at that step, that one, if it is the same."""
        found = []
        for point in points:
            if not self.has(point.key, point.step):
                found.append(point)
                continue
            for known in client.get_metric_history(run_id, point.key):
                if (known.step, known.value) == (point.step, point.value):
                    found.append(point._replace(time=known.timestamp))
                    break
        return found

    def with_problems(self, record: Problems) -> Problems:
        """The problems of all recordings of the run: of one kind the latest."""
        kinds = {one["kind"] for one in record.found}
        kept = tuple(one for one in self.problems if one["kind"] not in kinds)
        return dataclasses.replace(record, found=(*kept, *record.found))


def problems_of(client: MlflowClient, run_id: str) -> tuple[dict[str, Any], ...]:
    """The problems that a run has, as `records.Problems` has them."""
    if not any(item.path == findings.FILE for item in client.list_artifacts(run_id, "tfmon")):
        return ()
    with temporary.Folder() as folder:
        path = Path(client.download_artifacts(run_id, findings.FILE, folder))
        try:
            found = files.read_json(path)
        except (files.UnreadableError, ValueError, RecursionError):  # somebody has changed it
            return ()
    return _known(found)


def _known(problems: Any) -> tuple[dict[str, Any], ...]:
    """Those of some problems that are any: somebody may have changed the file."""
    found = []
    for one in problems if isinstance(problems, list) else ():
        with contextlib.suppress(ValueError):
            found.append(dataclasses.asdict(Problem.from_dict(one)))
    return tuple(found)
