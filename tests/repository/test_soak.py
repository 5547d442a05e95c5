"""Tests of the soak test's comparison: it finds lost, doubled and wrong rows."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path

import mlflow
import pytest

from mlflow_tfmon.delivery.sync import find_waiting
from tests import soak

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("fresh")]


def test_what_is_not_as_it_was_written_down_is_found(store: str, tmp_path: Path) -> None:
    client, key = mlflow.MlflowClient(store), uuid.uuid4().hex
    record = tmp_path / "own.record"
    process = subprocess.Popen([sys.executable, "-c", ""])
    trainer = soak.Trainer(key, record, process)
    process.wait()
    soak.train(key, record, 40)
    give_up = time.monotonic() + 120
    while find_waiting():
        assert time.monotonic() < give_up, find_waiting()
        time.sleep(0.2)
    found = soak.compare(client, trainer, 1.0)
    assert found == soak.Found(written=40, stored=40, points=40)
    lines = record.read_text().splitlines(keepends=True)
    step, when, loss = lines[9].split()
    record.write_text(
        "".join([*lines[:9], f"{step} {when} {float(loss) * 1.001}\n", *lines[10:], f"41 {when} 0.5\n"])
    )
    found = soak.compare(client, trainer, 1.0)
    assert (found.lost, found.wrong, found.doubled) == (1, 2, 0)  # wrong as a row, and as a point
    trainer.killed = True
    found = soak.compare(client, trainer, 1.0)
    assert (found.lost, found.moment) == (0, 1)
    (run,) = client.search_runs(["0"])
    folder = Path(client.download_artifacts(run.info.run_id, "tfmon/telemetry", str(tmp_path)))
    for file in folder.glob("*.parquet"):
        file = file.rename(file.with_name(f"again-{file.name}"))
        client.log_artifact(run.info.run_id, str(file), "tfmon/telemetry")
    assert soak.compare(client, trainer, 1.0).doubled == 40
