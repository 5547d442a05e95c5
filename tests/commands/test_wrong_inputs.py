"""What a tired person gets wrong, in each command that reads runs: exit status 2, and one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from mlflow_tfmon import cli
from tests.report import recordings


@pytest.fixture
def unwatched(store: str, home: Path) -> str:
    """A run that was not monitored, beside one that was, which is called "good"."""
    recordings.delivered(store, home, *recordings.training(40), name="good")
    return mlflow.MlflowClient().create_run("0", run_name="unwatched").info.run_id


def test_each_wrong_input_ends_with_2_and_one_line(
    unwatched: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("the script was started"))
    Path("train.py").write_text("raise SystemExit('it ran')")
    not_watched, absent = "call mlflow_tfmon.autolog() before the training", "absent/page.html"
    for arguments, said in {
        ("diagnose", "godo"): "there is no run 'godo'",
        ("diagnose", "godo", "--fail-on", "critical"): "there is no run 'godo'",
        ("diagnose", unwatched): not_watched,
        ("diagnose", unwatched, "--fail-on", "critical"): not_watched,
        ("diagnose", "good", "--since", "half"): "'half' is not a valid integer",
        ("diagnose", "good", "--fail-on", "critcal"): "'critcal' is no severity",
        ("diagnose",): "Missing argument 'RUN'",
        ("diagnose", "good", "--tracking-uri", "sqlite:///absent.db"): "there is no database",
        ("report", "godo"): "there is no run 'godo'",
        ("report", unwatched): not_watched,
        ("report", unwatched, "--json"): not_watched,
        ("report", "good", "--since", "9"): "--since is for --json",
        ("report", "good", "--json", "--since", "-1"): "-1 is not in the range",
        ("report", "good", "--output", absent): "name a file in a folder that is there",
        ("report", "good", "--json", "--output", absent): "name a file in a folder that is there",
        ("compare", "good"): "compare needs two different runs",
        ("compare", "good", "good"): "compare needs two different runs",
        ("compare", "good", "godo"): "there is no run 'godo'",
        ("compare", "good", unwatched): not_watched,
        ("compare", "good", unwatched, "--json"): not_watched,
        ("compare", "good", unwatched, "--since", ""): "'' is not a valid integer",
        ("runs", "--experiment", "digtis"): "there is no experiment 'digtis'",
        ("runs", "--limit", "0"): "0 is not in the range",
        ("runs", "--since", "half"): "'half' is not a valid integer",
        ("runs", "--tracking-uri", "sqlite:///absent.db"): "there is no database",
        ("runs", "--tracking-uri", "127.0.0.1:5000"): "Did you mean 'http://127.0.0.1:5000'?",
        (
            "diagnose",
            "good",
            "--tracking-uri",
            "htp://example.org",
        ): "MLflow knows no store like 'htp://example.org'",
        ("mcp", "--port", "80"): "No such option",
        ("run", "--sinks", "prometheus:port", "train.py"): '"prometheus:9464"',
        ("run", "--sinks", "opentelemetry:collector", "train.py"): '"opentelemetry:http://HOST:4318"',
        ("run", "--sinks", "promethues:9464", "train.py"): "a sink that is not installed",
        ("run", "tarin.py"): "tarin.py: No such file or directory",
        ("run", "--deep-evry", "5", "train.py"): "Did you mean '--deep-every'?",
        ("run", "--alert-url", "example.org", "train.py"): "an address that begins with http",
        ("diagnos", "good"): "Did you mean 'diagnose'?",
        ("watch", "godo"): "there is no run 'godo'",
        ("watch", "--every", "0", "good"): "0.0 is not in the range",
        ("replay", "good", "0"): "0 is not in the range",
        ("find-batch", "good", "3", "absent.npy"): "'absent.npy' does not exist",
        ("export-tensorboard", "good"): "Missing argument 'DIR'",
        ("export-tensorboard", "good", "train.py"): "'train.py' is a file",
        ("import-tensorboard", "absent"): "'absent' does not exist",
        ("promote", "godo"): "there is no run 'godo'",
        ("sync", "godo"): "there is no run 'godo' waiting here",
        ("pack",): "Missing argument 'FILE'",
        ("unpack", "absent.zip"): "'absent.zip' does not exist",
        ("check", "good", "--metric", "val_accuracy"): "write a metric, one of >= <= > < ==",
        ("check", "good", "--format", "xml"): "is not one of 'text'",
    }.items():
        assert cli.main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("mlflow-tfmon: "), (arguments, out, err)
        assert said in err, (arguments, err)
    assert [path.name for path in tmp_path.glob("*.html")] == []


def test_a_gate_that_cannot_tell_does_not_say_that_there_is_a_problem(
    unwatched: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = ("--tracking-uri", "http://127.0.0.1:9")
    assert cli.main(["diagnose", "good", *away]) == 1  # which is no gate
    assert cli.main(["diagnose", "good", "--fail-on", "warning", *away]) == 2
    assert "does not answer" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TFMON_DETECTORS", '{"dead_rleu": false}')
    for arguments in (["diagnose", "good"], ["diagnose", "good", "--fail-on", "warning"], ["check", "good"]):
        assert cli.main(arguments) == 2, arguments
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "dead_rleu" in err, err


def test_a_gate_does_not_pass_a_run_that_has_not_arrived_whole(
    unwatched: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["diagnose", "good", "--fail-on", "warning"]) == 0
    client = mlflow.MlflowClient()
    (good,) = client.search_runs(["0"], "attributes.run_name = 'good'")
    client.set_tag(good.info.run_id, "tfmon.delivery", "incomplete")
    assert cli.main(["diagnose", "good"]) == 0  # which is no gate
    assert cli.main(["diagnose", "good", "--fail-on", "warning"]) == 2
    assert "Not everything recorded for this run has arrived" in capsys.readouterr().err
