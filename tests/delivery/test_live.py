"""Tests of live telemetry of unfinished trainings, in real SQLite stores, in this process."""

from __future__ import annotations

import errno
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import BEGAN, BEGUN, blocks, deep, deliver, layout, started, values, write

from mlflow_tfmon.delivery import attempt as attempt_module
from mlflow_tfmon.delivery import live
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.stream.records import EpochEnded, Flushed, Logged, Record, RunEnded
from mlflow_tfmon.tracking.names import REPORT
from mlflow_tfmon.tracking.store import RunStore
from mlflow_tfmon.translation import telemetry

ENDED = RunEnded(BEGUN + 1e5, "FINISHED", True)


class Clock:
    """Time for the pace of live calls: it stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Killed(BaseException):
    """The process is gone at this very place."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def advanced(deliverer: Deliverer, clock: Clock, seconds: float = 10.0) -> Deliverer:
    clock.now += seconds
    deliverer.advance(hurry=True)
    return deliverer


@pytest.mark.parametrize("total", [1_000_000, None])
def test_the_last_row_of_a_long_training_is_readable_while_it_goes_on(
    total: int | None, store: str, client: mlflow.MlflowClient, run_id: str, home: Path, clock: Clock
) -> None:
    rows = values(5003, seconds=3.0)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    with pytest.raises(ValueError, match="not monitored"):
        load_run(run_id, store)
    journal.append([started(store, run_id), layout(total), *blocks(rows[:5000])])
    advanced(deliverer, clock)
    for last in (5001, 5002, 5003):
        journal.append(
            [*blocks(rows[last - 1 : last]), Logged(0, last, BEGUN + last, {"temperature": 2.0 * last})]
        )
        advanced(deliverer, clock)
        run = load_run(run_id, store)
        assert run.steps.index.tolist() == list(range(1, last + 1))
        np.testing.assert_array_equal(run.steps["loss"], rows[:last, 4])
        assert run.steps.loc[last, "temperature"] == 2.0 * last
        assert run.layers["step"].max() == last
        assert not run.complete
        assert (
            f"step {last}{f' of {total}' if total else ''}, loss {rows[last - 1, 4]:.4g}"
            in client.get_run(run_id).data.tags["tfmon.progress"]
        )
    # It is the files that show it: the curve is too far thinned for that by now.
    assert 5003 not in {point.step for point in client.get_metric_history(run_id, "batch/loss")}
    assert (deliverer.status.flushed, deliverer.status.complete, deliverer.status.error) == (0, False, None)
    assert client.get_run(run_id).data.tags["tfmon.delivery"] == "streaming"
    journal.close()


