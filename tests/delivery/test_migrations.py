"""Tests with a database of another MLflow version, or one migrated during delivery: nothing is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import EpochEnded, RunEnded
from mlflow_tfmon.tracking import store as stores

ENDED = RunEnded(BEGUN + 100.0, "FINISHED", True)


def check(uri: str, run_id: str, steps: int) -> None:
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    assert "tfmon.refused" not in run.data.tags and run.data.metrics["loss"] == 0.5
    assert load_run(run_id, uri).steps.index.tolist() == list(range(1, steps + 1))
    points = [point.step for point in client.get_metric_history(run_id, "batch/loss")]
    assert len(points) == len(set(points)) > 60  # some steps are thinned out


def changed(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def test_a_store_with_another_schema_is_delivered_to_once_it_has_this_one(
    store_template: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # its artifacts are there
    monkeypatch.setattr(stores, "_OPEN_SECONDS", 0.0)
    newest, before = [
        one.revision for one in ScriptDirectory.from_config(_get_alembic_config("sqlite://")).walk_revisions()
    ][:2]
    for version in (before, "ffffffffffff"):  # one of MLflow's before, and one of its next
        path = tmp_path / f"{version}.db"
        path.write_bytes(store_template.read_bytes())
        changed(path, f"UPDATE alembic_version SET version_num = '{version}'")
        uri = f"sqlite:///{path}"
        epoch = EpochEnded(0, 100, BEGUN, {"loss": 0.5})
        folder = write(home, started(uri), layout(), *blocks(values(100)), epoch, ENDED)
        one = Deliverer(folder)
        for _ in range(3):
            one.advance(trainer_gone=True, hurry=True)
        assert not one.done and "mlflow db upgrade" in str(one.status.error), one.status
        assert "\n" not in str(one.status.error) and folder.exists()
        changed(path, f"UPDATE alembic_version SET version_num = '{newest}'")
        while not one.done:
            one.advance(trainer_gone=True, hurry=True)
        (run,) = mlflow.MlflowClient(uri).search_runs(["0"])
        check(uri, run.info.run_id, 100)
        assert not folder.exists()


@pytest.mark.slow
def test_a_database_that_is_migrated_meanwhile(store: str, run_id: str, home: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    journal = Journal.create(home)
    journal.append([started(store, run_id), layout(), *blocks(values(100))])
    one = Deliverer(journal.folder)
    one.advance(hurry=True)
    assert one.status.error is None and one.status.delivered
    for step, (away, back) in enumerate(
        (
            ("ALTER TABLE metrics RENAME TO moved", "ALTER TABLE moved RENAME TO metrics"),
            (
                "ALTER TABLE tags RENAME COLUMN value TO moved",
                "ALTER TABLE tags RENAME COLUMN moved TO value",
            ),
            (
                "ALTER TABLE runs RENAME COLUMN status TO moved",
                "ALTER TABLE runs RENAME COLUMN moved TO status",
            ),
        )
    ):
        changed(database, away)
        journal.append(blocks(values(100, first=100 * step + 101)))
        for _ in range(8):  # more often than a call is tried that is refused
            one.advance(hurry=True)
        changed(database, back)
    journal.append([EpochEnded(0, 400, BEGUN, {"loss": 0.5}), ENDED])
    journal.close()
    one.close()
    assert deliver(journal.folder).done and not journal.folder.exists()
    check(store, run_id, 400)
