"""Sinks: what they are given, what a fault in one does, and what is there after a crash."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mlflow_tfmon
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.records import EpochEnded, Flushed, Logged, Record, RunEnded
from tests import trainings
from tests.delivery.recordings import BEGUN, blocks, deep, deliver, layout, started, values, write

ROWS = 200


def recording(store: str, sinks: str) -> list[Record]:
    epoch = EpochEnded(0, ROWS, BEGUN + 3, {"loss": 0.5, "val_loss": float("nan")})
    return [
        started(store, None, sinks=sinks), layout(), *blocks(values(ROWS)), deep(np.array([1, 50, 100])),
        Logged(0, 100, BEGUN + 1, {"temperature": 0.7}), epoch, RunEnded(BEGUN + 9, "FINISHED", True),
    ]  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def check(found: list[dict[str, Any]]) -> None:
    """All of the recording is there, once."""
    rows = values(ROWS)
    steps = [one for one in found if one["kind"] == "step"]
    assert [one["step"] for one in steps] == list(range(1, ROWS + 1))
    np.testing.assert_array_equal([one["loss"] for one in steps], rows[:, 4])
    np.testing.assert_allclose([one["step_time_ms"] for one in steps[1:]], 10.0, rtol=1e-3)
    variables = [one for one in found if one["kind"] == "variable"]
    assert len(variables) == 9 and {one["step"] for one in variables} == {1, 50, 100}
    expected = deep(np.array([1, 50, 100])).values
    assert variables[1]["variable"] == "dense.bias" and variables[1]["weight_norm"] == expected[0, 2]
    assert [one["temperature"] for one in found if one["kind"] == "logged"] == [0.7]
    (epoch,) = (one for one in found if one["kind"] == "epoch")
    assert (epoch["loss"], epoch["val_loss"]) == (0.5, None)
    assert Counter(one["kind"] for one in found)["end"] == 1 and found[-1]["status"] == "FINISHED"


def test_json_lines_have_all_of_a_recording(store: str, home: Path, tmp_path: Path) -> None:
    done = deliver(write(home, *recording(store, f"jsonl:{tmp_path}/out")))
    assert done.status.complete
    found = lines(tmp_path / "out")
    check(found)
    assert {one["run_id"] for one in found} == {done.status.run_id}


@pytest.mark.parametrize("seed", range(2))
def test_after_any_crash_of_delivery_nothing_is_lost_or_doubled(
    store: str, home: Path, tmp_path: Path, seed: int
) -> None:
    every, dice = recording(store, f"jsonl:{tmp_path}/out"), random.Random(seed)
    journal = Journal.create(home)
    while every:
        count = dice.randint(1, 3)
        part, every = every[:count], every[count:]
        journal.append(part)
        deliverer = Deliverer(journal.folder)
        deliverer.advance(trainer_gone=False, hurry=True)
        if (
            dice.random() < 0.5 and deliverer._attempt is not None
        ):  # taken in, and not flushed: torn in mid-line
            for sink in (deliverer._attempt._sinks._sinks or {}).values():
                sink._file.write('{"kind": "step", "st')  # type: ignore[attr-defined]
                sink._file.flush()  # type: ignore[attr-defined]
        deliverer.close()
    journal.close()
    assert deliver(journal.folder).status.complete
    check(lines(tmp_path / "out"))


SINKS = """
from mlflow_tfmon.sinks.sink import Sink


class Broken(Sink):
    def epoch(self, record):
        raise ValueError("no epochs, please")


class Refusing(Sink):
    def __init__(self, target):
        raise OSError("no way")