@pytest.mark.thorough
def test_a_delivery_killed_while_it_publishes_loses_and_doubles_nothing(
    store: str, client: mlflow.MlflowClient, home: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_tfmon.translation.parts._PART_BYTES", 20_000)
    monkeypatch.setattr(telemetry, "_ROWS", 70)
    monkeypatch.setattr(attempt_module, "_BATCH", 60)
    monkeypatch.setattr(
        attempt_module, "_SLICE_SECONDS", 0.02
    )  # what was read once is read again in several goes
    rows = values(1200)
    body: list[list[Record]] = [
        [*blocks(rows[at : at + 100], 50), deep(np.arange(at + 50, at + 101, 50)),
         *(Logged(0, step, BEGUN + step, {"temperature": step / 7}) for step in range(at + 1, at + 101, 5)),
         EpochEnded(at // 100, at + 100, BEGUN + at, {"loss": 1.0 / (at + 1)}),
         *([Flushed(BEGUN)] if at == 500 else [])]
        for at in range(0, 1200, 100)
    ]  # fmt: skip
    runs = [str(client.create_run("0").info.run_id) for _ in range(2)]
    deliver(write(home, started(store, runs[0]), layout(), *chain.from_iterable(body), ENDED))
    real, left = RunStore.file, {"calls": 0}

    def killed(self: RunStore, path: Path, folder: str, patient: bool = True) -> None:
        left["calls"] -= 1
        if left["calls"] == 0 and not patient:
            raise Killed
        real(self, path, folder, patient)
        if left["calls"] <= 0:
            raise Killed  # it arrived, but nobody noted it

    monkeypatch.setattr(RunStore, "file", killed)
    journal = Journal.create(home)
    journal.append([started(store, runs[1]), layout()])
    seen, kills = 0, 0
    for number, part in enumerate(body):
        journal.append(part)
        left["calls"] = number % 8 + 1
        deliverer = Deliverer(journal.folder, store)
        try:
            advanced(deliverer, clock)
            while deliverer.status.waiting:
                advanced(deliverer, clock)
            advanced(deliverer, clock)
        except Killed:
            kills += 1
        deliverer.close()
        if seen or client.list_artifacts(runs[1], "tfmon/telemetry"):
            shown = load_run(runs[1], store).steps.index.tolist()
            assert shown == list(range(1, len(shown) + 1))
            assert len(shown) >= seen  # what was shown once is not taken back
            seen = len(shown)
    assert kills > 4 and seen > 600
    monkeypatch.setattr(RunStore, "file", real)
    journal.append([ENDED])
    journal.close()
    assert deliver(journal.folder).done
    files = [[one.path for one in client.list_artifacts(run, "tfmon/telemetry")] for run in runs]
    assert len(files[0]) > 10
    assert files[0] == files[1]
    one, two = load_run(runs[0], store), load_run(runs[1], store)
    assert two.steps.index.tolist() == list(range(1, 1201))
    assert two.complete
    for name in ("steps", "layers", "epochs"):
        assert getattr(one, name).equals(getattr(two, name))


@pytest.mark.slow
def test_live_calls_are_few_and_a_slow_store_makes_them_fewer(
    store: str, run_id: str, home: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    real, tags, slow = RunStore.file, RunStore.tags, {"seconds": 0.0}

    def file(self: RunStore, path: Path, folder: str, patient: bool = True) -> None:
        calls["file"] += 1
        clock.now += slow["seconds"]
        real(self, path, folder, patient)

    def count_tags(self: RunStore, found: dict[str, str]) -> dict[str, str]:
        calls.update(found.keys())
        return tags(self, found)

    monkeypatch.setattr(RunStore, "file", file)
    monkeypatch.setattr(RunStore, "tags", count_tags)
    rows = values(1000)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    journal.append([started(store, run_id), layout()])
    begun = clock.now
    for at in range(0, 500, 10):
        journal.append(blocks(rows[at : at + 10], 2))
        advanced(deliverer, clock, 0.5)
    assert 4 <= calls["file"] <= (clock.now - begun) / 3.0
    assert 4 <= calls["tfmon.progress"] <= (clock.now - begun) / 2.0
    calls.clear()
    begun, slow["seconds"] = clock.now, 2.0
    for at in range(500, 1000, 10):
        journal.append(blocks(rows[at : at + 10], 2))
        advanced(deliverer, clock, 2.0)
    assert 1 <= calls["file"] <= 1 + (clock.now - begun) / 12.0
    calls.clear()
    for _ in range(20):  # nothing new: nothing to say
        advanced(deliverer, clock, 100.0)
    assert calls["file"] <= 1 and calls["tfmon.progress"] <= 1
    journal.append([ENDED])
    slow["seconds"] = 0.0
    advanced(deliverer, clock, 0.0)
    assert deliverer.done
    assert "step 1000, " in mlflow.MlflowClient(store).get_run(run_id).data.tags["tfmon.progress"]
    journal.close()


def test_nothing_is_published_while_anything_waits(
    store: str,
    client: mlflow.MlflowClient,
    run_id: str,
    home: Path,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    real = RunStore.file

    def file(self: RunStore, path: Path, folder: str, patient: bool = True) -> None:
        tried.append(path.name)
        real(self, path, folder, patient)

    monkeypatch.setattr(RunStore, "file", file)
    artifacts = tmp_path / "artifacts"
    artifacts.write_text("a file where the folder of artifacts should be")
    rows = values(600)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    journal.append([started(store, run_id), layout(), *blocks(rows[:100])])
    for _ in range(3):  # an open part that cannot be uploaded is a part that is uploaded later
        last = journal.append(blocks(rows[:0]))
        advanced(deliverer, clock)
    assert set(tried) == {f"steps-0-{BEGAN}-00000.parquet"}
    assert deliverer.status.error
    assert deliverer.status.delivered == last  # the points are there
    journal.append([*blocks(rows[100:200]), Flushed(BEGUN)])
    for at in range(200, 600, 100):
        journal.append(blocks(rows[at : at + 100]))
        advanced(deliverer, clock)
    assert set(tried) == {f"steps-0-{BEGAN}-00000.parquet"}  # the next one is not even tried
    assert deliverer.status.flushed == 0
    assert "step 600, " in client.get_run(run_id).data.tags["tfmon.progress"]  # the store of rows is there
    artifacts.unlink()
    advanced(deliverer, clock)
    assert deliverer.status.error is None
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 601))
    journal.append([ENDED])
    assert advanced(deliverer, clock).done
    assert tried[-1] == f"steps-0-{BEGAN}-00001.parquet"
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 601))
    journal.close()


