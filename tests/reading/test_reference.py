"""Tests of RUN on the command line, and of `mlflow-tfmon runs`."""

import json
import socket

import pytest
from click import ClickException
from mlflow import MlflowClient

from mlflow_tfmon import cli
from mlflow_tfmon.reading.reference import Named, choose, find_run
from mlflow_tfmon.stream.continuation import Past, PastStream
from mlflow_tfmon.tags import REACHED_TAG

AMONG = [
    Named("aa1", "one", 1.0),
    Named("ab2", "two", 3.0),
    Named("ab3", "two", 2.0),
    Named("two", "ab2", 0.0),
]


@pytest.mark.parametrize(
    ("reference", "run_id"),
    [("aa1", "aa1"), ("one", "aa1"), ("b3", "ab3"), ("latest", "ab2"), ("two", "two"), ("ab2", "ab2")],
)
def test_an_id_goes_before_a_name_and_that_before_a_part_of_an_id(reference, run_id):
    assert choose(reference, AMONG, "here").run_id == run_id


@pytest.mark.parametrize("among", [AMONG, []])
def test_what_is_no_run_is_told(among):
    with pytest.raises(ClickException, match="there is no run 'zz' here"):
        choose("zz", among, "here")


@pytest.mark.parametrize("reference", ["ab", "a"])
def test_what_is_several_runs_is_told_with_their_names(reference):
    with pytest.raises(ClickException, match=r"matches several runs here: .*ab2 \(two, 19.*ab3 \(two"):
        choose(reference, AMONG, "here")


@pytest.fixture
def client(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: store)
    return MlflowClient(store)


@pytest.fixture
def run_ids(client):
    """Ids of runs in two experiments: two that were watched, a later one that was not, and a further one."""
    other = client.create_experiment("other")
    tags = {"tfmon.delivery": "complete", "tfmon.problems": "none"}
    first = client.create_run("0", 1_000_000, tags, "it's me").info.run_id
    tags = {"tfmon.delivery": "streaming", "tfmon.problems": "nan_or_inf,overfitting"}
    second = client.create_run(other, 2_000_000, tags, "second").info.run_id
    third = client.create_run(other, 3_000_000, {}, "twice").info.run_id
    fourth = client.create_run("0", 4_000_000, {}, "twice").info.run_id
    client.log_metric(first, "best/val_loss", 0.123456)
    client.log_metric(first, "best/epoch", 7)
    client.log_metric(second, "generator.best/loss", 2.0)
    client.set_terminated(first)
    return [first, second, third, fourth]


def test_a_name_may_be_cut_off_where_it_is_clear_which_run_is_meant():
    among = [
        *AMONG,
        Named("c1", "train 2026-12-01 09:00:00", 4.0),
        Named("c2", "on trains", 5.0),
        Named("c3", None, 6.0),
    ]
    assert choose("train", among, "here").run_id == "c1" and choose("tw", among[2:], "here").run_id == "two"
    with pytest.raises(ClickException, match=r"'train' matches several runs"):
        choose("train", [*among, Named("c4", "train 2026-12-02 09:00:00", 7.0)], "here")


def test_runs_of_a_store(run_ids, store):
    first, second, third, _ = run_ids
    assert find_run("it's me") == find_run("it's") == find_run("it") == first and find_run("seco") == second
    with pytest.raises(ClickException, match=r"'tw' matches several runs"):
        find_run("tw")
    assert find_run("latest", store) == second
    assert find_run(third, store) == third
    assert find_run("second", store) == second
    assert find_run(first[3:20]) == first
    with pytest.raises(ClickException, match=r"'twice' matches several runs"):
        find_run("twice")
    for nobody in ("no'body", "no\"body's", "0" * 32, "", "'", "%"):
        with pytest.raises(ClickException, match=r"there is no run|matches several runs"):
            find_run(nobody)


