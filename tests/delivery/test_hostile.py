"""Tests with malicious recordings and server answers."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from recordings import BEGUN, blocks, layout, started, values, write

from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.journal import here, life
from mlflow_tfmon.journal.journal import DATABASE, JournalReader
from mlflow_tfmon.stream import coding
from mlflow_tfmon.stream.records import ModelSaved, RunEnded

ENDED = RunEnded(BEGUN + 10, "FINISHED", True)
_ROW = "INSERT INTO records (kind, body, block) VALUES (?, ?, ?)"


@pytest.mark.parametrize("climbs", ["../../precious/x", "/precious/x", "..", "x\ud800\0"])
def test_the_id_that_a_server_gives_a_run_is_no_path(home: Path, tmp_path: Path, climbs: str) -> None:
    precious = home / "precious" / "kept"
    precious.parent.mkdir(parents=True)
    precious.write_text("PRECIOUS")
    folder = home / "recordings" / "one"
    folder.mkdir(parents=True)
    run_id = climbs.replace("/precious", str(precious.parent)) if climbs.startswith("/") else climbs
    assert life.claim_run(folder, run_id) and life.claim_run(folder, run_id)
    assert precious.read_text() == "PRECIOUS"
    assert sorted(one.name for one in precious.parent.iterdir()) == ["kept"]
    assert len(list((home / "runs").iterdir())) == 1
    life.disclaim_run(folder, run_id)
    assert not list((home / "runs").iterdir())


_HISTOGRAMS = json.dumps({"stream": 0, "seen": 0.0, "width": 1})
HOSTILE: dict[str, Callable[[], tuple[object, object, object]]] = {
    "nested": lambda: ("Facts", "[" * 200_000, None),
    "a bomb": lambda: ("Histograms", _HISTOGRAMS, zlib.compress(bytes(2**21))),
    "no text": lambda: ("Facts", b"\xff\xfe", None),
    "a path as stream": lambda: (
        "Steps",
        json.dumps({"stream": "x/../../y", "seen": 0.0, "width": 1}),
        bytes(8),
    ),
    "another block": lambda: ("Steps", json.dumps({"stream": 0, "seen": 0.0, "width": 1}), "text"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("first", [True, False])
def test_a_hostile_record_keeps_no_other_recording(
    store: str, home: Path, monkeypatch: pytest.MonkeyPatch, what: str, first: bool
) -> None:
    monkeypatch.setattr(coding, "_MOST_BYTES", 2**20)
    bad = write(home, *([] if first else [started(store)]), layout())
    with sqlite3.connect(bad / DATABASE) as database:
        if first:
            database.execute("DELETE FROM records")
        database.execute(_ROW, HOSTILE[what]())
    found = JournalReader(bad).read(0 if first else 2)
    assert len(found) == 1 and isinstance(found[0][1], ValueError)
    good = write(home, started(store), layout(), *blocks(values(10)), ENDED)
    assert len(find_waiting()) == 2
    here.recordings()
    assert main(["sync"]) == 1
    assert not good.exists() and bad.exists()


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TRIGGER t AFTER DELETE ON records BEGIN DELETE FROM records; END",
        "ALTER TABLE records RENAME TO r; CREATE VIEW records AS WITH RECURSIVE n(seq, kind, body, block) AS "
        "(SELECT 1, 'Flushed', '{}', NULL UNION ALL SELECT seq + 1, kind, body, block FROM n) SELECT * FROM n",
    ],
)
def test_a_journal_that_is_a_program_is_not_run(store: str, home: Path, schema: str) -> None:
    folder = write(home, started(store), layout(), *blocks(values(10)))
    with sqlite3.connect(folder / DATABASE) as database:
        database.executescript(schema)
    reader = JournalReader(folder)
    assert reader.read(0) == [] and reader.damaged
    assert "contains more than the table of records" in str(reader.error)
    assert reader.last() == 0


@pytest.mark.parametrize("status", ["[]", '{"delivered": "x"}', "[" * 100_000, '{"delivered": 1e999}'])
def test_a_status_that_is_none_keeps_no_other_recording(store: str, home: Path, status: str) -> None:
    bad = write(home, started(store), layout(), *blocks(values(10)))
    (bad / "status.json").write_text(status)
    (bad / "status.json").chmod(0o600)
    good = write(home, started(store), layout(), *blocks(values(10)), ENDED)
    assert {one.folder for one in find_waiting()} == {bad, good}
    here.recordings()
    main(["sync"])
    assert not good.exists()


@pytest.mark.parametrize("climbs", ["../../../precious", "{}", "models/../../../precious"])
def test_a_model_outside_its_recording_is_neither_sent_nor_deleted(
    store: str, home: Path, tmp_path: Path, climbs: str
) -> None:
    precious = home.parent / "precious"
    precious.mkdir()
    (precious / "kept").write_text("PRECIOUS")
    saved = ModelSaved(climbs.format(precious), "model", 1)
    folder = write(home, started(store), layout(), *blocks(values(10)), saved, ENDED)
    assert main(["sync"]) == 1
    assert (precious / "kept").read_text() == "PRECIOUS" and folder.exists()
    assert os.listdir(precious) == ["kept"]