def test_a_full_disk_costs_no_row(
    store: str,
    client: mlflow.MlflowClient,
    run_id: str,
    home: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlflow_tfmon.translation.parts._PART_BYTES", 40_000)
    rows = values(2000)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    with monkeypatch.context() as patch:
        patch.setattr("mlflow_tfmon.translation.parts.pq.write_table", full)
        journal.append([started(store, run_id), layout(), *blocks(rows[:1500])])
        advanced(deliverer, clock)
        journal.append([EpochEnded(0, 1500, BEGUN, {"loss": 0.5})])
        advanced(deliverer, clock)
        assert "No space left" in str(deliverer.status.error)
        assert client.get_run(run_id).data.metrics["loss"] == 0.5
        assert deliverer.status.rejected == {}
    journal.append([*blocks(rows[1500:]), ENDED])
    assert advanced(deliverer, clock).done
    run = load_run(run_id, store)
    assert run.steps.index.tolist() == list(range(1, 2001))
    np.testing.assert_array_equal(run.steps["loss"], rows[:, 4])
    journal.close()


def test_a_part_that_was_read_half_written_is_read_again(
    store: str, run_id: str, home: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = values(3000)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    journal.append([started(store, run_id), layout(), *blocks(rows)])
    advanced(deliverer, clock)
    advanced(deliverer, clock)
    real, halves = mlflow.MlflowClient.download_artifacts, ["footer", "body"]

    def half(self: mlflow.MlflowClient, *args: str) -> str:
        found = real(self, *args)
        if halves:
            (path,) = Path(found).glob("steps-*.parquet")
            content = path.read_bytes()
            cut = len(content) // 2
            # What a reader gets who was overtaken: nothing more, or the other half of another file.
            path.write_bytes(content[:cut] if halves.pop() == "footer" else b"\0" * cut + content[cut:])
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "download_artifacts", half)
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 3001))
    assert not halves
    halves += ["footer"] * 100
    with pytest.raises((OSError, ValueError)):
        load_run(run_id, store)
    assert len(halves) > 50
    deliverer.close()
    journal.close()


def test_parts_end_where_they_end_however_often_they_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_tfmon.translation.parts._PART_BYTES", 3000)
    monkeypatch.setattr(telemetry, "_ROWS", 7)
    made: list[list[tuple[str, int]]] = []
    for looks in (False, True):
        files = telemetry.Telemetry(tmp_path, BEGUN, Past())
        files.opened(layout())
        parts: list[telemetry.Part] = []
        for step in range(1, 801):
            files.logged(Logged(0, step, BEGUN + step, {f"name {step % 5}": step / 3, "other": 1.0}))
            parts += files.finished()
            if looks:
                assert sum(part.rows for part in (*parts, *files.unfinished())) == 2 * step
        files.rotate()
        parts += files.finished()
        assert files.unfinished() == []
        assert sum(part.rows for part in parts) == 1600
        made.append([(part.path.name, part.rows) for part in parts])
        frames = [pq.read_table(part.save()).to_pandas() for part in parts]
        assert [step for frame in frames for step in frame["step"]] == sorted([*range(1, 801)] * 2)
    assert made[0] == made[1]
    assert len(made[0]) > 3


