"""Tests of the journal's size limit: delivered records are deleted, dropped ones counted, all others arrive."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pytest
from recordings import BEGUN, blocks, deep, deliver, layout, started, values

from mlflow_tfmon.delivery import attempt, saved_state
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.journal.journal import DATABASE, Journal
from mlflow_tfmon.journal.spool import Spool, fitting
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.bins import KINDS, WIDTH
from mlflow_tfmon.stream.records import EpochEnded, Histograms, Logged, Record, RunEnded, Text

ROWS = 6000
ENDED = RunEnded(BEGUN + 99, "FINISHED", True)


def histograms(step: int) -> Histograms:
    rows = np.random.default_rng(step).integers(0, 9, (1, 1 + 3 * len(KINDS) * WIDTH)).astype(float)
    rows[:, 0] = step
    return Histograms(0, BEGUN, rows)


def training() -> list[list[Record]]:
    """What a training appends, in turn."""
    rows = values(ROWS)
    turns: list[list[Record]] = [[layout(ROWS)]]
    for at in range(0, ROWS, 200):
        step = at + 200
        turns.append([*blocks(rows[at:step]), deep(np.array([step])), histograms(step)])
        turns.append(
            [Logged(0, step, BEGUN + at, {"temperature": 1.0 / step}), Text(f"note-{at}.txt", f"{at}")]
        )
        turns.append([EpochEnded(at // 200, step, BEGUN + at, {"loss": 1.0 / step})])
    return turns


def everything(client: mlflow.MlflowClient, run_id: str) -> dict[str, object]:
    run = load_run(run_id, client.tracking_uri)
    histories = {key: client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics}
    return {
        "points": {key: {(p.step, p.value, p.timestamp) for p in found} for key, found in histories.items()},
        "steps": run.steps.to_csv(), "layers": run.layers.to_csv(), "epochs": run.epochs.to_csv(),
        "histograms": len(run.histograms),
        "files": sorted(item.path for item in client.list_artifacts(run_id, "tfmon/telemetry")),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_what_has_arrived_is_deleted_and_nothing_comes_out_differently(
    interrupted: bool, store: str, client: mlflow.MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [client.create_run("0").info.run_id for _ in range(2)]
    reference = Journal.create(home)
    for turn in [[started(store, runs[0])], *training(), [ENDED]]:
        reference.append(turn)
    reference.close()
    assert deliver(reference.folder).done

    monkeypatch.setattr(attempt, "_TRIM_BYTES", 50_000)
    journal = Journal.create(home)
    journal.append([started(store, runs[1])])
    one, largest, last = Deliverer(journal.folder), 0, 0
    for number, turn in enumerate(training()):
        last = journal.append(turn)
        if interrupted and number % 7 == 3:  # in mid-work, as by a kill: the lock goes, nothing is written
            one.close()
            one = Deliverer(journal.folder)
        one.advance(hurry=True)
        assert one.status.error is None
        largest = max(largest, journal.size())
    assert (journal.folder / saved_state.FILE).stat().st_mode & 0o777 == 0o600
    journal.append([ENDED])
    journal.close()
    assert largest < 400_000 < 8 * (ROWS * 10 + ROWS * 3 * 2)  # of what was written in all
    while not one.done:
        one.advance(trainer_gone=True, hurry=True)
    assert one.status.complete and one.status.delivered >= last
    found, wanted = everything(client, runs[1]), everything(client, runs[0])
    assert found == wanted
    assert client.get_run(runs[1]).data.tags["tfmon.delivery"] == "complete"


def test_a_moment_of_another_version_is_left_alone(
    store: str, run_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_TRIM_BYTES", 10_000)
    journal = Journal.create(home)
    journal.append([started(store, run_id), layout(), *blocks(values(2000))])
    one = Deliverer(journal.folder)
    one.advance(hurry=True)
    one.close()
    with monkeypatch.context() as patch:
        patch.setattr("mlflow_tfmon.delivery.saved_state.FORMAT", 99)
        other = Deliverer(journal.folder)
        other.advance(hurry=True)
        assert "mlflow-tfmon==" in str(other.status.error) and not other.done
        assert str(journal.folder / saved_state.FILE) in str(other.status.error)
        other.close()
    journal.append([ENDED])
    journal.close()
    assert deliver(journal.folder).done
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 2001))


def test_what_is_left_out_first() -> None:
    rows = values(10)
    block: list[Record] = [layout(), *blocks(rows), deep(np.array([5, 10])), histograms(10)]
    kept = [[type(one).__name__ for one in fitting(block, share)[0]] for share in (0.4, 0.6, 0.8, 1.1)]
    assert kept == [
        ["StreamOpened", "Steps", "DeepSteps", "Histograms"],
        ["StreamOpened", "Steps", "DeepSteps"],
        ["StreamOpened", "Steps"],
        ["StreamOpened"],
    ]
    assert fitting(block, 1.1)[1] == Counter({"Steps": 10, "DeepSteps": 2, "Histograms": 1})
    assert fitting([EpochEnded(0, 1, BEGUN, {}), ENDED], 5.0)[1] == Counter()


def test_in_a_long_outage_the_disk_is_bounded_and_all_that_is_not_there_is_counted(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    bound, count, size = 3_000_000, 60_000, 500
    rows = values(count)
    journal = Journal.create(home)
    spool = Spool(journal, bound)
    spool.append([started(store, run_id), layout(count)])
    for at in range(0, count, size):
        step = at + size
        spool.append([*blocks(rows[at:step], size), deep(np.array([step])), histograms(step)])
        if step % 5000 == 0:
            spool.append([EpochEnded(step // 5000 - 1, step, BEGUN + step, {"loss": 1.0 / step})])
    spool.append([ENDED])
    assert spool.close() == []
    on_disk = sum(file.stat().st_size for file in journal.folder.iterdir())
    assert on_disk < 1.1 * bound < rows.nbytes
    left = spool.left_out
    assert left["Histograms"] > left["DeepSteps"] > 0 and left["Steps"] > 0
    assert find_waiting()[0].bytes == on_disk
    assert deliver(journal.folder, within=200).done
    run = load_run(run_id, store)
    assert len(run.steps) + left["Steps"] == count
    assert run.layers.dropna(subset="weight_norm").step.nunique() + left["DeepSteps"] == count // size
    assert run.histograms.step.nunique() + left["Histograms"] == count // size
    np.testing.assert_array_equal(run.steps["loss"], rows[run.steps.index - 1, 4])
    assert run.epochs.index.tolist() == list(range(count // 5000))
    tags = client.get_run(run_id).data.tags
    assert tags["tfmon.lost_steps"] == str(left["Steps"])
    assert tags["tfmon.not_kept"] == spool.not_kept
    assert f"{left['Steps']:,} steps" in spool.not_kept and "limit of 0.003 GB" in spool.not_kept


def test_what_the_disk_does_not_take_goes_on_when_it_does(store: str, run_id: str, home: Path) -> None:
    journal, rows = Journal.create(home), values(5000)
    spool = Spool(journal, 1e9)
    spool.append([started(store, run_id), layout()])
    away = journal.folder / "elsewhere"
    os.rename(journal.folder / DATABASE, away)
    for block in blocks(rows, 50):  # more than a ring holds
        spool.append([block])
    spool.append([EpochEnded(0, 1, BEGUN, {"loss": 0.5}), histograms(1)])
    assert not spool.flush()
    os.rename(away, journal.folder / DATABASE)
    spool.append([EpochEnded(1, 2, BEGUN, {"loss": 0.25}), ENDED])
    assert spool.flush() and spool.close() == [] and not spool.left_out
    assert deliver(journal.folder).done
    assert "tfmon.not_kept" not in mlflow.MlflowClient(store).get_run(run_id).data.tags
    run = load_run(run_id, store)
    np.testing.assert_array_equal(run.steps.loss, rows[:, 4])
    assert run.epochs.loss.tolist() == [0.5, 0.25]


def test_what_was_held_is_written_as_far_as_the_bound_allows(store: str, run_id: str, home: Path) -> None:
    bound, rows = 400_000, values(20_000)
    journal = Journal.create(home)
    spool = Spool(journal, bound)
    spool.append([started(store, run_id), layout(len(rows))])
    away = journal.folder / "elsewhere"
    os.rename(journal.folder / DATABASE, away)
    for block in blocks(rows, 100):
        spool.append([block])
    spool.append([EpochEnded(0, len(rows), BEGUN, {"loss": 0.5})])
    os.rename(away, journal.folder / DATABASE)
    spool.append([ENDED])
    assert journal.size() < 1.5 * bound < rows.nbytes  # the last ones that were written at once go beyond
    assert spool.close() == [] and spool.left_out["Steps"] > 0
    assert f"limit of {bound / 1e9:g} GB" in spool.not_kept
    assert deliver(journal.folder).done
    run = load_run(run_id, store)
    assert len(run.steps) + spool.left_out["Steps"] == len(rows) and run.epochs.loss.tolist() == [0.5]
    np.testing.assert_array_equal(run.steps.loss, rows[run.steps.index - 1, 4])
    tags = mlflow.MlflowClient(store).get_run(run_id).data.tags
    assert tags["tfmon.lost_steps"] == str(spool.left_out["Steps"])
    assert tags["tfmon.not_kept"] == spool.not_kept


def test_who_waits_while_the_journal_is_locked_for_a_moment_waits_for_all(
    store: str, run_id: str, home: Path
) -> None:
    journal = Journal.create(home)
    spool = Spool(journal, 1e9)
    spool.append([started(store, run_id), layout()])
    with closing(
        sqlite3.connect(journal.folder / DATABASE, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN EXCLUSIVE")
        spool.append(blocks(values(50)))
        assert spool.last == 2
        threading.Timer(1.0, other.execute, ["COMMIT"]).start()
        assert spool.flush() and spool.last > 2
    spool.append([ENDED])
    assert spool.close() == [] and spool.flush()  # of a closed one nothing is held
    assert deliver(journal.folder).done and len(load_run(run_id, store).steps) == 50


def test_what_memory_does_not_hold_either_is_counted(
    store: str, run_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, rows = Journal.create(home), values(5000)
    monkeypatch.setattr("mlflow_tfmon.journal.spool._HELD_BYTES", rows[:2000].nbytes)
    spool = Spool(journal, 1e9)
    spool.append([started(store, run_id), layout()])
    away = journal.folder / "elsewhere"
    os.rename(journal.folder / DATABASE, away)
    for block in blocks(rows, 50):
        spool.append([block])
    spool.append([EpochEnded(0, 1, BEGUN, {"loss": 0.5})])  # for which there is room
    os.rename(away, journal.folder / DATABASE)
    spool.append([ENDED])
    assert spool.close() == [] and spool.left_out == Counter({"Steps": 3000})
    assert deliver(journal.folder).done
    run = load_run(run_id, store)
    np.testing.assert_array_equal(run.steps.loss, rows[:2000, 4])
    assert run.epochs.loss.tolist() == [0.5]
    assert mlflow.MlflowClient(store).get_run(run_id).data.tags["tfmon.not_kept"] == spool.not_kept
