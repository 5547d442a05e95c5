from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import BEGUN, blocks, layout, started, values

from mlflow_tfmon.journal.homes import home_folder, second_home
from mlflow_tfmon.journal.journal import DATABASE, FORMAT, Journal, JournalReader
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    DeepSteps,
    EpochEnded,
    Evidence,
    Facts,
    Flushed,
    Logged,
    Lost,
    ModelSaved,
    Paused,
    Record,
    RunEnded,
    Steps,
    Text,
)

TEXTS = st.text(max_size=20)
FLOATS = st.floats(width=64)
NUMBERS = st.dictionaries(TEXTS, FLOATS, max_size=4)
TAGS = st.dictionaries(TEXTS, TEXTS, max_size=4)
STEPS = st.integers(0, 2**53)
BLOCKS = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(FLOATS, min_size=width, max_size=width), min_size=1, max_size=4).map(
        np.array
    )
)
# Others are refused: they come from a folder that is not ours.
PATHS = TEXTS.filter(lambda path: not PurePath(path).is_absolute() and ".." not in PurePath(path).parts)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(Steps, stream=STEPS, seen=FLOATS, values=BLOCKS),
    st.builds(DeepSteps, stream=STEPS, seen=FLOATS, values=BLOCKS),
    st.builds(Logged, stream=STEPS, step=STEPS, time=FLOATS, values=NUMBERS),
    st.builds(EpochEnded, epoch=STEPS, step=STEPS, time=FLOATS, metrics=NUMBERS, prefix=TEXTS),
    st.builds(Paused, start=FLOATS, end=FLOATS),
    st.builds(Lost, stream=STEPS, first=STEPS, last=STEPS),
    st.builds(
        Facts, params=TAGS, tags=TAGS, time=FLOATS,
        metrics=st.lists(st.tuples(TEXTS, FLOATS, STEPS), max_size=3).map(tuple),
    ),
    st.builds(Text, path=TEXTS, text=TEXTS),
    st.builds(Evidence, step=STEPS, time=FLOATS, about=TAGS, batch=st.binary(), prefix=TEXTS),
    st.builds(DatasetUsed, dataset=TAGS, context=TEXTS, tags=TAGS),
    st.builds(
        ModelSaved, path=PATHS, name=TEXTS, step=STEPS, metrics=NUMBERS, tags=TAGS,
        registered_model_name=st.none() | TEXTS,
    ),
    st.builds(Flushed, time=FLOATS),
    st.builds(RunEnded, time=FLOATS, status=TEXTS, set_status=st.booleans(), reason=TEXTS),
    st.builds(lambda total: layout(total), total=st.none() | STEPS),
    st.builds(lambda owned: started("http://example.org", None, owned=owned), owned=st.booleans()),
)  # fmt: skip


def plain(record: Record) -> tuple[Any, ...]:
    """Compares by content, NaN equal to NaN."""
    fields = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    if isinstance(fields.get("values"), np.ndarray):
        fields["values"] = (fields["values"].shape, fields["values"].astype(float).tobytes())
    return type(record).__name__, repr(fields)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, min_size=1, max_size=8))
def test_what_is_read_is_what_was_written(records: list[Record], tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    assert journal.append(records) == len(records)
    reader = JournalReader(journal.folder)  # while the journal is still open
    found = reader.read(0)
    assert [seq for seq, _ in found] == list(range(1, len(records) + 1))
    assert [plain(record) for _, record in found] == [plain(record) for record in records]
    assert [seq for seq, _ in reader.read(1, limit=2)] == list(range(2, len(records) + 1))[:2]
    assert reader.error is None
    reader.close()
    journal.close()


def test_threads_append_at_once_and_nothing_is_lost(home: Path) -> None:
    journal = Journal.create()
    assert journal.folder.parent == home / "recordings"

    def write(stream: int) -> None:
        for step in range(1, 101):
            journal.append([Lost(stream, step, step)])

    threads = [threading.Thread(target=write, args=(stream,)) for stream in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [record for _, record in JournalReader(journal.folder).read(0)]
    for stream in range(4):
        assert [one.first for one in found if one.stream == stream] == list(range(1, 101))  # type: ignore[union-attr]
    journal.close()


def test_a_killed_writer_leaves_every_appended_record(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from mlflow_tfmon.journal.journal import Journal; from mlflow_tfmon.stream.records import Flushed\n"
        "journal = Journal.create(Path(sys.argv[1]))\n"
        "for n in range(500): journal.append([Flushed(float(n))])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert result.returncode == -9
    (folder,) = (tmp_path / "recordings").iterdir()
    found = JournalReader(folder).read(0)
    assert [record.time for _, record in found] == [float(n) for n in range(500)]  # type: ignore[union-attr]


def test_only_this_user_can_read_it(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "home")
    journal.append(blocks(values(10)))
    for path in (tmp_path / "home", journal.folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in journal.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.close()


def test_a_user_without_a_name_has_a_second_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 1_000_650_000)  # as a container is given one
    assert second_home().name == "mlflow_tfmon-1000650000"


def test_no_secret_is_written(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.append([started("https://ann:s3cret@example.org/mlflow?api_key=t0ken")])
    ((_, record),) = JournalReader(journal.folder).read(0)
    assert record.tracking_uri == "https://example.org/mlflow?api_key=***"  # type: ignore[union-attr]
    journal.close()
    content = b"".join(path.read_bytes() for path in journal.folder.iterdir())
    assert b"s3cret" not in content
    assert b"t0ken" not in content


def test_a_missing_or_damaged_journal_gives_what_is_readable(tmp_path: Path) -> None:
    assert JournalReader(tmp_path / "nowhere").read(0) == []
    assert JournalReader(tmp_path / "nowhere").last() == 0
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / DATABASE).write_bytes(b"no database at all" * 1000)
    reader = JournalReader(tmp_path / "rubbish")
    assert reader.read(0) == []
    assert reader.error is not None
    journal = Journal.create(tmp_path)
    for n in range(300):
        journal.append([Text("a", f"{n:04d}" * 500)])
    journal.close()
    path = journal.folder / DATABASE
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    reader = JournalReader(journal.folder)
    found = reader.read(0)
    assert [seq for seq, _ in found] == list(range(1, len(found) + 1))
    assert reader.error is not None


def test_a_journal_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.append([Flushed(0.0)])
    journal.close()
    connection = sqlite3.connect(journal.folder / DATABASE)
    connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    connection.close()
    reader = JournalReader(journal.folder)
    assert reader.read(0) == []
    assert "newer" in str(reader.error)


def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            journal.append([Flushed(BEGUN)])
            os._exit(1)
        except RuntimeError:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert journal.append([Flushed(BEGUN)]) == 1
    journal.close()


def test_a_full_disk_leaves_nothing_of_the_append_and_what_follows_is_written(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.append([Flushed(0.0)])
    journal._connection.execute("PRAGMA max_page_count=20")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.append([Flushed(1.0), Text("a", "x" * 1_000_000)])
    journal._connection.execute("PRAGMA max_page_count=100000")
    assert journal.append([Flushed(2.0)]) == 2
    assert [record for _, record in JournalReader(journal.folder).read(0)] == [Flushed(0.0), Flushed(2.0)]
    journal.close()
    with pytest.raises(sqlite3.Error):
        journal.append([Flushed(3.0)])


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TFMON_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home_folder() == tmp_path / "mlflow_tfmon"
    monkeypatch.setenv("MLFLOW_TFMON_HOME", str(tmp_path / "mine"))
    assert home_folder() == tmp_path / "mine"
