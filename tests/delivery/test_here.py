"""Tests of reading a run on the machine that recorded it: waits for what is on its way, reports what is missing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.journal import here
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import Flushed, RunEnded

ENDED = RunEnded(BEGUN + 9, "FINISHED", True)


@pytest.fixture
def delivery(home: Path) -> Iterator[DeliveryProcess]:
    process = DeliveryProcess()
    yield process
    child = process._process
    process.close()
    assert child is None or child.wait(150)


@pytest.mark.slow
def test_what_is_on_its_way_is_waited_for(
    store: str, home: Path, delivery: DeliveryProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right after a training, before delivery has even begun: `load_run`, and the newest run for every command."""
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    journal = Journal.create()
    journal.append([started(store, run_id), layout(), *blocks(values(100)), Flushed(BEGUN)])
    delivery.watch(journal.folder, store, store)
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 101))  # the run goes on
    journal.append([*blocks(values(50, first=101)), ENDED])
    journal.close()
    run = load_run(run_id, store)
    assert run.steps.index.tolist() == list(range(1, 151)) and run.complete
    second = Journal.create()
    newest = started(store, None, run_name="newest", start_time=BEGUN + 60, report=False)
    second.append([newest, layout(), *blocks(values(10)), ENDED])
    second.close()
    delivery.watch(second.folder, store, store)
    assert main(["runs", "--tracking-uri", store]) == 0
    out, err = capsys.readouterr()
    assert "newest" in out and "not in MLflow" not in err
    assert here.recordings() == []


def test_what_nobody_delivers_is_said(
    store: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(here, "_BEGINS_SECONDS", 0.0)
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0", run_name="mine").info.run_id
    folder = write(home, started(store, run_id), layout(), *blocks(values(100)), ENDED)
    with pytest.raises(ValueError, match=r"was recorded on this machine.*5 records in .*not being delivered"):
        load_run(run_id, store)
    assert main(["runs", "--tracking-uri", store]) == 0
    out, err = capsys.readouterr()
    assert run_id[:8] in out and "undelivered, on this machine" in out and str(folder) in err
    assert here.recordings(here.of_store("http://elsewhere")) == []  # another store's concern
    assert deliver(folder, store).done
    assert load_run(run_id, store).complete
    write(home, started(store, run_id), layout(), *blocks(values(10, first=101)))  # killed
    from mlflow_tfmon.errors import logger

    monkeypatch.setattr(logger, "propagate", True)
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 101))
    assert "not everything is in MLflow" in caplog.text
    other = client.create_run("0").info.run_id
    with pytest.raises(ValueError, match="was not monitored"):
        load_run(other, store)


def test_a_store_that_is_away_is_not_waited_for(home: Path, delivery: DeliveryProcess) -> None:
    journal = Journal.create()
    last = journal.append([started("http://127.0.0.1:9/", "a"), layout(), *blocks(values(10)), ENDED])
    journal.close()
    delivery.watch(journal.folder, "http://127.0.0.1:9/")
    delivery.wait(journal.folder, last, 150)
    (left,) = here.wait(here.of_run("a"), "it", timeout=150)
    assert left.error is not None and left.waiting == last and not left.comes
    assert delivery._process is not None
    os.kill(delivery._process.pid(), signal.SIGKILL)
