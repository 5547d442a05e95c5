"""Tests of the report: it shows what was recorded, and its content cannot execute anything."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_tfmon import cli
from mlflow_tfmon.problems.rediagnosis import replayed
from mlflow_tfmon.reading import frames
from mlflow_tfmon.reading.recorded import Problem, Seam, load_run
from mlflow_tfmon.report import making
from mlflow_tfmon.report.comparison import compare
from mlflow_tfmon.report.histograms import over_time, rebinned
from mlflow_tfmon.report.page import Page, as_json, render
from mlflow_tfmon.report.panels import Curve, Panel, Section, laid_over, needs_log
from mlflow_tfmon.report.thin import Buckets, thin
from mlflow_tfmon.stream.records import Facts, Problems, System
from tests.report import recordings


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def curve(page: str, panel: str, name: str) -> np.ndarray:
    curves = {one["name"]: one["points"] for one in data_of(page)["panels"][panel]["curves"]}
    return np.array(curves[name])


def test_a_browser_runs_the_pages_own_scripts_alone() -> None:
    page = render(Page("<script>alert(1)</script>", ["a"], "b", None, [], [], [], []))
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy).split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    scripts = [one.encode() for one in re.findall(r"<script>(.*?)</script>", page, re.S)]
    hashes = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in scripts]
    assert len(scripts) == 2 and rules["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert "Content-Security-Policy" in page[:200]  # before whatever it is to hold for
    assert not re.search(r"<[^>]* on\w+=", page.split("<script")[0])


def test_thinned_curves_keep_their_extremes() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=100_000).cumsum()
    values[[777, 50_001]] = [1e6, -1e6]
    values[5000:5100] = np.nan
    steps, kept = thin(np.arange(100_000), values, points=400)
    assert len(steps) <= 400 and (np.diff(steps) > 0).all()
    assert kept.max() == 1e6 and kept.min() == -1e6 and {0, 99_999} <= set(steps.tolist())
    np.testing.assert_array_equal(kept, values[steps])
    few = np.array([3.0, np.inf, 1.0])
    assert thin(np.arange(3), few)[1].tolist() == [3.0, 1.0]


def test_buckets_hold_the_largest_of_each_stretch() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 2))
    whole, parts = Buckets(1000, 10, 2), Buckets(1000, 10, 2)
    whole.add(np.arange(1, 1001), values)
    for at in range(0, 1000, 37):
        parts.add(np.arange(at + 1, min(1000, at + 37) + 1), values[at : at + 37])
    np.testing.assert_array_equal(whole.largest, values.reshape(10, 100, 2).max(axis=1))
    np.testing.assert_array_equal(parts.largest, whole.largest)
    assert whole.steps.tolist() == list(range(100, 1001, 100))


def test_bins_are_changed_without_losing_an_element() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 4000)
    counts, edges = np.histogram(values, np.linspace(-1, 1, 401))
    onto = np.linspace(-0.5, 0.5, 11)
    shares = rebinned(edges, counts, onto, values.min(), values.max())
    expected = np.histogram(np.clip(values, -0.5, 0.4999), onto)[0] / 4000
    np.testing.assert_allclose(shares, expected, atol=2e-3)
    assert rebinned(np.array([0.0, 1.0]), np.array([3]), onto, 0.25, 0.25).tolist() == [0] * 7 + [1] + [0] * 2


def test_histograms_over_time_are_columns_of_shares() -> None:
    random = np.random.default_rng(0)
    rows = []
    for step in range(1, 100):
        counts, edges = np.histogram(random.normal(size=200), 30)
        rows.append({"step": step, "edges": edges, "counts": counts, "min": edges[0], "max": edges[-1],
                     "q25": -0.7, "q75": 0.7})  # fmt: skip
    picture = over_time("a", "weight", pd.DataFrame(rows))
    assert len(picture.steps) <= 48 and {picture.steps[0], picture.steps[-1]} == {1, 99}
    sums = np.zeros(len(picture.steps))
    for column, _, share in picture.cells:
        sums[column] += share
    np.testing.assert_allclose(sums, 1, atol=0.01)


def test_what_it_tells_is_what_was_recorded(store: str, home: Path, tmp_path: Path) -> None:
    run_id = recordings.delivered(store, home, *recordings.training(3000), report=True)
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="tfmon/report.html")
    page = Path(path).read_text("utf-8")  # as the end of the run made it
    recorded = load_run(run_id)
    points = curve(page, "loss", "loss of the step")
    loss = recorded.steps.loss
    np.testing.assert_allclose(points[:, 1], loss.loc[points[:, 0].astype(int)], rtol=1e-4)
    assert len(points) <= 1000 and points[:, 1].max() == 50  # the spike of one step
    np.testing.assert_allclose(curve(page, "loss", "val_loss"), [[600 * n, 1.5] for n in range(1, 6)])
    gap = [[600 * n, 1.5 - 2 / n] for n in range(1, 6)]
    np.testing.assert_allclose(curve(page, "gap", "val_loss - loss"), gap, rtol=1e-4)
    assert {"loss", "metric", "learning_rate", "gradient", "gap", "step_time", "grad_norm by layer",
            "weight_norm by layer", "update_ratio by layer", "weight histograms", "gradient histograms", "zeros",
            "dead"} <= data_of(page)["panels"].keys()  # fmt: skip
    clock = data_of(page)["clocks"][0]
    assert clock["epoch"][-1] == 5 and clock["minutes"][-1] == pytest.approx(0.01 * 2999 / 60, abs=1e-3)
    assert "opt_name" in page and "adam" in page and len(page) < 3e6
    output = tmp_path / "out.html"
    assert cli.main(["report", run_id, "--output", str(output)]) == 0
    assert data_of(output.read_text("utf-8"))["panels"] == data_of(page)["panels"]


def test_it_is_there_for_programs_too_from_a_step_on(
    store: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = Problem("nan_or_inf", "critical", 1900, (), "The loss is NaN.", "Clip gradients.", 1950)
    records = [
        *recordings.training(2000, nan_at=1900),
        Problems(2000, time.time(), (dataclasses.asdict(nan),)),
    ]
    run_id = recordings.delivered(store, home, *records, name="one")

    def told(*arguments: str) -> Any:
        assert cli.main(["report", run_id, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    whole, late = told(), told("--since", "1500")
    run = load_run(run_id)
    assert (whole["run_id"], whole["name"], whole["complete"]) == (run_id, "one", True)
    assert [Problem.from_dict(one) for one in whole["problems"]] == run.problems == [nan]
    assert whole["verdict"] in making.make(run_id) and whole["tables"]["Settings"] == {"opt_name": "adam"}
    for found, since in ((whole, 1), (late, 1500)):
        points = np.array(found["curves"]["loss"]["loss of the step"])
        assert len(points) <= 100 and points[0, 0] >= since and points[-1, 0] == 1899
        np.testing.assert_allclose(points[:, 1], run.steps.loss[points[:, 0]], rtol=1e-4)
    assert max(value for _, value in whole["curves"]["loss"]["loss of the step"]) == 50
    ends = [step for step, _ in whole["curves"]["loss"]["val_loss"]]
    assert [step for step, _ in late["curves"]["loss"]["val_loss"]] == [one for one in ends if one >= 1500]
    assert late["not_finite"]["loss"][0] == 1900 and late["problems"] == whole["problems"]
    after = told("--since", "1951")
    assert after["problems"] == after["not_finite"]["gradient"] == [] and after["curves"]["loss"] != {}
    output = tmp_path / "report.json"
    assert cli.main(["report", run_id, "--json", "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n" and json.loads(output.read_text()) == whole


def test_nothing_in_it_can_do_anything(store: str, home: Path) -> None:
    name = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    run_id = recordings.delivered(store, home, *recordings.training(300), name=name)
    library = (Path(making.__file__).parent / "vendor/echarts.min.js").read_text("utf-8")
    page = making.make(run_id).replace(library, "")
    assert "&lt;script&gt;alert(3)" in page and "\\u003cscript>alert(1)" in page  # a metric, and a variable
    assert "<script>alert" not in page and "<img" not in page and "<b>ours" not in page
    assert page.count("<script") == page.count("</script>") == 3  # the data, the library and ours
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert as_json({"a": "</script><!--"}).count("<") == 0
    assert name in json.dumps(data_of(page)) or "&lt;script&gt;alert(1)" in page


def test_the_norms_of_all_variables_are_distributed_as_numpy_says(store: str, home: Path) -> None:
    run = load_run(recordings.delivered(store, home, *recordings.training(400)))
    found, deep = run.norm_histograms, run.layers.dropna(subset=["weight_norm"])
    assert set(found.kind) == {"weight_norm", "grad_norm"} and set(found.step) == set(deep.step)
    for row in found.itertuples():
        norms = deep[deep.step == row.step][row.kind]
        np.testing.assert_array_equal(np.histogram(norms, row.edges)[0], row.counts)
        assert row.counts.sum() == len(recordings.KERNELS) and (row.zeros, row.nonfinite) == (0, 0)


def test_norms_that_no_bin_can_hold_are_told_apart(tmp_path: Path) -> None:
    norms = [0.0, np.nan, np.inf, 1e-30, 1e30, 1.0]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(norms), len(norms)).cast(pa.list_(pa.float64()))
    path = tmp_path / "deep.parquet"
    pq.write_table(pa.table({"step": [5], "variables.weight_norm": lists}), path)
    about = {"prefix": "", "variables": [[f"v{n}", [1], False] for n in range(len(norms))]}
    (row,) = frames.norm_histograms([(path, about)], []).itertuples()
    assert (row.step, row.kind, row.zeros, row.nonfinite) == (5, "weight_norm", 1, 2)
    assert len(row.counts) == 320 and np.flatnonzero(row.counts).tolist() == [0, 160, 319]


def test_seams_and_resumed_steps_are_marked(store: str, home: Path) -> None:
    seam = Facts(tags={"tfmon.seams": "201"}, time=1.0)
    run_id = recordings.delivered(store, home, *recordings.training(300), seam)
    assert load_run(run_id).seams == (Seam(201, "further fit"),)
    page = making.make(run_id)
    assert data_of(page)["seams"] == [[[201, "further fit"]]] and "further fit from step 201 on" in page
    other = recordings.delivered(store, home, *recordings.training(300, seed=1), name="other")
    both = compare([run_id, other])
    assert data_of(both)["seams"] == [[[201, "further fit"]], []]
    assert "further fit from step 201 on of a run" in both


def test_it_tells_how_to_load_the_best_model_and_the_last(store: str, home: Path) -> None:
    tags = {"tfmon.best_model": "m-best", "mlflow.tfmon.last_model": "m-last"}
    tags |= {"tfmon.other.best_model": "m-other", "mlflow.tfmon.other.last_model": "m-other"}
    told = Facts(tags=tags, metrics=(("best/val_loss", 0.25, 3), ("best/epoch", 3.0, 3)), time=1.0)
    page = html.unescape(making.make(recordings.delivered(store, home, *recordings.training(300), told)))
    found = re.findall(
        r"<h2>(The [^<]* model[^<]*)</h2>\s*<pre>[^<]*load_model\('models:/([^<]*)'\)</pre>", page
    )
    expected = [
        ("The best model", "m-best"),
        ("The best model of other", "m-other"),
        ("The last model", "m-last"),
    ]
    assert found == expected
    assert "best val_loss 0.25 at epoch 4 of 5" in page


@pytest.mark.slow
def test_a_problem_stands_beside_what_shows_it(store: str, home: Path) -> None:
    run_id = recordings.delivered(store, home, *recordings.training(300, nan_at=200))
    recorded = load_run(run_id)
    recorded.problems = [
        Problem("nan_or_inf", "critical", 200, recordings.KERNELS[:1], "loss is NaN from step 200 on", "clip")
    ]
    page = render(making.page_of(recorded, mlflow.get_run(run_id)))
    assert "1 problem found: nan_or_inf." in page and "loss is NaN from step 200 on" in page
    figure = page.index('data-from="200"')
    assert 'data-panel="loss"' in page[figure - 100 : figure + 100]
    assert data_of(page)["panels"]["loss"]["marks"][0] == 200
    assert "not finite at 101 steps, first at step 200" in page
    clean = render(making.page_of(load_run(run_id), mlflow.get_run(run_id)))
    assert "was not checked for problems" in clean


def test_what_was_done_about_problems_is_told(store: str, home: Path) -> None:
    run_id = recordings.delivered(store, home, *recordings.training(50))
    done = {
        "tfmon.rescues": "nan_or_inf at step 9: back to the start",
        "tfmon.stopped": "nan_or_inf at step 30",
    }
    for tag, text in done.items():
        mlflow.MlflowClient().set_tag(run_id, tag, text)
    page = making.make(run_id)
    assert all(text in page for text in done.values())


def test_a_million_steps_make_a_report_as_small(store: str, home: Path) -> None:
    few = making.make(recordings.delivered(store, home, *recordings.training(1000)))
    many = making.make(recordings.delivered(store, home, *recordings.training(200_000)))
    assert len(many) < len(few) + 150_000
    assert curve(many, "loss", "loss of the step")[:, 1].max() == 50


def test_a_run_that_has_next_to_nothing(store: str, home: Path) -> None:
    run_id = recordings.delivered(store, home, *recordings.training(1, epochs=1)[:2])
    assert set(data_of(making.make(run_id))["panels"]) >= {"loss", "gradient"}
    unwatched = mlflow.MlflowClient().create_run("0").info.run_id
    with pytest.raises(ValueError, match="not monitored"):
        making.make(unwatched)
    assert cli.main(["report", unwatched]) == 2


def test_a_log_scale_is_for_what_needs_it() -> None:
    steps = np.arange(1, 201)
    flat, steep = (
        Curve.of("flat", steps, 1 + 0.1 * np.sin(steps)),
        Curve.of("steep", steps, 10.0 ** -(steps / 50)),
    )
    spike = Curve.of("spike", steps, np.where(steps == 100, 500.0, 1.0))
    assert not needs_log([flat]) and needs_log([steep]) and needs_log([spike])
    pauses = Curve.of("pauses", steps, np.where(steps % 40 < 2, 1e-3, 1.0))
    assert not needs_log([spike], outliers=True) and not needs_log([pauses], outliers=True)
    assert needs_log([Curve.of("ended by a NaN", [1, 2], [0.7, 1e16])], outliers=True)
    far = Curve.of("far below", steps, np.full(200, 1e-3))
    assert needs_log([flat, far], outliers=True) and needs_log(
        [Curve.of("steep", steps, 10.0 ** -(steps / 40))], True
    )
    begun_badly = Curve.of(
        "begun badly", steps, np.r_[90.0, 50.0, np.full(198, 2.4)]
    )  # a loss at a rate too high
    assert needs_log([begun_badly])
    assert needs_log([flat, Curve.of("far below", steps, np.full(200, 1e-3))])
    assert not needs_log([steep, Curve.of("below zero", steps, -1.0 * steps)]) and not needs_log([])
    dead = Curve.of("dead", steps, np.where(steps < 150, 10.0 ** -(steps / 50), 0.0))
    assert needs_log([dead]) and not needs_log(
        [Curve.of("mostly 0", steps, np.where(steps < 9, 10.0**steps, 0.0))]
    )


def test_runs_of_other_scales_share_a_log_scale() -> None:
    steps = np.arange(1, 201)

    def section(curve: Curve) -> Section:
        return Section("Training", (Panel("rate", "Learning rate", (curve,), log=needs_log([curve])),))

    large, small = (Curve.of("rate", steps, np.full(200, value)) for value in (1.0, 1e-3))
    steep = Curve.of("rate", steps, 10.0 ** -(steps / 50))
    below = Curve.of("rate", steps, np.full(200, -1.0))
    for together, log in (
        ((large, small), True),
        ((large, large), False),
        ((large, steep), True),
        ((steep, below), False),
    ):
        (joined,) = laid_over([(str(at), [section(curve)]) for at, curve in enumerate(together)])
        assert joined.panels[0].log == log


def test_a_notebook_shows_a_card(store: str, home: Path) -> None:
    name = "<script>alert(1)</script>"
    first = recordings.delivered(store, home, *recordings.training(300), name=name)
    other = recordings.delivered(store, home, *recordings.training(300, seed=1), name="other")
    run = load_run(first)
    card = run._repr_html_()
    assert "300 steps, 5 epochs" in card and "least val_loss 1.5 at epoch 1 of 5" in card
    assert card.count("<polyline") == 2 and "No problem was found." in card
    run.problems = [Problem("plateau", "warning", 200, (), "<b>flat</b>", "raise it")]
    assert "warning: plateau" in run._repr_html_() and "<b>flat" not in run._repr_html_()
    assert "plateau" in repr(run)
    both = compare([first, other])
    assert "<script>" not in both._repr_html_() and "&lt;script&gt;alert(1)" in both._repr_html_()
    assert "other diverges from" in both._repr_html_() and len(both._repr_html_()) < 10_000
    assert both.startswith("<!doctype html>") and "diverges" in repr(both) and len(repr(both)) < 500


def test_what_was_used_of_the_machine_is_in_the_files_and_the_report(store: str, home: Path) -> None:
    used = [
        System(
            10 * at,
            recordings.recordings.BEGUN + at,
            {"system/process_memory_mb": 100.0 + at, "system/memory_free_mb": 900.0},
        )
        for at in range(1, 6)
    ]
    run_id = recordings.delivered(store, home, *recordings.training(300), *used)
    found = load_run(run_id).system
    assert found.index.tolist() == [10, 20, 30, 40, 50] and found.process_memory_mb.tolist() == [
        101,
        102,
        103,
        104,
        105,
    ]
    points = mlflow.MlflowClient(store).get_metric_history(run_id, "system/process_memory_mb")
    assert {point.step: point.value for point in points} == {10 * at: 100.0 + at for at in range(1, 6)}
    page = making.make(run_id)
    np.testing.assert_array_equal(curve(page, "memory", "of this training")[:, 1], found.process_memory_mb)
    assert replayed(load_run(run_id))[0].histories()[""].system.column("process_memory_mb").mean[
        :, 0
    ].tolist() == [101, 102, 103, 104, 105]