@pytest.mark.parametrize(
    "command",
    [
        ["report"],
        ["diagnose"],
        ["compare", "second"],
        ["export-tensorboard"],
        ["promote"],
        ["sync", "--check"],
    ],
)
def test_every_command_takes_any_of_them_and_tells_in_a_line_what_it_cannot_find(
    command, run_ids, home, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    more = ["logs"] if command == ["export-tensorboard"] else []
    assert cli.main([*command, "nobody", *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "there is no run 'nobody' in sqlite:///" in err
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:  # nobody answers there when it is closed
        uri = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
    assert cli.main([*command, "nobody", *more, "--tracking-uri", uri]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "does not answer" in err and "secret" not in err
    assert cli.main([*command, "nobody", *more, "--tracking-uri", "sqlite:///nowhere.db"]) == 2
    assert "there is no database" in capsys.readouterr().err and not (tmp_path / "nowhere.db").exists()


def test_the_list_of_runs(run_ids, capsys):
    assert cli.main(["runs"]) == 0
    head, second, first = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "NAME", "BEGUN", "STATE", "BEST", "PROBLEMS"]
    assert second.startswith(run_ids[1][:8]) and first.startswith(run_ids[0][:8])
    assert "finished" in first and "val_loss 0.1235 (epoch 8)" in first and first.endswith("none")
    assert "running, streaming" in second and "generator.loss 2" in second
    assert second.endswith("nan_or_inf, overfitting")
    assert cli.main(["runs", "--limit", "1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["RUN", run_ids[1][:8]]
    assert cli.main(["runs", "--experiment", "Default"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.main(["runs", "--experiment", "none such"]) == 2
    assert "there is no experiment 'none such'" in capsys.readouterr().err


def test_the_list_of_runs_as_json(run_ids, client, capsys):
    client.create_run("0", 500_000, {"tfmon.delivery": "streaming"}, "not diagnosed")
    assert cli.main(["runs", "--json"]) == 0
    second, first, undiagnosed = json.loads(capsys.readouterr().out)
    assert [second["run_id"], first["run_id"]] == run_ids[1::-1]
    assert (first["status"], first["delivery"], first["begun"]) == ("finished", "complete", 1_000)
    assert first["best"] == {"val_loss": {"value": 0.123456, "epoch": 7}} and first["problems"] == []
    assert second["best"] == {"generator.loss": {"value": 2.0, "epoch": None}}
    assert second["problems"] == ["nan_or_inf", "overfitting"] and undiagnosed["problems"] is None


def test_the_list_of_runs_that_have_come_to_a_step(run_ids, client, capsys):
    for run_id, steps in zip(run_ids, (120, 4000), strict=False):
        streams = tuple(PastStream(at, "", "", "", steps // (at + 1), "") for at in range(2))
        client.set_tag(run_id, REACHED_TAG, json.dumps(Past(streams, {"": 12}).as_dict()))

    def listed(since):
        assert cli.main(["runs", "--json", "--since", since]) == 0
        return {one["run_id"]: one["step"] for one in json.loads(capsys.readouterr().out)}

    first, second, *_ = run_ids
    assert listed("0") == listed("120") == {second: 4000, first: 120}
    assert listed("121") == {second: 4000} and listed("4001") == {}
    assert cli.main(["runs"]) == 0
    assert "val_loss 0.1235 (epoch 8 of 12)" in capsys.readouterr().out
    assert cli.main(["runs", "--since", "4001", "--limit", "1"]) == 0
    assert capsys.readouterr().out == "No monitored run has come to step 4,001.\n"
    assert cli.main(["runs", "--since", "100", "--limit", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_runs_that_do_not_say_how_far_they_came_are_asked_for_their_curves(run_ids, client, capsys):
    for name, step in (("batch/loss", 70), ("generator.batch/loss", 90), ("other", 500)):
        client.log_metric(run_ids[0], name, 1.0, step=step)
    assert cli.main(["runs", "--json", "--since", "90"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["run_id"], found["step"]) == (run_ids[0], 90)
    assert cli.main(["runs", "--json", "--since", "91"]) == 0 and json.loads(capsys.readouterr().out) == []


def test_a_store_without_watched_runs(client, capsys):
    assert cli.main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["runs"]) == 0
    assert "mlflow-tfmon run SCRIPT" in capsys.readouterr().out
    assert cli.main(["report", "latest"]) == 2
    assert "there is no watched run" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.group.list_commands(None))
def test_each_command_has_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: mlflow-tfmon {name} ")
    assert ("RUN is a run's id" in " ".join(out.split())) == (" RUN" in out.splitlines()[0] or "[RUN]" in out)
