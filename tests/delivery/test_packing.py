"""Tests of packs: recordings are carried to another machine, arrive there once, and no file does anything else."""

from __future__ import annotations

import gzip
import io
import json
import os
import sqlite3
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from recordings import BEGUN, blocks, layout, started, values, write
from test_models import SAVED
from test_saved_state import training

from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery import attempt, packing
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.status import Status, write_status
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.journal import DATABASE, Journal, JournalReader
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.coding import KINDS
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    Evidence,
    Facts,
    Flushed,
    LeftOut,
    Overwritten,
    Premises,
    Problems,
    Record,
    RunEnded,
    RunStarted,
    System,
    Text,
)

ENDED = RunEnded(BEGUN + 10, "FINISHED", True)
ID = "0123456789abcdef" * 2
Capture = pytest.CaptureFixture[str]


class Machines:
    """Two machines that share nothing but a file and, one after the other, a store."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained, self.reaches = folder / "trained", folder / "reaches"
        self.file = folder / "runs.pack"
        self._monkeypatch = monkeypatch

    def on(self, home: Path) -> None:
        self._monkeypatch.setenv("MLFLOW_TFMON_HOME", str(home))

    def pack(self, *arguments: str) -> int:
        self.on(self.trained)
        return main(["pack", *arguments, str(self.file)])

    def unpack(self, *arguments: str) -> int:
        self.on(self.reaches)
        return main(["unpack", str(self.file), *arguments])


@pytest.fixture
def machines(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    yield Machines(tmp_path, monkeypatch)
    mlflow.set_tracking_uri(before)


def counted(store: str) -> list[tuple[int, int, int]]:
    """Of each run the points of its loss, its rows and its models, as MLflow's own client and its files have them."""
    client = mlflow.MlflowClient(store)
    return sorted(
        (
            len({point.step for point in client.get_metric_history(run.info.run_id, "batch/loss")}),
            len(load_run(run.info.run_id, store).steps),
            len(client.search_logged_models(["0"], f"source_run_id = '{run.info.run_id}'")),
        )
        for run in client.search_runs(["0"])
    )


def test_what_is_carried_arrives_once_wherever_it_is_delivered(
    machines: Machines, store: str, capsys: Capture
) -> None:
    folders = [
        write(
            machines.trained,
            started(store, None, run_name=name),
            layout(count),
            *blocks(values(count)),
            *more,
        )
        for name, count, more in (("first", 100, (SAVED, ENDED)), ("second", 50, (ENDED,)))
    ]
    (folders[0] / SAVED.path / "data").mkdir(parents=True)
    (folders[0] / SAVED.path / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (folders[0] / SAVED.path / "data" / "weights").write_bytes(os.urandom(3 * 2**20))
    assert machines.pack() == 0 and all(folder.exists() for folder in folders)
    assert "2 recordings" in capsys.readouterr().out
    assert stat.S_IMODE(machines.file.stat().st_mode) == 0o600
    assert sorted(os.listdir(machines.file.parent)) == sorted({"mlflow.db", "runs.pack", "trained"})
    assert machines.unpack() == 0
    assert sorted(one.folder.name for one in find_waiting()) == sorted(one.name for one in folders)
    assert machines.unpack() == 0 and capsys.readouterr().out.count("is here already") == 2
    assert main(["sync"]) == 0 and find_waiting() == []
    expected = [(50, 50, 0), (100, 100, 1)]
    assert counted(store) == expected
    assert machines.unpack() == 0  # though it has been delivered
    assert main(["sync"]) == 0 and counted(store) == expected
    machines.on(machines.trained)
    assert main(["sync"]) == 0 and find_waiting() == []
    assert counted(store) == expected
    runs = mlflow.MlflowClient(store).search_runs(["0"])
    assert {run.info.run_name for run in runs} == {"first", "second"}
    assert all(run.data.tags["tfmon.delivery"] == "complete" for run in runs)


def test_a_recording_of_which_a_part_was_delivered_and_deleted(
    machines: Machines, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines.on(machines.trained)
    journal = Journal.create()
    journal.append([started(store, None), layout(), *blocks(values(640))])
    with monkeypatch.context() as patched:
        patched.setattr(attempt, "_TRIM_BYTES", 1)
        one = Deliverer(journal.folder)
        one.advance(hurry=True)
        one.close()
    assert (journal.folder / "moment.json").exists()
    journal.append([*blocks(values(320, first=641)), ENDED])
    journal.close()
    numbers = [number for number, _ in JournalReader(journal.folder).read(0)]
    assert numbers[1] > 2
    assert machines.pack() == 0 and machines.unpack() == 0
    (waiting,) = find_waiting()
    assert [number for number, _ in JournalReader(waiting.folder).read(0)] == numbers
    assert main(["sync"]) == 0 and find_waiting() == []
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 961))
    assert run.info.status == "FINISHED"


