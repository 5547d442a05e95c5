"""Tests of `mlflow-tfmon sync`: what a crash or an outage left behind arrives later, once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery.backlog import left_behind
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.journal.journal import DATABASE, Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import EpochEnded, Flushed, RunEnded
from mlflow_tfmon.tracking.store import RunStore

AWAY = "http://ann:s3cret@127.0.0.1:9/"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def test_what_waits_is_shown_and_delivered_once(
    store: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ended = RunEnded(BEGUN + 10, "FINISHED", True)
    folder = write(home, started(AWAY, None), layout(), *blocks(values(100)), ended)
    monkeypatch.chdir(tmp_path)  # wherever one is
    assert main(["sync"]) == 1
    out, err = capsys.readouterr()
    assert f"{folder.name} (run not created yet)" in out and "5  " in out and "s3cret" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("mlflow-tfmon:")]
    assert "1 of 1 recordings are still undelivered" in line
    assert main(["sync", "--dry-run"]) == 0 and folder.exists()
    assert main(["sync", folder.name[:6], "--tracking-uri", store]) == 0
    assert f"{folder.name}: delivered." in capsys.readouterr().out
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        int(BEGUN * 1e3),
        int((BEGUN + 10) * 1e3),
    )
    assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))
    assert not folder.exists()
    assert main(["sync"]) == 0
    assert "Everything has been delivered" in capsys.readouterr().out


def test_what_the_store_holds_is_counted(
    store: str, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    rows = values(1000)
    folder = write(home, started(store, run_id), layout(), *blocks(rows), RunEnded(BEGUN, "FINISHED", False))
    assert deliver(folder, store).done
    check = ["sync", "--check", run_id, "--tracking-uri", store]
    assert main(check) == 0
    assert "1000 rows in 1 files" in capsys.readouterr().out
    points = len(client.get_metric_history(run_id, "batch/loss"))
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute("DELETE FROM metrics WHERE key = 'batch/loss' AND step = 1")
    assert main(check) == 1
    assert f"metric batch/loss: {points - 1} of {points} points" in capsys.readouterr().out
    (part,) = (tmp_path / "artifacts").rglob("steps-0-*-00000.parquet")
    part.unlink()
    assert main(check) == 1
    assert f"{part.name}: missing" in capsys.readouterr().out
    assert main(["sync", "--check", client.create_run("0").info.run_id, "--tracking-uri", store]) == 1
    assert main(["sync", "--check"]) == 2


def test_a_delivery_that_lost_a_point_is_not_called_complete(
    store: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    folder = write(
        home, started(store, run_id), layout(), *blocks(values(50)), RunEnded(BEGUN, "FINISHED", True)
    )
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute(
            "CREATE TRIGGER loses AFTER INSERT ON metrics WHEN NEW.key = 'batch/loss' AND NEW.step = 7 "
            "BEGIN DELETE FROM metrics WHERE rowid = NEW.rowid; END"
        )
    assert deliver(folder, store).done
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "incomplete")
    assert main(["sync"]) == 1  # it is kept, and sent again
    out = capsys.readouterr().out
    assert "the store lacks metric batch/loss: 49 of 50 points" in out and "delivered." not in out
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute("DROP TRIGGER loses")
    assert main(["sync"]) == 0
    tags = client.get_run(run_id).data.tags
    assert tags["tfmon.delivery"] == "complete" and "tfmon.refused" not in tags
    assert [point.step for point in client.get_metric_history(run_id, "batch/loss")] == list(range(1, 51))
    assert find_waiting() == []


@pytest.mark.parametrize("how", ["half of it", "an older one"])
def test_a_delivery_whose_file_was_not_kept_whole_is_not_called_complete(
    how: str, store: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes the file, and has half of it afterwards, or what it had before."""
    real = RunStore.file

    def file(self: RunStore, path: Path, folder: str, patient: bool = True) -> None:
        real(self, path, folder, patient)
        (kept,) = (tmp_path / "artifacts").rglob(path.name)
        if how == "half of it":
            os.truncate(kept, kept.stat().st_size // 2)
        else:
            pq.write_table(pq.read_table(kept).slice(0, 20), kept)

    monkeypatch.setattr(RunStore, "file", file)
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    folder = write(
        home, started(store, run_id), layout(), *blocks(values(50)), RunEnded(BEGUN, "FINISHED", True)
    )
    assert deliver(folder, store).done
    tags = client.get_run(run_id).data.tags
    assert tags["tfmon.delivery"] == "incomplete"
    assert f"{0 if how == 'half of it' else 20} of 50 rows" in tags["tfmon.refused"]


def test_what_was_lost_before_a_flush_is_not_forgotten_after_it(store: str, home: Path) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    journal = Journal.create(home)
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute(
            "CREATE TRIGGER loses AFTER INSERT ON metrics WHEN NEW.key = 'val_loss' "
            "BEGIN DELETE FROM metrics WHERE rowid = NEW.rowid; END"
        )
    lost = EpochEnded(0, 50, BEGUN, {"val_loss": 0.5})
    journal.append([started(store, run_id), layout(), *blocks(values(50)), lost, Flushed(BEGUN)])
    one = Deliverer(journal.folder, store)
    one.advance()
    assert client.get_run(run_id).data.tags["tfmon.delivery"] == "incomplete"
    journal.append([*blocks(values(50, first=51)), RunEnded(BEGUN, "FINISHED", True)])
    journal.close()
    one.advance(trainer_gone=True, hurry=True)
    assert one.done
    tags = client.get_run(run_id).data.tags
    assert tags["tfmon.delivery"] == "incomplete" and "val_loss: 0 of 1 points" in tags["tfmon.refused"]


def test_a_wrong_run_is_told_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "nosuchrun"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no run 'nosuchrun' waiting here" in line


@pytest.mark.slow
def test_a_sync_that_is_interrupted_goes_on_when_it_is_called_again(store: str, home: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # it takes connections, and says nothing
    away = f"http://127.0.0.1:{silent.getsockname()[1]}"
    ended = RunEnded(BEGUN + 10, "FINISHED", True)
    folders = [
        write(home, started(away, None, run_name=f"run {n}"), layout(), *blocks(values(100)), ended)
        for n in range(2)
    ]
    command = [sys.executable, "-m", "mlflow_tfmon.cli", "sync"]
    sync = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    silent.accept()
    sync.send_signal(signal.SIGINT)
    _, said = sync.communicate()
    assert sync.returncode == 1 and said.splitlines()[-1] == "mlflow-tfmon: stopped."
    assert "Traceback" not in said
    assert {one.folder for one in find_waiting()} == set(folders)
    assert main(["sync", "--tracking-uri", store]) == 0
    made = mlflow.MlflowClient(store).search_runs(["0"])
    assert sorted(run.info.run_name for run in made) == ["run 0", "run 1"]
    for run in made:
        assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))
    assert find_waiting() == []
    silent.close()


