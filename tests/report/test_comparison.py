"""Tests of the comparison: where runs diverge, and what differs."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest

from mlflow_tfmon import cli
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.report.comparison import _differing, _params, compare, parting
from mlflow_tfmon.stream.records import Facts, Record, Steps
from tests.report import recordings
from tests.report.test_report import data_of


def changed(step: int, variable: int | None, by: float) -> list[Record]:
    """A training whose gradient of one variable is another from a step on; with None, its loss is."""
    records = recordings.training(400)
    for record in records:
        if isinstance(record, Steps):
            column = len(recordings.COLUMNS) + variable if variable is not None else 2
            record.values[step - 1 :, column] *= 1 + by
    return records


@pytest.fixture
def original(store: str, home: Path) -> str:
    return recordings.delivered(store, home, *recordings.training(400), name="original")


def test_the_first_step_and_variable_at_which_two_runs_differ(original: str, store: str, home: Path) -> None:
    found = {}
    for name, (step, variable, by) in {
        "one": (120, 1, 1e-3), "two": (1, 2, 0.5), "loss": (77, None, 1e-2), "noise": (5, 0, 1e-7),
    }.items():  # fmt: skip
        other = recordings.delivered(store, home, *changed(step, variable, by), name=name)
        found[name] = parting(load_run(original), load_run(other))
    assert found["noise"] is None and parting(load_run(original), load_run(original)) is None
    one, two, loss = found["one"], found["two"], found["loss"]
    assert one is not None and two is not None and loss is not None
    assert (one.step, one.variable, one.compared) == (120, recordings.KERNELS[1], 400)
    np.testing.assert_allclose(one.difference, 1e-3, rtol=1e-2)
    assert (two.step, two.variable) == (1, recordings.KERNELS[2])
    assert (loss.step, loss.variable) == (77, "")


def test_the_page_lays_the_runs_over_one_another(
    original: str, store: str, home: Path, tmp_path: Path
) -> None:
    other = recordings.delivered(
        store, home, *changed(120, 1, 1e-3), Facts(params={"opt_rate": "0.0010000000474974513"}), name="other"
    )
    mlflow.MlflowClient().log_metric(original, "best/val_loss", 1.5)
    output = tmp_path / "comparison.html"
    parent = mlflow.MlflowClient().create_run("0").info.run_id
    assert cli.main(["compare", original, other, "--output", str(output), "--log-to", parent]) == 0
    page = output.read_text("utf-8")
    curves = data_of(page)["panels"]["loss"]["curves"]
    assert {curve["run"] for curve in curves} == {0, 1}
    assert {curve["name"].split(" · ")[0] for curve in curves} == {"original", "other"}
    assert (
        "other diverges from original at step 120 (largest difference: gradient of net.second.kernel" in page
    )
    assert (
        "opt_rate" in page and "<td>0.001</td>" in page and ">opt_name<" not in page
    )  # which is the same in both
    assert "val_accuracy" in page
    # People look at the settings and the best values first.
    order = [
        page.index(part)
        for part in ("<h2>Settings that differ", "<h2>Metrics, best", "<figure", "<h2>Metrics, final")
    ]
    assert order == sorted(order)
    logged = mlflow.artifacts.download_artifacts(run_id=parent, artifact_path="tfmon/comparison.html")
    assert Path(logged).read_text("utf-8") == page


def test_what_differs_as_json(
    original: str,
    store: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = recordings.delivered(
        store, home, *changed(120, 1, 1e-3), Facts(params={"opt_rate": "0.2"}), name="other"
    )
    mlflow.MlflowClient().log_metric(original, "best/val_loss", 1.5)
    assert cli.main(["compare", original, other, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [{"id": original, "name": "original"}, {"id": other, "name": "other"}]
    assert found["settings"] == {"opt_rate": [None, "0.2"]}
    assert found["metrics"]["loss"] == [0.4, 0.4] and found["best"] == {"best/val_loss": [1.5, None]}
    (parted,) = found["partings"]
    assert (parted["step"], parted["variable"], parted["compared"]) == (120, recordings.KERNELS[1], 400)
    assert cli.main(["compare", original, other, "--json", "--since", "200"]) == 0
    (parted,) = json.loads(capsys.readouterr().out)["partings"]
    assert (parted["step"], parted["compared"]) == (200, 201)
    assert "other diverges from original at step 390" in compare([original, other], since=390)
    assert not (home / "comparison.html").exists()
    assert cli.main(["compare", original, other, "--json", "--log-to", other]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "give one of them" in err


@pytest.mark.slow
def test_what_is_the_same_of_several_runs_is_said_once(original: str, store: str, home: Path) -> None:
    others = [
        recordings.delivered(store, home, *changed(step, variable, 0.5), name=name)
        for name, step, variable in (("a", 1, 0), ("b", 1, 2), ("c", 9, 1), ("d", 1, 1))
    ]
    page = compare([original, *others])
    assert (
        "a, b and d diverge from original at step 1: data, seed, weights or settings differ from the start; "
        "c diverges from original at step 9 (largest difference: gradient of net.second.kernel" in page
    )


def test_one_run_is_no_comparison(original: str) -> None:
    with pytest.raises(ValueError, match="two different"):
        compare([original, original])
    assert cli.main(["compare", original]) == 2


def test_the_number_behind_an_optimizers_name_is_no_difference(original: str, store: str, home: Path) -> None:
    client = mlflow.MlflowClient(store)
    numbered = client.create_run("0", run_name="numbered").info.run_id
    client.log_param(numbered, "opt_name", "adam_1")
    known = client.get_run(original), client.get_run(numbered)
    assert _differing([_params(run) for run in known]) == []
    client.log_param(numbered, "opt_rate", "0.1")
    assert _differing([_params(run) for run in (known[0], client.get_run(numbered))]) == [
        ["opt_rate", "-", "0.1"]
    ]