class Losses(Sink):
    def steps(self, block, measures):
        with open(self.target.path, "a") as file:
            print(*block.step("loss"), sep="\\n", file=file)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with sinks."""
    about = tmp_path / "their_sinks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-sinks\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[mlflow_tfmon.sinks]\n"
        + "".join(f"{one.lower()} = their_sinks:{one}\n" for one in ("Broken", "Refusing", "Losses"))
    )
    (tmp_path / "their_sinks.py").write_text(SINKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_sinks", raising=False)


def test_a_fault_in_one_sink_keeps_no_other_from_its_work(
    store: str, home: Path, tmp_path: Path, installed: None
) -> None:
    sinks = f"broken,refusing,jsonl:{tmp_path}/out,losses:{tmp_path}/losses.txt"
    done = deliver(write(home, *recording(store, sinks)))
    assert done.status.complete and done.status.run_id is not None
    check(lines(tmp_path / "out"))
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "losses.txt"), values(ROWS)[:, 4])
    run = mlflow.MlflowClient(store).get_run(done.status.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["tfmon.delivery"] == "complete"
    assert "sink broken: ValueError: no epochs, please" in run.data.tags["tfmon.refused"]
    assert "sink refusing: OSError: no way" in run.data.tags["tfmon.refused"]
    assert len(mlflow_tfmon.load_run(done.status.run_id, store).steps) == ROWS


def test_a_sink_that_is_not_installed_where_the_rest_is_delivered_is_named(store: str, home: Path) -> None:
    done = deliver(write(home, *recording(store, "theirs:/somewhere")))
    assert done.status.complete and done.status.run_id is not None
    tags = mlflow.MlflowClient(store).get_run(done.status.run_id).data.tags
    assert "no sink 'theirs' is installed" in tags["tfmon.refused"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "josnl:x",
            "names a sink that is not installed, 'josnl'; there are jsonl, opentelemetry, prometheus",
        ),
        ("prometheus:metrics", 'must be "prometheus:9464", or "prometheus:0.0.0.0:9464" for other machines'),
        ("opentelemetry:collector:4318", "or \"opentelemetry:http://HOST:4318\", not 'collector:4318'"),
        ("opentelemetry:https://ann:s3cret@collector:4318", "must have no user name and password"),
        (":x", 'must be "NAME:PATH"'),
        (["jsonl"], 'must be a text such as "jsonl:FOLDER"'),
    ],
)
def test_wrong_settings_say_what_to_do(setting: Any, said: str) -> None:
    with pytest.raises(mlflow_tfmon.SettingError, match=r"^sinks=") as raised:
        mlflow_tfmon.autolog(sinks=setting)
    assert said in str(raised.value) and "s3cret" not in str(raised.value)


def test_files_grow_while_training_and_say_what_load_run_says(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    monkeypatch.chdir(tmp_path)  # paths are those of the trainer
    seen: list[int] = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            give_up = time.monotonic() + 60
            while epoch == 1 and time.monotonic() < give_up and not seen:
                events = list(Path("logs").rglob("train/events*"))
                if list(Path("out").glob("*.jsonl")) and events:
                    steps = [one["step"] for one in lines(Path("out")) if one["kind"] == "step"]
                    seen.extend(steps if "batch_loss" in tags(events[0].parent) else [])
                time.sleep(0.1)

    mlflow_tfmon.autolog(log_models=False, deep_every=4, sinks="jsonl:out,tensorboard:logs")
    x, y = trainings.data()
    net = trainings.model()
    net.compile(keras.optimizers.SGD(0.1), trainings.loss())
    net.fit(x, y, batch_size=trainings.BATCH, epochs=4, validation_split=0.5, verbose=0, callbacks=[Look()])
    assert seen, "nothing was written while it trained"
    run = mlflow_tfmon.load_run(trainings.last_run())
    give_up = time.monotonic() + 60
    while lines(Path("out"))[-1]["kind"] != "end" and time.monotonic() < give_up:
        time.sleep(0.1)
    steps = [one for one in lines(Path("out")) if one["kind"] == "step"]
    assert [one["step"] for one in steps] == run.steps.index.tolist()
    for name in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_array_equal([one[name] for one in steps], run.steps[name])
    (folder,) = Path("logs").iterdir()
    events = EventAccumulator(str(folder / "train"), size_guidance={"tensors": 0}).Reload()
    found = [float(one.tensor_proto.float_val[0]) for one in events.Tensors("batch_loss")]
    np.testing.assert_array_equal(found, run.steps.loss.astype("float32"))
    assert "epoch_loss" in tags(folder / "validation")
    histograms = {tag for tag in tags(folder / "train") if tag.startswith("weight/")}
    assert len(histograms) == len(net.trainable_variables)


def tags(folder: Path) -> list[str]:
    return list(EventAccumulator(str(folder)).Reload().Tags()["tensors"])


def test_a_flush_is_not_an_end(store: str, home: Path, tmp_path: Path) -> None:
    journal = Journal.create(home)
    journal.append([*recording(store, f"jsonl:{tmp_path}/out")[:-1], Flushed(BEGUN)])
    deliverer = deliver(journal.folder, trainer_gone=False)
    assert not [one for one in lines(tmp_path / "out") if one["kind"] == "end"]
    deliverer.close()
    journal.append([RunEnded(BEGUN + 9, "FINISHED", True)])
    journal.close()
    deliver(journal.folder)
    check(lines(tmp_path / "out"))


def test_a_crash_while_its_note_is_written_or_after_its_end_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The sink alone: what the delivery process does after its death at the two worst moments."""
    from mlflow_tfmon.sinks.jsonl import JsonLines
    from mlflow_tfmon.sinks.sink import Target

    notes = tmp_path / "notes"
    notes.mkdir()
    target = Target(str(tmp_path / "out"), "run", "a run", "0", notes)
    first = JsonLines(target)
    first.logged("", Logged(0, 1, BEGUN, {"a": 1.0}))
    first.flush(1)
    first.logged("", Logged(0, 2, BEGUN, {"a": 2.0}))
    first.flush(2)  # and then delivery dies, before it has noted that
    first = JsonLines(replace(target, delivered=1))
    first.logged("", Logged(0, 2, BEGUN, {"a": 2.0}))
    with pytest.MonkeyPatch.context() as patch:  # the disk is full in the middle of it

        def full(self: Path, *_: Any, **__: Any) -> int:
            self.write_bytes(b"")
            raise OSError("No space left on device")

        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            first.flush(2)
    second = JsonLines(replace(target, delivered=1))
    second.logged("", Logged(0, 2, BEGUN, {"a": 2.0}))
    second.flush(2)
    second.close("FINISHED")
    third = JsonLines(replace(target, delivered=2))  # all was taken, and the recording not yet put away
    third.close("FINISHED")
    found = lines(tmp_path / "out")
    assert [one.get("a") for one in found] == [1.0, 2.0, None]
    assert [one["kind"] for one in found] == ["logged", "logged", "end"]
