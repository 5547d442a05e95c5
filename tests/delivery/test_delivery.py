"""Tests of delivery to real SQLite stores, in this process."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sqlite3
import zlib
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.data.numpy_dataset import from_numpy
from mlflow.tracking.context.registry import resolve_tags
from recordings import BEGUN, COLUMNS, VARIABLES, blocks, deep, deliver, layout, started, values, write

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.main import Delivery
from mlflow_tfmon.delivery.status import read_status
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import Problem, load_run
from mlflow_tfmon.stream.coding import encode
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    EpochEnded,
    Facts,
    Flushed,
    Lost,
    ModelSaved,
    Problems,
    RunEnded,
    Text,
)
from mlflow_tfmon.tracking import chart_view, runs
from mlflow_tfmon.tracking.findings import with_part
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import AwayError, RunStore

ENDED = RunEnded(BEGUN + 100.0, "FINISHED", True)


def history(client: mlflow.MlflowClient, run_id: str, key: str) -> list[tuple[int, float, int]]:
    return sorted((one.step, one.value, one.timestamp) for one in client.get_metric_history(run_id, key))


def all_points(store: str) -> list[tuple]:
    """Every row of the store's table of points: what is doubled shows here."""
    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        return sorted(connection.execute("SELECT key, step, value, timestamp FROM metrics"))