def test_the_report_is_there_while_the_training_goes_on(
    store: str,
    client: mlflow.MlflowClient,
    run_id: str,
    home: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    real = RunStore.text

    def text(self: RunStore, path: str, text: str) -> None:
        if path == REPORT:
            made.append(text)
        real(self, path, text)

    monkeypatch.setattr(RunStore, "text", text)
    rows = values(600)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    client.set_tag(run_id, "mlflow.note.content", "my notes")
    journal.append([started(store, run_id, report=True), layout(600), *blocks(rows[:300])])
    advanced(deliverer, clock, 5.0)
    assert not made  # a training of a few seconds has one at its end
    note = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert note.startswith("my notes\n\n") and "viewStateShareKey" in note and REPORT not in note
    journal.append([*blocks(rows[300:310]), EpochEnded(0, 310, BEGUN, {"loss": 1.0})])
    advanced(deliverer, clock, 30.0)
    assert len(made) == 1 and "The training goes on" in made[0] and "310 steps, 1 epochs" in made[0]
    assert "so far: step 310 of 600" in made[0]
    page = mlflow.artifacts.load_text(f"{client.get_run(run_id).info.artifact_uri}/{REPORT}")
    assert page == made[0] and REPORT in client.get_run(run_id).data.tags["mlflow.note.content"]
    advanced(deliverer, clock, 100.0)
    assert len(made) == 1  # nothing is new
    for at in range(310, 360, 10):
        journal.append(blocks(rows[at : at + 10]))
        advanced(deliverer, clock, 10.0)
    assert len(made) == 3 and "320 steps" in made[1] and "350 steps" in made[2]
    journal.append([*blocks(rows[360:]), ENDED])
    while not deliverer.done:
        advanced(deliverer, clock, 1.0)
    assert len(made) == 4 and "The training goes on" not in made[3] and "600 steps" in made[3]
    journal.close()


def test_a_report_that_takes_long_is_made_less_often_and_one_that_takes_very_long_not_again(
    clock: Clock,
) -> None:
    took, made = 1.0, []

    def make() -> None:
        made.append(clock.now)
        clock.now += took

    one = live.LiveReport(make)
    for seq in range(2000):
        one.renew(seq + 1)
        clock.now += 1.0
    assert len(made) == pytest.approx(2000 / 30, abs=3)
    took, begun = 5.0, clock.now
    made.clear()
    for seq in range(2000, 4000):
        one.renew(seq + 1)
        clock.now += 1.0
    assert 15 < len(made) <= 0.05 * (clock.now - begun) / took + 1
    took = 11.0
    made.clear()
    for seq in range(4000, 9000):
        one.renew(seq + 1)
        clock.now += 1.0
    assert len(made) == 1


def test_a_report_that_cannot_be_made_is_in_nobodys_way(
    store: str,
    client: mlflow.MlflowClient,
    run_id: str,
    home: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> str:
        raise RuntimeError("no")

    monkeypatch.setattr("mlflow_tfmon.report.making.make", fails)
    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    journal.append([started(store, run_id, report=True), layout(), *blocks(values(100))])
    advanced(deliverer, clock, 10.0)
    journal.append([EpochEnded(0, 100, BEGUN, {"loss": 1.0})])
    advanced(deliverer, clock, 40.0)
    assert deliverer.status.error is None and not deliverer.status.rejected
    assert client.get_run(run_id).data.metrics["loss"] == 1.0
    journal.close()
    deliverer.close()