TRAINER = """
    import sys
    sys.path.insert(0, {tests!r})
    from recordings import blocks, layout, started, values
    from mlflow_tfmon.journal.journal import Journal

    journal = Journal.create()
    journal.append([started(sys.argv[1], None), layout(), *blocks(values(100))])
    print(journal.folder, flush=True)
    sys.stdin.readline()
"""


def test_a_training_that_goes_on_is_not_ended(store: str, home: Path) -> None:
    script = textwrap.dedent(TRAINER).format(tests=str(Path(__file__).parent))
    trainer = subprocess.Popen(
        [sys.executable, "-c", script, store], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None and trainer.stdout.readline()
    (waiting,) = find_waiting()
    assert waiting.written
    assert main(["sync"]) == 0
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert run.info.status == "RUNNING" and "batch/loss" in run.data.metrics
    trainer.send_signal(signal.SIGKILL)
    trainer.communicate()
    (waiting,) = find_waiting()
    assert not waiting.written
    assert main(["sync", run.info.run_id[:8]]) == 0
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert run.info.status == "FAILED" and "step 100" in run.data.tags["mlflow.note.content"]
    assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))


def test_a_forked_child_does_not_keep_its_dead_parents_recording(tmp_path: Path, home: Path) -> None:
    script = "\n".join(
        [
            "import os, sys, time",
            "from mlflow_tfmon.journal.journal import Journal",
            "journal = Journal.create()",
            "if os.fork() == 0: time.sleep(60)",
            "print(journal.folder, flush=True); os._exit(9)",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert process.wait() == 9
    assert folder.is_dir() and find_waiting() == []  # nothing was ever recorded in it
    assert not folder.exists()


def test_a_trainer_that_died_while_it_made_its_journal_leaves_nothing(home: Path) -> None:
    folder = home / "recordings" / "dead"
    folder.mkdir(parents=True)
    (folder / "trainer").touch()
    assert find_waiting() == [] and folder.exists()  # it may be on its way
    os.utime(folder, (BEGUN, BEGUN))
    assert find_waiting() == [] and not folder.exists()


@pytest.mark.thorough
def test_what_waits_is_told_when_the_next_training_begins(store: str, home: Path) -> None:
    assert left_behind() == 0
    folder = write(home, started(store, None), layout(), *blocks(values(10)))
    journal = Journal.create(home)  # is being written
    assert left_behind() == 1
    one = Deliverer(folder)
    one.advance()
    assert left_behind() == 0  # is being delivered
    one.close()
    assert left_behind() == 1
    journal.close()
    script = textwrap.dedent(
        """
        import sys, mlflow, mlflow_tfmon
        mlflow.set_tracking_uri(sys.argv[1])
        for _ in range(2):
            with mlflow_tfmon.Monitor():
                pass
        """
    )
    done = subprocess.run([sys.executable, "-c", script, store], capture_output=True, text=True, check=True)
    assert done.stderr.count("2 recordings of earlier trainings not delivered yet") == 1


def test_one_that_this_process_writes_stays_known_as_written(home: Path) -> None:
    journal = Journal.create()
    for _ in range(2):
        assert [one.written for one in find_waiting()] == [True]
    journal.close()


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a journal whose trainer was killed: what is committed is in the database and its log."""
    folder = tmp_path_factory.mktemp("torn")
    journal = Journal(folder)
    journal.append([started("", None), layout()])
    for block in blocks(values(640)):
        journal.append([block])
    with sqlite3.connect(folder / DATABASE) as other:
        other.execute("PRAGMA wal_checkpoint(PASSIVE)")  # half of it gets into the database
    for block in blocks(values(640, first=641)):
        journal.append([block])
    copy = tmp_path_factory.mktemp("killed")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    journal.close()
    return copy


@pytest.mark.thorough
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=st.sampled_from([DATABASE, f"{DATABASE}-wal"]), share=st.floats(0, 1))
def test_a_journal_that_was_cut_anywhere_gives_its_beginning(
    file: str, share: float, torn: Path, store: str, home: Path
) -> None:
    """As when the machine lost its power: never an error, and no row that was not written."""
    folder = home / "recordings" / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(torn, folder)
    path = folder / file
    with path.open("r+b") as handle:
        handle.truncate(int(share * path.stat().st_size))
    client = mlflow.MlflowClient(store)
    before = {run.info.run_id for run in client.search_runs(["0"])}
    assert deliver(folder, store).done and not folder.exists()
    shutil.rmtree(home / "damaged", ignore_errors=True)
    made = [run for run in client.search_runs(["0"]) if run.info.run_id not in before]
    assert len(made) <= 1
    for run in made:
        assert run.info.status == "FAILED"
        steps = load_run(run.info.run_id, store).steps if "batch/loss" in run.data.metrics else []
        expected = values(1280)[: len(steps)]
        if len(steps):
            assert steps.index.tolist() == expected[:, 0].tolist()
