"""A fault at any place of the delivery process, of any kind, once or always: all arrives, once, and nothing is deleted
before it has."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import mlflow
import numpy as np
import pytest
from mlflow.data.numpy_dataset import from_numpy
from recordings import BEGUN, VARIABLES, blocks, deep, layout, started, values

from mlflow_tfmon.delivery import attempt
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.waiting import deliver, find_waiting
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.bins import KINDS, WIDTH
from mlflow_tfmon.stream.records import (
    Activations,
    DatasetUsed,
    EpochEnded,
    Facts,
    Flushed,
    Histograms,
    LayerActivations,
    LeftOut,
    Logged,
    Lost,
    ModelSaved,
    Overwritten,
    Paused,
    Premises,
    Problems,
    Record,
    RunEnded,
    Text,
)

ROWS, TURNS = 120, 4
PROBLEM = {"kind": "plateau", "severity": "warning", "first_step": 7, "variables": [], "evidence": "flat",
           "advice": "go on", "step": 60, "confidence": 0.9}  # fmt: skip
MODES = ("before, once", "after, once", "before, always", "after, always")


def turns(store: str) -> Iterator[list[Record]]:
    """What a training appends, in turn: every kind of record."""
    rows = values(ROWS)
    dataset = from_numpy(np.zeros((3, 2)), name="digits").to_dict()
    begun = started(store, None, run_name="one", max_points=40)
    yield [
        begun, Facts(params={"epochs": "2"}, tags={"team": "a"}), layout(None), DatasetUsed(dataset, "train"),
        Text("model_summary.txt", "two layers"), Premises({}, ""),
    ]  # fmt: skip
    for turn in range(TURNS):
        step = (turn + 1) * ROWS // TURNS
        part = rows[step - ROWS // TURNS : step]
        histogram = np.random.default_rng(step).integers(0, 9, (1, 1 + len(VARIABLES) * len(KINDS) * WIDTH))
        histogram[:, 0] = step
        yield [
            *blocks(part, 10), deep(np.array([step])), Histograms(0, BEGUN, histogram.astype(float)),
            Logged(0, step, BEGUN + step, {"temperature": 1.0 / step}),
            EpochEnded(turn, step, BEGUN + step, {"loss": 1.0 / step, "bad": float("nan")}),
            Paused(BEGUN + step, BEGUN + step + 0.1),
            Activations(turn, step, BEGUN + step, 8, (LayerActivations("a", "relu", 3, False, *[0.5] * 5),)),
            Problems(step, BEGUN + step, (PROBLEM,)),
            ModelSaved(
                f"checkpoints/{turn}", "best", turn, {"loss": 1.0 / step}, "digits" if turn == TURNS - 1 else None,
                {"tfmon.epoch": str(turn)}, ("tfmon.best_model",), (f"checkpoints/{turn - 1}",) if turn else (),
            ),
        ]  # fmt: skip
        if turn == 1:
            yield [
                Flushed(BEGUN + step),
                Lost(0, 1000, 1001),
                Overwritten(0, 1, 0),
                LeftOut({"Logged": 2}, "x"),
            ]
    yield [Facts(metrics=(("best/loss", 0.5, 3),), time=BEGUN), RunEnded(BEGUN + 99, "FINISHED", True, "")]


def train(store: str, home: Path, delivering: list[Deliverer]) -> Path:
    """Writes a recording and has it delivered meanwhile, as far as that can be done."""
    journal = Journal.create(home)
    for number, turn in enumerate(turns(store)):
        for record in turn:
            if isinstance(record, ModelSaved):
                folder = journal.folder / record.path
                folder.mkdir(parents=True)
                mlflow.models.Model().save(str(folder / "MLmodel"))
                (folder / "weights").write_text(record.path)
        journal.append(turn)
        if number:
            advance(journal.folder, delivering)
    journal.close()
    for _ in range(4):
        advance(journal.folder, delivering, trainer_gone=True)
    return journal.folder


def advance(folder: Path, delivering: list[Deliverer], trainer_gone: bool = False) -> None:
    with contextlib.suppress(*(type(make()) for make in faults.FAULTS.values())):
        if not delivering:
            delivering.append(Deliverer(folder))
        delivering[-1].advance(trainer_gone, hurry=True)


def everything(store: str) -> dict[str, Any]:
    """All that a store holds of its only run, without what differs from run to run."""
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"])
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        points = database.execute("SELECT key, step, value, timestamp, is_nan FROM metrics").fetchall()
    models = client.search_logged_models(["0"])
    by_id = {model.model_id: model.name for model in models}
    outputs = run.outputs.model_outputs if run.outputs else []
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    recorded = load_run(run.info.run_id, store)
    return {
        "status": (run.info.status, run.info.end_time, run.info.run_name),
        "params": run.data.params,
        "tags": {key: by_id.get(value, value) for key, value in run.data.tags.items()
                 if key not in ("tfmon.recording", "mlflow.user", "mlflow.source.name", "mlflow.source.type")},
        "points": sorted(points),
        "inputs": [(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs],
        "models": sorted((model.name, model.status.value, model.tags["tfmon.epoch"]) for model in models),
        "outputs": sorted((by_id[one.model_id], one.step) for one in outputs if one.model_id in by_id),
        "versions": [(one.name, one.version) for one in client.search_model_versions("")],
        "files": sorted(path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()),
        "texts": {name: (artifacts / name).read_text() for name in ("model_summary.txt", "tfmon/problems.json")},
        "steps": recorded.steps.to_csv(), "layers": recorded.layers.to_csv(), "epochs": recorded.epochs.to_csv(),
        "histograms": recorded.histograms.to_csv(),
    }  # fmt: skip


def differing(
    found: dict[str, Any], wanted: dict[str, Any], always: bool = False
) -> dict[str, tuple[Any, Any]]:
    """What is not as it would have been without a fault.

    Args:
        found: what a store holds.
        wanted: what it would have held.
        always: whether records may have been left out at first: what follows on them is thinned differently then, so
            that a series may have more of its points than it would have, but none twice.
    """
    if always and len({point[:2] for point in found["points"]}) == len(found["points"]):
        found = {**found, "points": sorted(set(found["points"]) & set(wanted["points"]))}
    return {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]}


class Bench:
    """A place where recordings are delivered with a fault: a store of its own each, and the same home."""

    def __init__(self, template: Path, folder: Path) -> None:
        self._template, self._folder = template, folder
        self._number = 0
        self.home = folder / "home"

    def store(self) -> str:
        self._number += 1
        folder = self._folder / f"{self._number}"
        folder.mkdir(parents=True)
        shutil.copyfile(self._template, folder / "mlflow.db")
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
            connection.execute("UPDATE experiments SET artifact_location = ?", ((folder / "a").as_uri(),))
            connection.commit()
        return f"sqlite:///{folder / 'mlflow.db'}"

    def reference(self) -> tuple[dict[str, Any], dict[str, int]]:
        """What arrives without a fault, and how often each function is called for it."""
        store = self.store()
        with faults.counted() as calls:
            delivering: list[Deliverer] = []
            folder = train(store, self.home, delivering)
            assert delivering[-1].done and not folder.exists(), delivering[-1].status
        return everything(store), calls

    def check(self, name: str, kind: str, mode: str, at: int, wanted: dict[str, Any]) -> int:
        """Delivers a recording with a fault, then heals it and delivers the rest; returns how often it struck."""
        store = self.store()
        when, often = mode.split(", ")
        fault = faults.Fault(faults.FAULTS[kind], at if often == "once" else None, when == "after")
        delivering: list[Deliverer] = []
        with faults.replaced(faults.functions()[name], fault):
            folder = train(store, self.home, delivering)
            fault.on = False
        for one in delivering:
            one.close()
        if not folder.exists():  # then it is all there
            assert not (found := differing(everything(store), wanted, often == "always")), (
                name,
                kind,
                mode,
                at,
                found,
            )
        for waiting in find_waiting(self.home):
            error = deliver(waiting)
            assert error is None, (name, kind, mode, at, error)
        assert find_waiting(self.home) == [] and not folder.exists(), (name, kind, mode, at)
        assert not (found := differing(everything(store), wanted, often == "always")), (
            name,
            kind,
            mode,
            at,
            found,
        )
        shutil.rmtree(Path(store.removeprefix("sqlite:///")).parent)
        return fault.raised


@pytest.fixture
def bench(store_template: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(attempt, "_TRIM_BYTES", 20_000)
    mlflow.set_registry_uri("")
    bench = Bench(store_template, tmp_path)
    bench.home = home
    return bench


def cases(calls: dict[str, int]) -> list[tuple[str, str, str]]:
    """Each function that is called, each kind of fault, once and always, before its work and after it."""
    return [
        (name, kind, mode)
        for name, count in calls.items()
        if count
        for kind in faults.FAULTS
        for mode in MODES
    ]


def test_a_fault_at_some_places(bench: Bench) -> None:
    """A sample of those that follow."""
    wanted, calls = bench.reference()
    chance = random.Random(7)
    for name, kind, mode in chance.sample(cases(calls), 3):
        assert bench.check(name, kind, mode, chance.randrange(calls[name]), wanted) > 0


# What is called only where a store refuses something, is away, or holds an earlier recording of the run, where a
# journal is damaged, and for people: other tests do.
ELSEWHERE = {
    "checkpoints.registry", "tracking.credentials", "temporary", "tracking.names._script", "tracking.names.run_name",
    "delivery.counting.Counting._tell_what_is_left", "delivery.counting.Counting._takes_tags",
    "delivery.attempt.Attempt._end_abandoned", "delivery.calls.AnyOrder.has",
    "delivery.deliverer", "delivery.earlier", "delivery.outbox.Outbox", "delivery.showing", "delivery.tally",
    "journal.journal", "stream.bins", "stream.past.Past.from_text", "tracking.names._marked", "tracking.patience",
    "tracking.store", "tracking.texts._escape", "translation.state", "translation.thinning", "uris", "tracking.models",
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.timeout(0)
def test_a_fault_at_every_place(bench: Bench) -> None:
    """TFMON_FAULTS, from 0 to 1, is the share of the cases that is tried: all of them take hours."""
    wanted, calls = bench.reference()
    never = {name for name, count in calls.items() if not count}
    assert [name for name in never if not name.startswith(tuple(ELSEWHERE))] == []
    every = cases(calls)
    chance = random.Random(int(os.environ.get("MLFLOW_TFMON_SEED", "1")))
    share = float(os.environ.get("TFMON_FAULTS", "0.01"))
    for name, kind, mode in chance.sample(every, int(share * len(every))):
        bench.check(name, kind, mode, chance.randrange(calls[name]), wanted)
