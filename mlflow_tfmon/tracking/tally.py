"""The count of what was sent, and whether the store holds it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_tfmon.tracking.curves import Point
from mlflow_tfmon.tracking.names import TELEMETRY

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MANIFEST = "tfmon/delivery.json"  # artifact of the run
FORMAT = 1


@dataclass
class Tally:
    """What one recording has sent.

    Attributes:
        steps: of each metric, the steps at which it has a point.
        rows: of each telemetry file, how many rows it has.
    """

    steps: dict[str, set[int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def points(self, points: Iterable[Point]) -> None:
        """Counts points; one that is sent again counts once."""
        for point in points:
            self.steps.setdefault(point.key, set()).add(point.step)

    def manifest(self, refused: Mapping[str, str]) -> str:
        """What the store must hold, as JSON; what it refuses is left out."""
        series = {key: len(steps) for key, steps in self.steps.items() if key not in refused}
        files = {name: rows for name, rows in self.rows.items() if name not in refused}
        return json.dumps({"format": FORMAT, "series": series, "files": files}, indent=1)


def missing(client: MlflowClient, run_id: str, manifest: str, of: Sequence[str] | None = None) -> list[str]:
    """Counts what the store holds of a run, and tells what is not there, a line each.

    Args:
        client: of the store.
        run_id: the run.
        manifest: what must be there.
        of: the metrics to count. Default: all, and the files.
    """
    wanted = json.loads(manifest)
    found = []
    for key, count in wanted["series"].items():
        if of is None or key in of:
            steps = {point.step for point in client.get_metric_history(run_id, key)}
            if len(steps) < count:
                found.append(f"metric {key}: {len(steps)} of {count} points")
    there = {item.path.rpartition("/")[2] for item in client.list_artifacts(run_id, TELEMETRY)}
    for name, rows in wanted["files"].items():
        if name not in there:
            found.append(f"file {TELEMETRY}/{name}: not there")
        elif of is None and (got := _rows(client, run_id, name)) != rows:
            found.append(f"file {TELEMETRY}/{name}: {got} of {rows} rows")
    return found


def _rows(client: MlflowClient, run_id: str, name: str) -> int:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="mlflow_tfmon-") as folder:
        try:
            return int(
                pq.read_metadata(client.download_artifacts(run_id, f"{TELEMETRY}/{name}", folder)).num_rows
            )
        except (OSError, ValueError):
            return 0


def load_manifest(client: MlflowClient, run_id: str) -> str | None:
    """What the store must hold of a run; None if its delivery has not come to an end."""
    if not any(item.path == MANIFEST for item in client.list_artifacts(run_id, "tfmon")):
        return None
    with tempfile.TemporaryDirectory(prefix="mlflow_tfmon-") as folder:
        return Path(client.download_artifacts(run_id, MANIFEST, folder)).read_text("utf-8")
