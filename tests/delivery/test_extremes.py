"""Tests with very long, very wide and very odd recordings: bounded memory and disk, every series distinct."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from recordings import BEGUN, blocks, deep, deliver, layout, started, values, write

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.tally import Sent, load_manifest, missing
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.journal.spool import Spool
from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.continuation import Past, PastStream, mark
from mlflow_tfmon.stream.recording import Recording
from mlflow_tfmon.stream.records import (
    DeepSteps,
    EpochEnded,
    Facts,
    Logged,
    Record,
    RunEnded,
    Steps,
    Variable,
)
from mlflow_tfmon.translation.translation import Translation

ENDED = RunEnded(BEGUN + 99, "FINISHED", True)
NAMES = [
    "acc@5", "acc#5", "acc_5", "准确率", "точность", "دقة", "précision", "😀", "🙃", "a//b", "a/_/b", "../up", "..",
    ".", "<script>", "x" * 400, "x" * 399 + "y", "per cent %", "tab\tname", "line\nname", "'quoted\"", "",
]  # fmt: skip


def test_every_name_is_a_series_of_its_own(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    figures = {name: float(number) for number, name in enumerate(NAMES, 1)}
    params = {f"p{name}": str(number) for number, name in enumerate(NAMES, 1)}
    folder = write(
        home, started(store, run_id), layout(), *blocks(values(10)),
        EpochEnded(0, 10, BEGUN, figures), Logged(0, 10, BEGUN, figures), Facts(params=params, time=BEGUN), ENDED,
    )  # fmt: skip
    done = deliver(folder)
    assert done.done
    metrics = client.get_run(run_id).data.metrics
    found = [value for key, value in metrics.items() if not key.startswith(("batch/", "grad_norm/"))]
    assert sorted(found) == sorted(figures.values())  # none took another's place
    assert (
        metrics["acc@5".replace("@", "_")] == 1.0 and metrics["准确率"] == 4.0 and metrics["точность"] == 5.0
    )
    logged = [metrics[key] for key in metrics if key.startswith("batch/")]
    assert set(figures.values()) <= set(logged)
    recorded = load_run(run_id, store)
    assert recorded.epochs.loc[0, NAMES].tolist() == list(
        figures.values()
    )  # the files have the names as they are


def test_ten_thousand_variables(store: str, client: mlflow.MlflowClient, run_id: str, home: Path) -> None:
    variables = tuple(Variable(f"层{n}.kernel", (n + 1, 2), True) for n in range(10_000))
    random = np.random.default_rng(0)
    rows = np.concatenate([values(20)[:, :7], random.uniform(0.1, 1, (20, len(variables)))], axis=1)
    weights = random.uniform(0.1, 1, (2, 1 + 2 * len(variables)))
    weights[:, 0] = (1, 20)
    data = Steps(0, BEGUN, rows), DeepSteps(0, BEGUN, weights)
    folder = write(home, started(store, run_id), layout(variables=variables), *data, ENDED)
    assert deliver(folder, within=200).done
    keys = client.get_run(run_id).data.metrics
    assert sum(key.startswith("grad_norm/") for key in keys) == 50  # the largest
    assert "grad_norm/层9999.kernel" in keys
    layers = load_run(run_id, store).layers
    assert layers.variable.nunique() == 10_000
    last = layers[layers.step == 20].set_index("variable").grad_norm
    np.testing.assert_array_equal(last[[one.name for one in variables]], rows[-1, 7:])


def test_a_clock_that_goes_backwards(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    rows = values(100)
    rows[50:, 1] -= 3600.0  # the machine's clock was set
    folder = write(home, started(store, run_id), layout(100), *blocks(rows, 10), ENDED)
    assert deliver(folder).done
    steps = load_run(run_id, store).steps
    assert steps.index.tolist() == list(range(1, 101))
    np.testing.assert_array_equal(steps.loss, rows[:, 4])
    times = steps.step_time_ms.dropna()
    assert (times > 0).all() and 51 not in times.index  # absent, not -3,600,000
    history = client.get_metric_history(run_id, "batch/loss")
    assert {(point.step, point.value) for point in history} == set(enumerate(rows[:, 4].tolist(), 1))
    assert client.get_run(run_id).data.tags["tfmon.delivery"] == "complete"


def test_ten_thousand_fits_in_one_run() -> None:
    """Each tells of all seams before it: those that are kept are bounded, as a tag's length is."""
    told: list[Record] = []
    past = Past((PastStream(0, "", "net", "net", 1, mark(["kernel"])),))
    recording = Recording(told.extend, past)
    recording.bind(frozenset({"kernel"}), mark(["kernel"]))
    for _ in range(10_000):
        recording._streams[0].steps += 10
        recording.append(*recording.seam(frozenset({"kernel"})))
    tags = [one.tags["tfmon.seams"] for one in told if isinstance(one, Facts)]
    assert tags[-1].startswith("12, 22, 32, ") and len(tags) > 500
    assert len(tags[-1]) <= 4000 and sum(map(len, tags)) < 3e6
    assert recording.past().seams == tuple(tags[-1].split(", "))


def held(folder: Path, count: int) -> list[int]:
    """What trainer and delivery hold after so many steps, in bytes: what judges, what translates, what was sent."""
    replay, translation, sent = Replay(), Translation(started(""), folder), Sent()
    for first in range(1, count, 2000):
        rows = values(2000, seed=first, seconds=0.001, first=first)
        steps = np.arange(first + 99, first + 2000, 100)
        own = Logged(0, first, BEGUN, {"temperature": 1 / first})
        opened = [layout()] if first == 1 else []
        for record in (*opened, Steps(0, BEGUN, rows), deep(steps), own):
            sent.tally.points(translation.take(record))
            replay.take(record)
        sent.tally.points(translation.settle())
        translation.telemetry.finished()  # which were uploaded
    translation.telemetry.rotate()
    translation.telemetry.finished()
    return [len(pickle.dumps(one)) for one in (replay, translation, sent)]


def test_what_is_held_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    few, many = sum(held(tmp_path, 20_000)), sum(held(tmp_path, 1_000_000))
    assert many < 1.1 * few < 1e6  # a curve still gets a point now and then


@pytest.mark.thorough
@pytest.mark.timeout(3000)
def test_ten_million_steps_take_no_more_memory_and_disk_than_a_few(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    count, size = 10_000_000, 20_000
    journal = Journal.create(home)
    spool, one, process = Spool(journal, 4e9), Deliverer(journal.folder), psutil.Process()
    spool.append([started(store, run_id), layout()])
    memory, disk = [], 0
    for first in range(1, count, size):
        rows = values(size, seed=first, seconds=0.001, first=first)
        spool.append([Steps(0, BEGUN, rows)])
        one.advance(hurry=True)
        memory.append(process.memory_info().rss)
        disk = max(disk, sum(file.stat().st_size for file in journal.folder.rglob("*") if file.is_file()))
    spool.append([ENDED])
    assert spool.close() == [] and not spool.left_out
    while not one.done:
        one.advance(trainer_gone=True, hurry=True)
    assert disk < 250e6  # of 800 MB that were written
    early, late = max(memory[50:150]), max(memory)
    assert late - early < 150e6
    manifest = load_manifest(client, run_id)
    assert manifest is not None
    assert sum(rows for name, rows in json.loads(manifest)["files"].items() if "/steps-" in name) == count
    assert missing(client, run_id, manifest) == []
    assert len(client.get_metric_history(run_id, "batch/loss")) < 600