def test_a_whole_recording_arrives(store: str, client: mlflow.MlflowClient, run_id: str, home: Path) -> None:
    rows = values(5000)
    wide = deep(np.arange(50, 5001, 50))
    dataset = from_numpy(np.zeros((3, 2)), name="digits").to_dict()
    folder = write(
        home, started(store, run_id), Facts(params={"epochs": "2"}, tags={"team": "a"}), layout(5000),
        DatasetUsed(dataset, "train"), *blocks(rows), wide, Text("model_summary.txt", "two layers"),
        EpochEnded(0, 2500, BEGUN + 25, {"loss": 0.5}), EpochEnded(1, 5000, BEGUN + 50, {"loss": 0.25}),
        Lost(0, 5001, 5003), Flushed(BEGUN + 99), ENDED,
    )  # fmt: skip
    deliverer = deliver(folder)
    assert deliverer.done
    assert deliverer.status.rejected == {}
    assert not folder.exists()
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", int((BEGUN + 100) * 1e3))
    assert run.data.params == {"epochs": "2"}
    wanted = {"team": "a", "who": "test", "tfmon.delivery": "complete", "tfmon.lost_steps": "3"}
    assert wanted.items() <= run.data.tags.items()
    assert [(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs] == [
        ("digits", "train")
    ]
    assert history(client, run_id, "loss") == [
        (0, 0.5, int((BEGUN + 25) * 1e3)),
        (1, 0.25, int((BEGUN + 50) * 1e3)),
    ]
    for key, column in (("batch/loss", 4), ("grad_norm/head.kernel", 9)):
        points = history(client, run_id, key)
        assert len(points) <= 320
        for step, value, timestamp in points:
            assert value == rows[step - 1, column]
            assert timestamp == int(rows[step - 1, 1] * 1e3)
        found = {step for step, _, _ in points}
        assert {1, 5000, rows[:, column].argmax() + 1, rows[:, column].argmin() + 1} <= found
    assert run.data.metrics["batch/loss"] == rows[-1, 4]
    recorded = load_run(run_id, store)
    assert recorded.complete
    assert recorded.steps.index.tolist() == list(range(1, 5001))
    np.testing.assert_array_equal(recorded.steps["loss"], rows[:, 4])
    norms = recorded.layers[recorded.layers["variable"] == "dense.kernel"]
    np.testing.assert_array_equal(norms["grad_norm"], rows[:, len(COLUMNS)])
    np.testing.assert_array_equal(norms["weight_norm"].dropna(), wide.values[:, 1])
    assert recorded.epochs["loss"].tolist() == [0.5, 0.25]
    assert set(recorded.layers["variable"]) == {one.name for one in VARIABLES}


@pytest.mark.parametrize("total", [100_000, None])
def test_a_spike_of_one_step_in_100_000_is_seen_in_mlflow(
    total: int | None, store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    rows = values(100_000, seconds=0.001)
    rows[43_210, 4] = 99.0
    deliver(write(home, started(store, run_id), layout(total), *blocks(rows, 1000), ENDED))
    points = history(client, run_id, "batch/loss")
    assert len(points) <= 320
    assert (43_211, 99.0) in [point[:2] for point in points]


def test_delivery_that_is_interrupted_anywhere_delivers_everything_once(
    store: str, client: mlflow.MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = values(2000)
    body = [
        layout(None), *blocks(rows[:800]), Facts(metrics=(("best/loss", 0.5, 3),), time=BEGUN), Flushed(BEGUN + 1),
        *blocks(rows[800:1500]), Text("a.txt", "text"), *blocks(rows[1500:]), ENDED,
    ]  # fmt: skip
    runs = [str(client.create_run("0").info.run_id) for _ in range(2)]
    deliver(write(home, started(store, runs[0]), *body))
    real = RunStore.points
    calls = {"left": 0}

    def failing(self: RunStore, points: list[Point], model_id: str | None = None) -> dict[str, str]:
        done = real(self, points, model_id)  # it arrives, but the answer is lost
        calls["left"] -= 1
        if calls["left"] < 0:
            raise AwayError("the line was cut")
        return done

    monkeypatch.setattr(RunStore, "points", failing)
    monkeypatch.setattr("mlflow_tfmon.delivery.attempt._BATCH", 7)
    folder = write(home, started(store, runs[1]), *body)
    for attempt in range(60):  # each time a new process, as far as delivery can tell
        calls["left"] = attempt % 4
        deliverer = Deliverer(folder)
        deliverer.advance()
        deliverer.close()
        if deliverer.done:
            break
        assert read_status(folder).error in ("the line was cut", None)  # None: the slice of time was over
    assert deliverer.done
    keys = client.get_run(runs[0]).data.metrics.keys()
    assert keys == client.get_run(runs[1]).data.metrics.keys()
    for key in keys:
        assert history(client, runs[0], key) == history(client, runs[1], key)
    one, two = load_run(runs[0], store), load_run(runs[1], store)
    assert two.steps.index.tolist() == list(range(1, 2001))
    assert one.steps.equals(two.steps)


def test_a_trainer_that_is_gone_leaves_a_failed_run(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    client.set_tag(run_id, "mlflow.note.content", "my notes")
    rows = values(777)
    deliver(write(home, started(store, run_id), layout(), *blocks(rows)))
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["tfmon.delivery"] == "complete"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("my notes\n\n")
    assert "step 777" in note
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 778))


@pytest.mark.parametrize(
    ("active", "ended", "status"),
    [
        (False, None, "RUNNING"),
        (True, None, "FAILED"),
        (True, "KILLED", "KILLED"),
        (True, "FINISHED", "FINISHED"),
    ],
)
def test_the_users_own_run_is_ended_where_the_dead_trainer_would_have_ended_it(
    active: bool,
    ended: str | None,
    status: str,
    store: str,
    client: mlflow.MlflowClient,
    run_id: str,
    home: Path,
) -> None:
    if ended:  # by somebody who saw it die
        client.set_terminated(run_id, ended)
    whose = {"owned": False, "active": active}
    deliver(write(home, started(store, run_id, **whose), layout(), *blocks(values(10))))
    run = client.get_run(run_id)
    assert run.info.status == status
    assert ("killed" in run.data.tags["mlflow.note.content"]) == (status in ("FAILED", "KILLED"))


def test_a_reason_goes_below_the_description(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    deliver(write(home, started(store, run_id), RunEnded(BEGUN, "FAILED", True, r"ValueError: no \<script>")))
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert r"ValueError: no \\\<script\>" in run.data.tags["mlflow.note.content"].splitlines()


def test_a_run_that_could_not_be_made_is_made_once(
    store: str, client: mlflow.MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(home, started(store, None), layout(), *blocks(values(100)), ENDED)
    real = mlflow.MlflowClient.create_run

    def unheard(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[arg-type]
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", unheard)
    first = Deliverer(folder)
    first.advance()
    assert first.status.error == "reset by peer"
    first.close()
    monkeypatch.setattr(mlflow.MlflowClient, "create_run", real)
    deliverer = deliver(folder)
    (run,) = client.search_runs(["0"])
    assert run.info.run_id == deliverer.status.run_id
    assert (run.info.run_name, run.info.status, run.info.start_time) == (
        "a run",
        "FINISHED",
        int(BEGUN * 1e3),
    )
    assert run.data.tags["who"] == "test"


def test_a_recording_that_goes_on_is_streaming_until_the_next_flush(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    def state() -> str:
        return str(client.get_run(run_id).data.tags["tfmon.delivery"])

    journal = Journal.create(home)
    deliverer = Deliverer(journal.folder, store)
    rows = values(300)
    journal.append([started(store, run_id), layout(), *blocks(rows[:100])])
    deliverer.advance()
    assert state() == "streaming"
    assert history(client, run_id, "batch/loss")
    flushed = journal.append([Flushed(BEGUN)])
    deliverer.advance()
    assert (state(), deliverer.status.flushed) == ("complete", flushed)
    assert client.get_run(run_id).data.metrics["batch/loss"] == rows[99, 4]
    assert len(load_run(run_id, store).steps) == 100
    last = journal.append(blocks(rows[100:]))
    deliverer.advance()
    assert (state(), deliverer.status.delivered, deliverer.status.waiting) == ("streaming", last, 0)
    journal.append([ENDED])
    deliverer.advance()
    assert state() == "complete"
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 301))
    journal.close()


def test_params_keep_their_first_value(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    client.log_param(run_id, "epochs", "3")
    facts = Facts(params={"epochs": "5", "opt@name": "sgd", "long": "x" * 7000})
    deliverer = deliver(write(home, started(store, run_id), facts, Facts(params={"opt@name": "adam"}), ENDED))
    params = client.get_run(run_id).data.params
    assert (params["epochs"], params["opt_name"], len(params["long"])) == ("3", "sgd", 6000)
    assert deliverer.status.rejected == {"param long": "is cut at 6000 characters"}


def test_one_refused_metric_costs_no_other(store: str, client: mlflow.MlflowClient, run_id: str) -> None:
    points = [Point(f"m{n}", float(n), n, 0) for n in range(1500)]
    points[700] = Point("bad@key", 1.0, 1, 0)
    points[1400] = Point("../bad", 1.0, 1, 0)
    rejected = RunStore(client, run_id).points(points)
    assert set(rejected) == {"bad@key", "../bad"}
    assert len(client.get_run(run_id).data.metrics) == 1498


def test_a_key_that_mlflow_refuses_is_cleaned(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    ends = EpochEnded(0, 1, BEGUN, {"acc@5": 0.5, "acc#5": 0.25, "loss": 1.0, "": 3.0})
    deliverer = deliver(write(home, started(store, run_id), ends, ENDED))
    metrics = client.get_run(run_id).data.metrics
    assert (metrics["acc_5"], metrics["loss"], metrics["_"]) == (0.5, 1.0, 3.0)
    assert [value for key, value in metrics.items() if key.startswith("acc_5-")] == [0.25]
    assert deliverer.status.rejected == {}


def test_refused_and_broken_records_hold_nothing_up(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    folder = write(
        home, started(store, run_id), *blocks(values(3), stream=7), Text("../out", "no"),
        DatasetUsed({"name": "x"}, "train"), Facts(tags={"": "no name", "ok": "yes"}),
        EpochEnded(0, 1, BEGUN, {"loss": 1.0}), ENDED,
    )  # fmt: skip
    deliverer = deliver(folder)
    assert deliverer.done
    assert "../out" in deliverer.status.rejected
    run = client.get_run(run_id)
    assert (run.data.metrics["loss"], run.data.tags["ok"], run.info.status) == (1.0, "yes", "FINISHED")
    assert "../out: artifact path" in run.data.tags["tfmon.refused"]  # and the user is told
    # What nobody can make anything of is kept: a later version may.
    assert "record 2: stream 7 was never opened" in run.data.tags["tfmon.refused"]
    assert run.data.tags["tfmon.delivery"] == "incomplete"
    assert folder.exists() and "record 2" in str(deliverer.status.error)


def test_a_model_is_linked_to_its_own_metric_where_two_names_become_one(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    folder = write(home, started(store, run_id))
    figures = {"acc@5": 0.5, "acc#5": 0.25}
    mlflow.models.Model().save(str(folder / "MLmodel"))  # the folder itself stands for a model's
    shutil.copytree(folder, folder / "models" / "0", ignore=shutil.ignore_patterns("journal*", "trainer"))
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        for record in (EpochEnded(0, 1, BEGUN, figures), ModelSaved("models/0", "best", 0, figures), ENDED):
            kind, body, _ = encode(record)
            connection.execute("INSERT INTO records (kind, body) VALUES (?, ?)", (kind, json.dumps(body)))
    done = deliver(folder)
    assert done.done and done.status.rejected == {}
    points = [(key, step, value) for key, step, value, _ in all_points(store) if key.startswith("acc")]
    assert [value for key, _, value in points if key == "acc_5"] == [0.5]
    assert sorted(value for _, _, value in points) == [0.25, 0.5]
    (model,) = client.search_logged_models(["0"])
    assert {one.key: one.value for one in model.metrics} == {key: value for key, _, value in points}


def test_an_artifact_store_that_is_away_does_not_hold_up_the_curves(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.write_text("a file where the folder of artifacts should be")
    rows = values(400)
    journal = Journal.create(home)
    journal.append([started(store, run_id), layout(), *blocks(rows[:200]), Flushed(BEGUN)])
    deliverer = Deliverer(journal.folder)
    deliverer.advance()
    last = journal.append([*blocks(rows[200:]), EpochEnded(0, 400, BEGUN, {"loss": 0.5})])
    deliverer.advance(hurry=True)
    run = client.get_run(run_id)
    assert run.data.metrics["loss"] == 0.5
    assert run.data.tags["tfmon.delivery"] == "streaming"
    assert deliverer.status.error and deliverer.status.flushed == 0
    deliverer.close()
    artifacts.unlink()
    deliverer = Deliverer(journal.folder)
    deliverer.advance()
    assert (deliverer.status.error, deliverer.status.delivered) == (None, last)
    steps = load_run(run_id, store).steps.index.tolist()
    assert steps in (list(range(1, 201)), list(range(1, 401)))  # what comes after may be there already
    journal.append([ENDED])
    deliverer.advance()
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 401))
    points = [point for point in all_points(store) if point[0] == "loss"]
    assert len(points) == 1
    journal.close()


def test_a_deleted_run_keeps_its_records_until_it_is_restored(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    client.delete_run(run_id)
    folder = write(home, started(store, run_id), layout(), *blocks(values(100)), ENDED)
    deliverer = Deliverer(folder)
    deliverer.advance(hurry=True)
    assert "deleted" in str(deliverer.status.error)
    client.restore_run(run_id)
    deliverer.advance(hurry=True)
    assert deliverer.done
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 101))


def test_only_one_delivery_takes_a_recording(store: str, run_id: str, home: Path) -> None:
    folder = write(home, started(store, run_id), layout(), *blocks(values(100)))
    first, second = Deliverer(folder), Deliverer(folder)
    first.advance()
    second.advance(trainer_gone=True)
    assert not second.done
    assert second.status.delivered == 0
    first.advance(trainer_gone=True)
    second.advance(trainer_gone=True)
    assert first.done and second.done


@pytest.mark.parametrize("silent", [False, True])
def test_a_store_that_is_away_keeps_everything_and_says_so_in_one_line(
    silent: bool, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "http://ann:s3cret@127.0.0.1:9/"  # the discard port: nothing listens
    folder = write(home, started(uri, None), layout(), *blocks(values(100)))
    delivery = Delivery(give_up=0.1)
    delivery.listen(
        [json.dumps({"watch": str(folder), "tracking_uri": uri, "silent": silent}), "rubbish", "[]"]
    )
    assert delivery.run() == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mlflow_tfmon:")]
    assert len(said) == (not silent)  # or not at all
    for line in said:
        assert "4 records" in line and str(folder) in line and "mlflow-tfmon sync" in line
    status = read_status(folder)
    assert status.waiting == 4 and status.error
    assert "s3cret" not in "".join(said) + status.error + (folder / "status.json").read_text()


def test_what_was_left_is_delivered_when_the_store_is_back(
    store: str, client: mlflow.MlflowClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = write(home, started("http://127.0.0.1:9/", None), layout(), *blocks(values(100)))
    first = Deliverer(folder)
    first.advance(trainer_gone=True)
    first.close()
    assert first.status.error
    delivery = Delivery(give_up=5.0)
    no_command = "[" * 100_000  # it harms no other
    delivery.listen([no_command, json.dumps({"watch": str(folder), "tracking_uri": store})])
    assert delivery.run() == 0
    (run,) = client.search_runs(["0"])
    assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))
    assert not folder.exists()


def test_an_empty_or_damaged_recording_harms_no_other(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    empty = write(home)
    broken = home / "recordings" / "broken"
    broken.mkdir()
    (broken / "journal.sqlite").write_bytes(b"rubbish" * 1000)
    good = write(home, started(store, run_id), layout(), *blocks(values(10)), ENDED)
    delivery = Delivery(give_up=0.1)
    delivery.listen(json.dumps({"watch": str(folder)}) for folder in (empty, broken, good, home / "gone"))
    assert delivery.run() == 0
    assert not empty.exists() and not good.exists() and not broken.exists()
    assert (home / "damaged" / "broken" / "journal.sqlite").exists()
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_same_points_sent_again_are_not_doubled(
    store: str, client: mlflow.MlflowClient, run_id: str
) -> None:
    points = [Point("a", n / 3, n, 1_700_000_000_000 + n) for n in range(2500)]
    run = RunStore(client, run_id)
    assert run.points(points) == run.points(points[::-1]) == {}
    assert len(all_points(store)) == 2500


def test_load_run_says_what_is_wrong(store: str, client: mlflow.MlflowClient, run_id: str) -> None:
    with pytest.raises(ValueError, match=r"not monitored.*autolog"):
        load_run(run_id, store)
    client.set_tag(run_id, "tfmon.delivery", "streaming")
    with pytest.raises(ValueError, match="sync"):
        load_run(run_id, store)


def test_problems_are_read_where_there_are_some(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    problem = {"kind": "nan_or_inf", "severity": "error", "first_step": 7, "variables": ["a.kernel"],
               "evidence": "loss is NaN", "advice": "lower the learning rate", "later": 1}  # fmt: skip
    deliver(write(home, started(store, run_id), layout(), *blocks(values(10)), ENDED))
    assert load_run(run_id, store).problems == []
    client.log_text(run_id, json.dumps([problem]), "tfmon/problems.json")
    (found,) = load_run(run_id, store).problems
    assert found == Problem("nan_or_inf", "error", 7, ("a.kernel",), "loss is NaN", "lower the learning rate")


@pytest.mark.parametrize("there", [True, False])
def test_a_run_that_is_made_later_goes_to_the_experiment_of_that_name(
    store: str, client: mlflow.MlflowClient, home: Path, there: bool
) -> None:
    """MLFLOW_EXPERIMENT_NAME, when the server was away at the start."""
    made = client.create_experiment("named") if there else None
    begun = started(store, experiment_id="", experiment_name="named")
    assert deliver(write(home, begun, layout(), *blocks(values(3)), ENDED)).done
    experiment = client.get_experiment_by_name("named")
    assert experiment is not None and made in (None, experiment.experiment_id)
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_the_description_says_what_came_of_a_run_and_links_to_it(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    client.set_tag(run_id, "mlflow.note.content", "my *notes*")
    best = Facts(
        metrics=(("best/val_loss", 0.25, 3), ("best/epoch", 3.0, 3)),
        tags={"tfmon.best_model": "m-abc"},
        time=BEGUN,
    )
    epochs = [EpochEnded(at, 10 * at + 10, BEGUN + at, {"val_loss": 0.3}) for at in range(5)]
    records = [started(store, run_id, report=True), layout(), *blocks(values(50)), *epochs, best]
    deliver(write(home, *records, Problems(50, BEGUN, ()), RunEnded(BEGUN + 9, "FINISHED", True)))
    note = client.get_run(run_id).data.tags["mlflow.note.content"]
    mine, verdict, about = (part.split("<!-- /")[0] for part in note.split("\n\n<!-- "))
    assert mine == "my *notes*" and "No problem was found" in verdict
    first, code = about.partition("-->\n")[2].strip().split("\n\n")
    assert first.startswith("Best val\\_loss: **0.25** at epoch 4 of 5 · [The report](")
    assert code == '- `mlflow.tensorflow.load_model("models:/m-abc")`'
    assert (
        f"(#/experiments/0/runs/{run_id}/artifacts/tfmon/report.html?workflowType=machine_learning)" in about
    )
    (link,) = re.findall(r"\(#/experiments/0/runs\?(.*?)\)", about)
    key = dict(part.split("=") for part in link.split("&"))["viewStateShareKey"]
    assert f"mlflow.sharedViewState.{key}" in client.get_experiment("0").tags


def test_parts_of_the_description_stay_apart() -> None:
    one = with_part("mine", "found", "problems")
    both = with_part(one, "best", "run")
    assert with_part(with_part("mine", "best", "run"), "found") == both  # in whatever order they come
    assert with_part(both, "", "run") == one and with_part(one, "") == "mine"
    assert with_part(both + "\n\nlater", "other").startswith(
        "mine\n\nlater\n\n<!-- tfmon.problems -->\nother\n"
    )
    assert with_part("", "best", "run").startswith("<!-- tfmon.run -->")
    # Where to look stands before the other problems: of a long text MLflow's page shows the first lines alone.
    three = with_part(with_part(both, "and these", "others"), "found")
    assert three == with_part(with_part(one, "and these", "others"), "best", "run")
    assert three.index("found") < three.index("best") < three.index("and these")


def test_the_chart_view_of_an_experiment_is_made_once(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    run = RunStore(client, run_id)
    run.show_charts()
    value = client.get_experiment("0").tags[chart_view.TAG]
    head, _, packed = value.partition(";")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert head == "deflate" and len(value) < 5000  # the longest that every store takes
    charts = [chart["selectedMetricKeys"] for chart in state["compareRunCharts"]]
    assert charts[0] == ["loss", "val_loss"] and charts[1] == ["accuracy", "val_accuracy"]
    # Of three in a row, a laptop beside MLflow's assistant shows three letters of each title.
    assert {section["columns"] for section in state["compareRunSections"]} == {2}
    scales = {chart["metricKey"]: chart["scaleType"] for chart in state["compareRunCharts"]}
    assert (scales["batch/learning_rate"], scales["batch/grad_norm"], scales["loss"]) == (
        "log",
        "log",
        "linear",
    )
    assert charts.index(["batch/learning_rate"]) < charts.index(["batch/grad_norm"])
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
    client.set_experiment_tag("0", chart_view.TAG, "the users' own")
    run.show_charts()
    assert client.get_experiment("0").tags[chart_view.TAG] == "the users' own"


def test_an_experiment_that_may_not_be_written_holds_up_nothing(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise mlflow.MlflowException("Permission denied")

    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", refused)
    one = deliver(
        write(home, started(store, run_id), layout(), *blocks(values(50)), RunEnded(BEGUN, "FINISHED", True))
    )
    assert one.done and one.status.error is None and not one.status.rejected
    assert client.get_run(run_id).data.tags["tfmon.delivery"] == "complete"


def test_a_run_that_is_made_later_says_who_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:9")
    made = runs.start({"team": "ours"}, stay_active=False)
    assert made.run_id is None and made.tags["team"] == "ours"
    expected = resolve_tags()  # what MLflow gives to a run that it makes itself
    assert {"mlflow.user", "mlflow.source.name"} <= expected.keys() and expected.items() <= made.tags.items()
