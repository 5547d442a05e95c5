"""A fault at any place of the delivery process, of any kind, once or always: all arrives, once, and nothing is deleted
before it has."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faults
import mlflow
import numpy as np
import pytest
from mlflow.data.numpy_dataset import from_numpy
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service import utils
from recordings import BEGUN, VARIABLES, blocks, deep, layout, started, values

from mlflow_tfmon.delivery import attempt, live
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.sync import deliver, find_waiting
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import RecordedRun, load_run
from mlflow_tfmon.stream.bins import KINDS, WIDTH
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.stream.records import (
    Activations,
    DatasetUsed,
    EpochEnded,
    Evidence,
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
    System,
    Text,
)
from mlflow_tfmon.tags import REACHED_TAG

Turns = Callable[[str], Iterator[list[Record]]]

ROWS, TURNS = 120, 2
PROBLEM = {"kind": "plateau", "severity": "warning", "first_step": 7, "variables": [], "evidence": "flat",
           "advice": "go on", "step": 60, "confidence": 0.9}  # fmt: skip
NOTE = "mlflow.note.content"


class Case(NamedTuple):
    """A fault: a function, its kind, whether before or after its work, once or always, and at which call."""

    name: str
    kind: str
    when: str
    often: str
    at: int


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
            Logged(0, step, BEGUN + step, {"temperature": 1.0 / step, "long" * 99: 1.0, "caf\udce9": 1.0}),
            EpochEnded(turn, step, BEGUN + step, {"loss": 1.0 / step, "bad": float("nan")}),
            Paused(BEGUN + step, BEGUN + step + 0.1),
            Activations(turn, step, BEGUN + step, 8, (LayerActivations("a", "relu", 3, False, *[0.5] * 5),)),
            Problems(step, BEGUN + step, (PROBLEM,)),
            Evidence(step, BEGUN + step, {"kind": "spike", "text": "Example 1"}, b"not an archive"),
            System(step, BEGUN + step, {"system/process_memory_mb": 100.0 + turn}),
            ModelSaved(
                f"checkpoints/{turn}", "best", turn, {"loss": 1.0 / step}, "digits" if turn == TURNS - 1 else None,
                {"tfmon.epoch": str(turn)}, ("tfmon.best_model",), (f"checkpoints/{turn - 1}",) if turn else (),
            ),
        ]  # fmt: skip
        if turn == 0:
            yield [
                Flushed(BEGUN + step),
                Lost(0, 1000, 1001),
                Overwritten(0, 1, 0),
                LeftOut({"Logged": 2}, "x"),
            ]
    yield [Facts(metrics=(("best/loss", 0.5, 3),), time=BEGUN), RunEnded(BEGUN + 99, "FINISHED", True, "")]


def earlier_turns(store: str) -> Iterator[list[Record]]:
    """A recording that a run has already when another begins in it."""
    run = mlflow.MlflowClient(store).create_run("0", run_name="one", start_time=int(BEGUN * 1e3))
    problem = {**PROBLEM, "kind": "dead_units"}
    yield [
        started(store, run.info.run_id), Facts(params={"epochs": "2"}), layout(None), *blocks(values(20)),
        Problems(20, BEGUN, (problem,)), RunEnded(BEGUN + 1, "FINISHED", False, ""),
    ]  # fmt: skip


def rough_turns(store: str) -> Iterator[list[Record]]:
    """A further recording in that run, of a training that is killed, with values that MLflow refuses or has."""
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    rows = values(ROWS, first=21)
    histogram = np.ones((1, 1 + len(VARIABLES) * len(KINDS) * WIDTH)) * 80.0
    begun = started(store, run.info.run_id, start_time=BEGUN + 50, max_points=40, report=True, tensorboard=True,
                    past=Past.from_text(run.data.tags[REACHED_TAG]).as_dict())  # fmt: skip
    yield [begun, Facts(params={"epochs": "3", "odd": "1"}), layout(None)]
    yield [
        layout(ROWS),
        *blocks(rows[:60], 10),
        Histograms(0, BEGUN, histogram),
        EpochEnded(0, 80, BEGUN + 80, {"loss": 0.5}),
    ]
    yield [
        *blocks(rows[60:], 10),
        Logged(0, 140, BEGUN + 140, {"new": 1.0}),
        Problems(140, BEGUN, (PROBLEM,)),
    ]


def train(
    store: str,
    home: Path,
    turns: Turns,
    meanwhile: faults.Meanwhile | None = None,
    heal: Callable[[str], None] | None = None,
) -> tuple[Path, list[Deliverer]]:
    """Writes a recording and has it delivered meanwhile, as far as that can be done.

    Args:
        store: that it is delivered to.
        home: of the recording.
        turns: what is recorded.
        meanwhile: what happens while it is delivered.
        heal: mends the store, after some time.

    Returns:
        Its folder, and by whom it is delivered.
    """
    journal = Journal.create(home)
    delivering: list[Deliverer] = []

    def advance(trainer_gone: bool = False) -> None:
        with (
            contextlib.suppress(*(type(make()) for make in faults.FAULTS.values())),
            meanwhile.on() if meanwhile else contextlib.nullcontext(),
        ):
            if not delivering:
                delivering.append(Deliverer(journal.folder))
            delivering[0].advance(trainer_gone, hurry=True)

    for number, turn in enumerate(turns(store)):
        for record in turn:
            if isinstance(record, ModelSaved):
                folder = journal.folder / record.path
                folder.mkdir(parents=True)
                mlflow.models.Model().save(str(folder / "MLmodel"))
                (folder / "weights").write_text(record.path)
        journal.append(turn)
        if number:
            advance()
    journal.close()
    for tries in range(10 if heal else 6):
        if (
            tries == 6 and heal
        ):  # the sixth try is the first for which a call that never succeeds holds up no other
            heal(store)
        if not delivering or not delivering[0].done:
            advance(trainer_gone=True)
    for one in delivering:
        one.close()
    life.disclaim(journal.folder)  # as the process's end does, whatever it knows of its locks
    return journal.folder, delivering


def everything(store: str, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that a store holds of its only run, without what differs from run to run.

    Args:
        store: the store.
        like: what another held: tables are not read from files that are the same there.
    """
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"])
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        points = database.execute("SELECT key, step, value, timestamp, is_nan FROM metrics").fetchall()
    models = client.search_logged_models(["0"])
    by_id = {model.model_id: model.name for model in models}
    outputs = run.outputs.model_outputs if run.outputs else []
    described = run.data.tags.get(NOTE, "")
    for model_id, name in by_id.items():
        described = described.replace(model_id, str(name))
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    parquet = {path.relative_to(artifacts).as_posix(): hashlib.sha256(path.read_bytes()).digest()
               for path in artifacts.rglob("*.parquet")}  # fmt: skip
    same = like is not None and parquet == like["parquet"]
    return {
        "parquet": parquet,
        "tables": like["tables"] if like is not None and same else tables(load_run(run.info.run_id, store)),
        "status": (run.info.status, run.info.end_time, run.info.run_name),
        "params": run.data.params,
        "tags": {key: by_id.get(value, value) for key, value in run.data.tags.items()
                 if key not in ("tfmon.recording", "mlflow.user", "mlflow.source.name", "mlflow.source.type", NOTE)},
        "description": sorted(described.splitlines()),  # of its parts any may come first
        "points": sorted(points),
        "inputs": [(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs],
        "models": sorted((model.name, model.status.value, model.tags["tfmon.epoch"]) for model in models),
        "outputs": sorted((by_id[one.model_id], one.step) for one in outputs if one.model_id in by_id),
        "versions": [(one.name, one.version) for one in client.search_model_versions("")],
        "files": sorted({_untimed(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}),
        "texts": [path.read_text() for name in ("model_summary.txt", "tfmon/problems.json")
                  if (path := artifacts / name).exists()],
    }  # fmt: skip


def tables(recorded: RecordedRun) -> list[str]:
    """What a run's files say."""
    return [
        table.to_csv() for table in (recorded.steps, recorded.layers, recorded.epochs, recorded.histograms)
    ]


def _untimed(path: Path) -> str:
    """Of event files, which have times in their names, the folder alone."""
    return (path.parent if "tfevents" in path.name else path).as_posix()


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
    return {
        name: _apart(found[name], wanted[name])
        for name in wanted
        if name != "parquet" and found[name] != wanted[name]  # rows may be in other files
    }


def _apart(found: Any, wanted: Any) -> Any:
    """Where two of a kind differ."""
    if isinstance(found, dict):
        keys = sorted(found.keys() | wanted.keys())
        return {key: (found.get(key), wanted.get(key)) for key in keys if found.get(key) != wanted.get(key)}
    if isinstance(found, list):
        return [one for one in found if one not in wanted], [one for one in wanted if one not in found]
    return found, wanted


class Bench:
    """A place where recordings are delivered with a fault: each in a store and a home of its own.

    Args:
        template: folder of a store.
        folder: for the stores that are made.
        turns: what is recorded.
        rough: whether the store takes neither a param nor telemetry at first.
    """

    def __init__(self, template: Path, folder: Path, turns: Turns, rough: bool = False) -> None:
        self._template, self._folder, self._turns, self._rough = template, folder, turns, rough
        self._heals = self._heal if rough else None

    def reference(self) -> tuple[dict[str, Any], faults.Count]:
        """What arrives without a fault, and how each function is called for it."""
        count = faults.Count()
        with self._place() as (store, home):
            with count.replaced():
                folder, (one,) = train(store, home, self._turns, count, self._heals)
            assert one.done and ("param odd" in str(one.status.error)) == self._rough, one.status
            self._deliver_the_rest(store, home)
            assert not folder.exists()
            return everything(store), count

    def check(self, case: Case, wanted: dict[str, Any]) -> int:
        """Delivers a recording with a fault, then without, all that is left; returns how often the fault struck."""
        name, kind, when, often, at = case
        fault = faults.Fault(faults.FAULTS[kind], at if often == "once" else None, when == "after")
        with self._place() as (store, home):
            with faults.replaced(faults.functions()[name], fault):
                folder, _ = train(store, home, self._turns, fault, self._heals)
            self._deliver_the_rest(store, home)  # nothing, if the recording was deleted: then it is all there
            assert not folder.exists()
            found = differing(everything(store, wanted), wanted, often == "always")
            assert not found, str(found)[:2000]
        return fault.raised

    @contextlib.contextmanager
    def _place(self) -> Iterator[tuple[str, Path]]:
        folder = self._folder
        shutil.copytree(self._template, folder)
        store = f"sqlite:///{folder / 'mlflow.db'}"
        where = (folder / "a").as_uri()
        self._execute(
            store,
            f"UPDATE experiments SET artifact_location = '{where}'",
            f"UPDATE runs SET artifact_uri = '{where}/' || run_uuid || '/artifacts'",
        )
        utils._artifact_repos_cache.clear()  # by the run's id (MLflow 3.1 to 3.17), which is that of the template
        if self._rough:
            self._trouble(store)
        try:
            yield store, folder / "home"
        finally:
            # The next store is at the same address, so that MLflow's objects for it serve again: but no connections.
            for engine in (*SqlAlchemyStore._engine_map.values(), *Registry._engine_map.values()):
                engine.dispose()
            shutil.rmtree(folder)

    def _trouble(self, store: str) -> None:
        """Has the store take neither the param "odd" nor rows of telemetry."""
        self._execute(
            store,
            "CREATE TRIGGER trouble BEFORE INSERT ON params WHEN NEW.key = 'odd' "
            "BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
        for artifacts in _artifacts(store):
            (artifacts / "telemetry").rename(artifacts / "before")
            (artifacts / "telemetry").touch()

    def _heal(self, store: str) -> None:
        """Has it take telemetry again."""
        for artifacts in _artifacts(store):
            (artifacts / "telemetry").unlink()
            (artifacts / "before").rename(artifacts / "telemetry")

    def _deliver_the_rest(self, store: str, home: Path) -> None:
        self._execute(store, "DROP TRIGGER IF EXISTS trouble")
        for waiting in find_waiting(home):
            assert (error := deliver(waiting)) is None, error
        assert find_waiting(home) == []

    def _execute(self, store: str, *statements: str) -> None:
        with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()


def _artifacts(store: str) -> Iterator[Path]:
    return Path(store.removeprefix("sqlite:///")).parent.glob("a/*/artifacts/tfmon")


@pytest.fixture
def benches(store_template: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bench]]:
    """A smooth delivery, and a rough one: into a run that has a recording, with a store that takes not all at first."""
    monkeypatch.setattr(attempt, "_TRIM_BYTES", 5_000)
    monkeypatch.setattr(attempt, "_PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(live, "PUBLISH_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_registry_uri("")
    memory = "/dev/shm"  # a disk in memory, where there is one
    with tempfile.TemporaryDirectory(
        prefix="faults-", dir=memory if os.path.isdir(memory) else None
    ) as folder:
        fresh, earlier = Path(folder, "fresh"), Path(folder, "earlier")
        fresh.mkdir()
        shutil.copyfile(store_template, fresh / "mlflow.db")
        with Bench(fresh, earlier, earlier_turns)._place() as (store, _):
            train(store, home, earlier_turns)
            used = shutil.copytree(earlier, Path(folder, "used"))
        yield [
            Bench(fresh, Path(folder, "smooth"), turns),
            Bench(used, Path(folder, "rough"), rough_turns, rough=True),
        ]


def cases(count: faults.Count, seed: str, but: Container[str] = ()) -> list[Case]:
    """Each function that is called, each kind of fault, once and always, before its work and after it.

    Of kinds that nobody who has called it can tell apart one is taken by chance, as is the call that fails once; before
    its work or after it, where that comes to the same. In an order by chance: first each function once and always, then
    what is left of before and after, then the other kinds.

    Args:
        count: of the calls.
        seed: of chance.
        but: functions that are not asked for.
    """
    found = []
    for name, calls in count.calls.items():
        chance = random.Random(f"{seed}/{name}")  # the same for a function whatever other functions there are
        for often in ("once", "always") if calls and name not in but else ():
            for turn, when in enumerate(
                chance.sample(["before", "after"], 1 if count.is_undone(name) else 2)
            ):
                at = chance.randrange(calls)
                kinds = [chance.choice(one) for one in count.kinds(name, at if often == "once" else None)]
                for number, kind in enumerate(chance.sample(kinds, len(kinds))):
                    found.append((2 * number + turn, chance.random(), Case(name, kind, when, often, at)))
    return [case for _, _, case in sorted(found)]


# An epoch that is left out at first: its metrics, which a model has too, came twice, at two times. A count that failed
# once: the run said for ever that its list of files was missing. A dataset that came after a model's metrics: they
# were refused, as another dataset's. A beginning that can't be read: the rest was asked for 60,000 times.
FAILED = [
    Case("tracking.store.RunStore.dataset", "MlflowException", "before", "always", 0),
    Case("translation.curves.Curves._not_finite", "MlflowException", "before", "always", 0),
    Case("delivery.tally.missing", "RecursionError", "before", "once", 3),
    Case("tracking.names.Names.__init__", "UnicodeEncodeError", "before", "always", 1),
]

# A moment that was saved while a tag waited for its call: the tag was taken for told.
SAVED_TOO_EARLY = Case("delivery.saved_state.save_moment", "RecursionError", "after", "always", 0)

# Problems of the recording before, which counted as unreadable.
FAILED_ROUGH = [Case("delivery.existing._known", "UnicodeEncodeError", "after", "once", 0)]


def progress_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has progress be due only when all that there is was translated, as it may be on a busy machine."""
    translate = attempt.Attempt._translate

    def translated(self: attempt.Attempt, batch: Any) -> None:
        with monkeypatch.context() as within:
            within.setattr(attempt.Attempt, "_show_progress", lambda *_: None)
            translate(self, batch)

    monkeypatch.setattr(attempt.Attempt, "_translate", translated)


@pytest.mark.slow
def test_a_fault_at_some_places(benches: list[Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was found, and a sample of those that follow; of each function it is known whether it can be reached."""
    reached: set[str] = set()
    reads: list[bool] = []
    read = attempt.Attempt._read
    monkeypatch.setattr(
        attempt.Attempt, "_read", lambda self, *how: reads.append(read(self, *how)) or reads[-1]
    )
    for bench, found, number in zip(benches, (FAILED, FAILED_ROUGH), (2, 1), strict=True):
        wanted, count = bench.reference()
        reached |= {name for name, calls in count.calls.items() if calls}
        for case in [*found, *cases(count, "7")[:number]]:
            reads.clear()
            bench.check(case, wanted)
            assert len(reads) < 200, "what can't be read now is read over and over"
        if bench is benches[0]:
            with monkeypatch.context() as late:
                progress_comes_late(late)
                bench.check(SAVED_TOO_EARLY, wanted)
    assert set(count.calls) - reached - ELSEWHERE == set(), (
        "called by neither delivery: extend `turns`, or ELSEWHERE"
    )
    assert ELSEWHERE - set(count.calls) == set(), "no longer there"


# What neither of the two deliveries calls.
ELSEWHERE = {
    # Before any recording is looked at: a process that fails then is started again, and has done nothing.
    "tracking.patience.be_quick", "tracking.patience._distrust_empty_answers", "tracking.store._bound",
    "tracking.store.load_store", "stream.bins._edges",
    # The trainer's and the commands' side of modules that delivery uses.
    *(f"journal.journal.{name}" for name in ("_row", "coded", "plain", "Journal.restore", "JournalReader.ends")),
    *(f"journal.journal.Journal.{name}" for name in ("__init__", "create", "_create", "append", "size", "close")),
    *(f"journal.life.{name}" for name in ("hold", "release", "is_written", "is_delivered_here", "is_claimed")),
    *(f"journal.life.{name}" for name in ("claim_run", "disclaim_run", "_of_run")),
    *(f"tracking.credentials.{name}" for name in ("addresses", "same", "_configured", "_plain")),
    "locks.is_held", "stream.bins.due", "stream.continuation.Past.from_text", "tracking.names.run_name",
    "tracking.names._script", "tracking.names.predictions_file", "uris.absolute", "uris.address",
    "uris.without_secrets_in", "delivery.tally.read_manifest", "tracking.findings.best",
    # What the process's loop asks of a `Deliverer`: plain values; what a trainer could not write is told by it, too.
    *(f"delivery.deliverer.Deliverer.{name}" for name in ("claimed", "progressed", "where", "rest")),
    # Of a fault itself, which comes before it; of a store with a user's name, or that is a server.
    "delivery.deliverer.Deliverer._give_up", "uris._is_user", "tracking.credentials._sent_to",
    # Of a delivery that takes over from another, and counts files that it has not sent; that says no more what lacked.
    "delivery.tally._rows", "tracking.store.RunStore.untag", "delivery.status.Ledger.take_back",
    # Of a training that goes on for half a minute, or whose trainer stalls; of one whose end somebody is told of.
    "delivery.live.LiveReport.renew", "delivery.outbox.Outbox.show_report", "delivery.outbox.Outbox.stalled",
    *(f"tracking.links.{name}" for name in ("where", "charts", "_server")),
    # Of a recording that is damaged, or whose home is a folder of all.
    "trusted_paths.own_folder",
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.timeout(0)
def test_a_fault_at_every_place(benches: list[Bench], capsys: pytest.CaptureFixture[str]) -> None:
    """TFMON_FAULTS, from 0 to 1, is the share of the cases that is tried, or "0.3-1" all from one share to another.

    All of them take an hour and a half of one processor.
    """
    begins, _, ends = os.environ.get("TFMON_FAULTS", "0.01").rpartition("-")  # the first may be ""
    seed = os.environ.get("MLFLOW_TFMON_SEED", "1")
    called: set[str] = set()
    every: list[tuple[float, Case, Bench, dict[str, Any]]] = []
    for bench in benches:
        wanted, count = bench.reference()
        # The second delivery does much that the first has done: only what that has not is tried in it.
        found = cases(count, seed, but=called)
        called |= {case.name for case in found}
        every += [(number / len(found), case, bench, wanted) for number, case in enumerate(found)]
    first, last = (math.ceil(float(share or 0) * len(every)) for share in (begins, ends))
    some = sorted(every, key=lambda one: one[0])[first:last]
    gc.collect()
    gc.freeze()  # MLflow's modules are large, and are looked through at every turn
    places = {case.name for _, case, *_ in some}
    told(capsys, f"{len(some):,} of {len(every):,} cases, in {len(places)} of {len(called)} functions")
    failed: list[str] = []
    for number, (_, case, bench, wanted) in enumerate(some, 1):
        try:
            bench.check(case, wanted)
        except BaseException as error:
            failed.append(f"{case}: {error!r}")
            told(capsys, failed[-1])
        if not number % 50:
            told(capsys, f"{number:,} of {len(some):,} cases, {len(failed)} failed")
    gc.unfreeze()
    assert failed == []


def told(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Says at once how far it is."""
    with capsys.disabled():
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