def test_what_cannot_be_packed_is_told_in_one_line(machines: Machines, store: str, capsys: Capture) -> None:
    def line() -> str:
        (told,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("mlflow-tfmon: ")]
        return told

    assert machines.pack() == 1 and "nothing is undelivered" in line() and not machines.file.exists()
    folder = write(machines.trained, started(store, None, run_name="digits"), layout(), ENDED)
    assert machines.pack("other") == 2 and "there is no run 'other'" in line()
    assert main(["pack", "digits"]) == 2 and "FILE is missing" in line()
    assert life.claim(folder)
    assert machines.pack("digits") == 1 and "is being delivered" in line() and not machines.file.exists()
    life.disclaim(folder)
    journal = Journal.create(machines.trained)
    journal.append([started(store, None), layout(), *blocks(values(10))])
    assert machines.pack() == 1 and "1 of 2 recordings were not packed" in line() and machines.file.exists()
    journal.close()
    assert machines.pack() == 1 and "exists" in line()
    assert main(["pack", str(machines.file.parent / "nowhere" / "file")]) == 1 and "nowhere" in line()
    machines.unpack()
    assert [one.folder for one in find_waiting()] == [machines.reaches / "recordings" / folder.name]


def journal_of(folder: Path, *records: Record) -> bytes:
    """A journal's file, whole."""
    path = write(folder, *records)
    return (path / DATABASE).read_bytes()


