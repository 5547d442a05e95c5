"""Tests of reading a run's files from its store: damaged ones are named, oversized ones are not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import BEGUN, blocks, deep, deliver, layout, started, values, write

from mlflow_tfmon.cli import main
from mlflow_tfmon.reading import files
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import EpochEnded, Problems, RunEnded


@pytest.fixture
def run_id(store: str, home: Path, client: mlflow.MlflowClient) -> str:
    found = str(client.create_run("0").info.run_id)
    told = Problems(5, BEGUN, ({"kind": "plateau", "severity": "warning", "first_step": 1, "variables": [],
                                "evidence": "", "advice": "", "step": 5, "confidence": 1.0},))  # fmt: skip
    records = [*blocks(values(100)), deep(np.array([1, 50])), EpochEnded(0, 100, BEGUN, {"loss": 0.5}), told]
    deliver(write(home, started(store, found), layout(), *records, RunEnded(BEGUN + 10, "FINISHED", True)))
    return found


def artifact(tmp_path: Path, pattern: str) -> Path:
    (found,) = tmp_path.joinpath("artifacts").rglob(pattern)
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoilt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8 : len(content) // 2] = bytes(len(content) // 2 - 8)
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_metadata(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"tfmon": b'{"prefix": 3}'}), path)


def no_json(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"tfmon": b"[" * 10**5}), path)


@pytest.mark.parametrize("spoil", [cut, spoilt, empty, other_metadata, no_json])
def test_a_damaged_file_is_named(
    run_id: str, store: str, tmp_path: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = artifact(tmp_path, "steps-*.parquet")
    spoil(path)
    with pytest.raises(ValueError, match=f"artifact tfmon/telemetry/{path.name} cannot be read") as caught:
        _ = load_run(run_id, store).steps
    assert "mlflow_tfmon-" not in str(caught.value) and "\n" not in str(caught.value)
    assert main(["diagnose", run_id, "--tracking-uri", store]) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("mlflow-tfmon: ")]
    assert path.name in line
    path.unlink()  # as the message says
    assert load_run(run_id, store).epochs.loc[0, "loss"] == 0.5


def test_damaged_problems_are_named(run_id: str, store: str, tmp_path: Path) -> None:
    for text in ("{", "[{}]", "[3]", json.dumps({"kind": "x"}), "[" * 10**5):
        artifact(tmp_path, "problems.json").write_text(text)
        with pytest.raises(ValueError, match=r"artifact tfmon/problems\.json cannot be read"):
            load_run(run_id, store)


@pytest.mark.parametrize("said", [True, False])
def test_a_file_that_would_take_all_memory_is_not_read(
    run_id: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    before = load_run(run_id, store).steps
    monkeypatch.setattr(files, "_MOST_BYTES", 2**20)
    assert load_run(run_id, store).steps.equals(before)
    path = artifact(tmp_path, "steps-*.parquet")
    schema = pq.read_schema(path)
    columns = [pa.nulls(2**18, field.type).fill_null(0) if not pa.types.is_list(field.type)
               else pa.array([[0.0] * 3] * 2**18, field.type) for field in schema]  # fmt: skip
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, compression="zstd")
    assert path.stat().st_size < 2**20
    if not said:  # a file whose own account is wrong
        monkeypatch.setattr(files, "_check_said", lambda metadata: None)
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match=f"{path.name} cannot be read .*at most 1,048,576"):
        _ = load_run(run_id, store).steps
    assert pa.default_memory_pool().max_memory() <= max(peak, 2**24)


@pytest.mark.parametrize("columns", [None, ["step", "variables.grad_norm"], ["step"]])
def test_what_is_read_in_batches_is_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[str] | None
) -> None:
    monkeypatch.setattr(files, "_BATCH_ROWS", 7)
    for rows in (0, 1, 7, 50):
        table = pa.table(
            {
                "step": pa.array(range(rows), pa.int64()),
                "name": pa.array([str(one % 3) for one in range(rows)], pa.string()).dictionary_encode(),
                "variables.grad_norm": pa.array(
                    [[1.0 * one] * (one % 4) for one in range(rows)], pa.list_(pa.float64())
                ),
            }
        ).replace_schema_metadata({b"tfmon": b'{"prefix": "a."}'})
        pq.write_table(table, tmp_path / "x.parquet")
        whole = pq.read_table(tmp_path / "x.parquet", columns=columns)
        found = files.table(tmp_path / "x.parquet", columns)
        assert found.to_pydict() == whole.to_pydict() and found.schema.equals(whole.schema)
        assert files.about(tmp_path / "x.parquet") == {"prefix": "a."}