def archive(file: Path, files: object, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """A pack of whatever is wanted, after a list."""
    listed = json.dumps({"format": 1, "files": files}).encode()
    with tarfile.open(file, "w:gz") as tar:
        for member, content in ((info("pack.json"), listed), *members):
            member.size = member.size or len(content)
            tar.addfile(member, io.BytesIO(content) if content else None)


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def raw(file: Path, header: bytes) -> None:
    """A pack whose list is followed by any header."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        listed = json.dumps({"format": 1, "files": [[f"{ID}/{DATABASE}", 4]]}).encode()
        member = info("pack.json")
        member.size = len(listed)
        tar.addfile(member, io.BytesIO(listed))
        end = tar.offset
    file.write_bytes(gzip.compress(plain.getvalue()[:end] + header))


DB = f"{ID}/{DATABASE}"
NAMED = [[DB, 4]]
HOSTILE: dict[str, Callable[[Path], None]] = {
    "no pack": lambda file: file.write_bytes(b"hello"),
    "empty": lambda file: file.write_bytes(b""),
    "no list": lambda file: archive(file, {}),
    "newer": lambda file: archive(file, []) or file,  # type: ignore[func-returns-value]
    "traversal": lambda file: archive(file, [[f"{ID}/../../x", 4]], (info(f"{ID}/../../x"), b"evil")),
    "dots": lambda file: archive(file, [["../x", 4]], (info("../x"), b"evil")),
    "absolute": lambda file: archive(file, [["/tmp/x", 4]], (info("/tmp/x"), b"evil")),
    "other name": lambda file: archive(file, NAMED, (info("/tmp/x"), b"evil")),
    "symlink": lambda file: archive(file, NAMED, (info(DB, tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "hard link": lambda file: archive(file, NAMED, (info(DB, tarfile.LNKTYPE, "/etc/passwd"), b"")),
    "fifo": lambda file: archive(file, NAMED, (info(DB, tarfile.FIFOTYPE), b"")),
    "device": lambda file: archive(file, NAMED, (info(DB, tarfile.CHRTYPE), b"")),
    "folder": lambda file: archive(file, NAMED, (info(DB, tarfile.DIRTYPE), b"")),
    "twice": lambda file: archive(file, [*NAMED, *NAMED], (info(DB), b"evil"), (info(DB), b"evil")),
    "more": lambda file: archive(file, NAMED, (info(DB), b"evil"), (info(DB), b"evil")),
    "fewer": lambda file: archive(file, [*NAMED, [f"{ID}/status.json", 2]], (info(DB), b"evil")),
    "other size": lambda file: archive(file, [[DB, 5]], (info(DB), b"evil")),
    "no size": lambda file: archive(file, [[DB, -1]], (info(DB), b"evil")),
    "below a file": lambda file: archive(file, [*NAMED, [f"{DB}/x", 1]], (info(DB), b"evil"), (info(f"{DB}/x"), b"x")),
    # SQLite would do what these say: of a rolled back journal it deletes the file that is named there.
    "write-ahead log": lambda file: archive(file, [*NAMED, [f"{DB}-wal", 4]], (info(DB), b"evil")),
    "hot journal": lambda file: archive(file, [[f"{DB}-journal", 4], *NAMED], (info(f"{DB}-journal"), b"evil")),
    "whole disk": lambda file: archive(file, [[DB, 2**60]]),
    "half a character": lambda file: archive(file, [[f"{ID}/\ud800", 1]]),
    "no journal": lambda file: archive(file, [[f"{ID}/status.json", 2]], (info(f"{ID}/status.json"), b"{}")),
    "no database": lambda file: archive(file, NAMED, (info(DB), b"evil")),
    "huge header": lambda file: raw(file, huge(tarfile.XHDTYPE)),
    "huge name": lambda file: raw(file, huge(tarfile.GNUTYPE_LONGNAME)),
    "sparse": lambda file: raw(file, huge(tarfile.GNUTYPE_SPARSE)),
    "cut off": lambda file: (archive(file, [[DB, 2**16]], (info(DB), os.urandom(2**16))), os.truncate(file, 2**15)),
}  # fmt: skip


def huge(kind: bytes) -> bytes:
    member = info(DB, kind)
    member.size = 2**40
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-512:])
    return bytes(header)


def refused(machines: Machines, capsys: Capture, *arguments: str) -> str:
    """Unpacks, and sees that one line was said, and that nothing was kept anywhere."""
    capsys.readouterr()
    before = sorted(os.listdir(machines.file.parent))
    assert machines.unpack(*arguments) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("mlflow-tfmon: ") and len(line) < 600
    assert find_waiting() == []
    left = {path.name for path in machines.reaches.rglob("*")} if machines.reaches.exists() else set()
    assert left <= {"recordings"}
    assert set(os.listdir(machines.file.parent)) <= {*before, "reaches"}
    return line


@pytest.mark.parametrize("how", HOSTILE)
def test_a_file_that_is_no_pack_leaves_nothing(how: str, machines: Machines, capsys: Capture) -> None:
    HOSTILE[how](machines.file)
    if how == "newer":
        with tarfile.open(machines.file, "w:gz") as tar:
            text = b'{"format": 2, "files": []}'
            member = info("pack.json")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    line = refused(machines, capsys)
    assert how != "newer" or "upgrade" in line
    assert how not in ("write-ahead log", "hot journal") or "its list names" in line
    assert (
        how not in ("symlink", "hard link", "fifo", "device", "folder", "sparse") or "no plain file" in line
    )
    assert not Path("/tmp/x").exists()


def test_files_that_no_record_names_are_refused(
    machines: Machines, store: str, capsys: Capture, tmp_path: Path
) -> None:
    content = journal_of(tmp_path / "elsewhere", started(store, None), layout(), SAVED, ENDED)
    for path in ("sitecustomize.py", "lock", "models/1/x", "telemetry/x.parquet", "sinks/x"):
        name = f"{ID}/{path}"
        archive(machines.file, [[DB, len(content)], [name, 4]], (info(DB), content), (info(name), b"evil"))
        assert repr(path) in refused(machines, capsys)


def test_a_journal_with_more_than_records_is_refused(
    machines: Machines, store: str, capsys: Capture, tmp_path: Path
) -> None:
    folder = write(tmp_path / "elsewhere", started(store, None), layout(), ENDED)
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        database.execute("CREATE VIEW more AS SELECT * FROM records")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = (folder / DATABASE).read_bytes()
    archive(machines.file, [[DB, len(content)]], (info(DB), content))
    assert "more than the table of records" in refused(machines, capsys)


@pytest.mark.parametrize(
    "records",
    [(layout(), ENDED), (started(""), layout(), started("")), (Facts(tags={"a": "b"}), started(""))],
)
def test_a_journal_that_does_not_say_whose_it_is(
    records: tuple[Record, ...], machines: Machines, capsys: Capture, tmp_path: Path
) -> None:
    content = journal_of(tmp_path / "elsewhere", *records)
    archive(machines.file, [[DB, len(content)]], (info(DB), content))
    refused(machines, capsys)


def test_a_recording_is_for_the_store_that_is_configured_here(
    machines: Machines, store: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret-s3cret-s3cret")
    away, sinks = "http://127.0.0.1:9", f"jsonl:{tmp_path / 'sink'}"
    rows = blocks(values(20))
    write(machines.trained, started(away, None, sinks=sinks), layout(), *rows, ENDED)
    assert machines.pack() == 0
    line = refused(machines, capsys)
    assert away in line and store in line and "--tracking-uri" in line
    assert machines.unpack("--tracking-uri", store) == 0
    (waiting,) = find_waiting()
    ((_, first),) = JournalReader(waiting.folder).read(0, limit=1)
    assert isinstance(first, RunStarted)
    assert (first.tracking_uri, first.registry_uri, first.sinks) == (store, store, "")
    assert main(["sync"]) == 0 and counted(store) == [(20, 20, 0)]
    assert not (tmp_path / "sink").exists()


def test_a_registry_that_is_not_configured_here(machines: Machines, store: str, capsys: Capture) -> None:
    write(machines.trained, started(store, None, registry_uri="http://127.0.0.1:9"), layout(), ENDED)
    assert machines.pack() == 0
    assert "MLFLOW_REGISTRY_URI" in refused(machines, capsys)


def test_an_interrupted_pack_leaves_nothing(
    machines: Machines, store: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(machines.trained, started(store, None), layout(), *blocks(values(20)), ENDED)
    before = sorted(os.listdir(machines.file.parent))

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_member", interrupt)
    assert machines.pack() == 1 and capsys.readouterr().err.strip() == "mlflow-tfmon: stopped."
    assert sorted(os.listdir(machines.file.parent)) == before
    (waiting,) = find_waiting()
    assert not life.is_claimed(waiting.folder)


def test_what_a_killed_unpack_left_is_taken_away_by_the_next(machines: Machines, store: str) -> None:
    write(machines.trained, started(store, None), layout(), *blocks(values(20)), ENDED)
    assert machines.pack() == 0
    for name in ("received", "made"):
        (machines.reaches / "unpacking" / name / "recordings" / ID).mkdir(parents=True, mode=0o700)
    for path in (machines.reaches, machines.reaches / "unpacking"):
        path.chmod(0o700)
    assert machines.unpack() == 0 and len(find_waiting()) == 1
    assert os.listdir(machines.reaches) == ["recordings"]


def test_a_model_of_another_run_is_neither_deleted_nor_changed(machines: Machines, store: str) -> None:
    """Whatever status and records say of which model is theirs."""
    client = mlflow.MlflowClient(store)
    models = [client.create_logged_model("0", "theirs", client.create_run("0").info.run_id) for _ in range(3)]
    ids = [model.model_id for model in models]
    run_id = client.create_run("0").info.run_id
    saved = replace(SAVED, registered_model_name=None, drops=(f"models:/{ids[1]}", "models/9"))
    folder = write(machines.trained, started(store, run_id), layout(), saved, ENDED)
    (folder / SAVED.path).mkdir(parents=True)
    (folder / SAVED.path / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    write_status(folder, Status(models={SAVED.path: ids[0], "models/9": ids[2]}))
    assert machines.pack() == 0 and machines.unpack() == 0
    main(["sync"])
    for model in models:
        after = client.get_logged_model(model.model_id)
        assert (after.status, after.tags) == (model.status, model.tags)
        assert client.list_logged_model_artifacts(model.model_id) == []


def test_every_kind_of_record_is_carried_as_it_was_written(machines: Machines, store: str) -> None:
    records: list[Record] = [
        started(store, None, past={"epochs": {"": 3}}), layout(), *training(1), SAVED,
        Problems(50, BEGUN, ({"kind": "plateau", "variables": ["dense.kernel"]},)), Overwritten(0, 1, 2),
        Premises({"classes": 3}, "", 0), Text("tfmon/stacks.txt", "caf\u00e9\n"), LeftOut({"Steps": 3}, "a full disk"),
        DatasetUsed({"name": "digits", "digest": "1"}, "train"), Facts(metrics=(("a", float("nan"), 1),)),
        System(50, BEGUN, {"system/process_memory_mb": 475.0}),
        Evidence(50, BEGUN, {"kind": "spike"}, b"PK", "a."), Flushed(BEGUN), ENDED,
    ]  # fmt: skip
    assert {type(record) for record in records} >= set(KINDS.values())
    folder = write(machines.trained, *records)
    assert machines.pack() == 0 and machines.unpack() == 0
    rows = []
    for home in (machines.trained, machines.reaches):
        with closing(sqlite3.connect(home / "recordings" / folder.name / DATABASE)) as database:
            rows.append(
                database.execute("SELECT seq, kind, body, block FROM records ORDER BY seq").fetchall()
            )
    assert rows[0] == rows[1] and len(rows[0]) == len(records)
