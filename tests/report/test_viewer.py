"""Tests of the report in a real browser: in the MLflow UI of a real server, and from disk."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from mlflow_tfmon.facts.examples import picture
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.report.comparison import compare
from mlflow_tfmon.report.page import Page, render
from mlflow_tfmon.report.panels import Curve, Panel, Section, needs_log
from mlflow_tfmon.stream.records import Facts, Text
from mlflow_tfmon.tags import pointer
from mlflow_tfmon.tracking.links import charts
from tests.report import recordings
from tests.servers import Server

playwright = pytest.importorskip("playwright.sync_api")
_DRAWN = """() => [...document.querySelectorAll("figure[data-panel] .chart")].map(
    (chart) => chart.querySelectorAll("svg path").length)"""
_SECONDS = 240  # MLflow's page takes long on a busy machine
_OPTION = """(key) => {
    const option = echarts.getInstanceByDom(document.querySelector(`figure[data-panel="${key}"] .chart`)).getOption();
    return {
        series: option.series.map(({ name, data, lineStyle }) => ({ name, data, opacity: lineStyle?.opacity })),
        type: option.yAxis[0].type, shown: option.legend?.[0]?.selected, colours: option.visualMap?.[0]?.text,
    };
}"""
_AXIS = """(key) => echarts.getInstanceByDom(document.querySelector(`figure[data-panel="${key}"] .chart`))
    .getModel().getComponent("yAxis", 0).axis.scale.getExtent()"""
_EXTENTS = """() => [...document.querySelectorAll("figure[data-panel]")]
    .map((one) => echarts.getInstanceByDom(one.querySelector(".chart")).getModel().getComponent("xAxis", 0).axis)
    .filter((axis) => axis.type === "value").map((axis) => axis.scale.getExtent())"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator[str]:
    one = Server(tmp_path, store)
    yield one.uri
    one.kill()


@pytest.mark.thorough
def test_the_report_in_the_artifact_viewer(browser: Any, server: str, store: str, home: Path) -> None:
    run_id = recordings.delivered(store, home, *recordings.training(400), report=True)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    note = mlflow.MlflowClient(store).get_run(run_id).data.tags["mlflow.note.content"]
    (link,) = re.findall(r"\[The report\]\((#/.*?)\)", note)
    page.goto(f"{server}/{link}")
    frame, until = None, time.monotonic() + _SECONDS
    while frame is None:  # a frame without an origin, in which scripts may run
        page.wait_for_timeout(300)
        frame = next((f for f in page.frames if f != page.main_frame and _is_report(f)), None)
        assert time.monotonic() < until, [f.url for f in page.frames]
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    paths = frame.evaluate(_DRAWN)
    assert len(paths) > 15 and min(paths) > 4
    assert "Evaluation runs" not in page.inner_text("body")  # MLflow's view of GenAI apps
    before = len(asked)
    frame.evaluate("document.querySelector('input[value=epoch]').click()")
    page.wait_for_timeout(500)
    assert min(frame.evaluate(_DRAWN)) > 4 and not said
    assert not [url for url in asked if not url.startswith((server, "data:", "blob:"))]
    assert len([url for url in asked[before:] if "report" in url]) == 0
    page.close()


def _is_report(frame: Any) -> bool:
    try:
        return bool(frame.evaluate("Boolean(document.documentElement.dataset.drawn)"))
    except playwright.Error:
        return False


@pytest.mark.thorough
@pytest.mark.parametrize("width, dark", [(1300, False), (390, True)])
def test_from_disk_every_chart_is_drawn_and_nothing_is_asked_for(
    browser: Any, store: str, home: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    from mlflow_tfmon.report.making import make

    path = tmp_path / "report.html"
    path.write_text(make(recordings.delivered(store, home, *recordings.training(400, nan_at=300))), "utf-8")
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(path.as_uri())
    assert min(page.evaluate(_DRAWN)) > 4
    for _ in range(2):  # to a logarithmic scale and back
        page.click("figure[data-panel=loss] button")
        assert min(page.evaluate(_DRAWN)) > 4
    page.select_option("figure[data-panel='weight histograms'] select", index=2)
    said_below = page.inner_text("figure[data-panel='weight histograms'] .said")
    assert said_below.startswith(recordings.KERNELS[2])
    box = page.locator("figure[data-panel=loss] .chart").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(300)
    assert "step " in str(
        page.locator("figure[data-panel=loss] svg").text_content()
    )  # what the pointer is at
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    labels = page.eval_on_selector_all(".chart", "(all) => all.map((one) => one.getAttribute('aria-label'))")
    assert all(len(label) > 30 for label in labels)
    assert asked == [path.as_uri()] and not said
    page.close()


@pytest.mark.thorough
def test_what_gets_into_the_page_runs_nothing_and_loads_nothing(
    browser: Any, store: str, home: Path, tmp_path: Path
) -> None:
    from mlflow_tfmon.report.making import make

    hostile = """<script>alert(1)</script><img src=x onerror="alert(2)"><img src="http://127.0.0.1:9/a.png">
        <iframe src="http://127.0.0.1:9/b"></iframe><link rel=stylesheet href="http://127.0.0.1:9/c.css">
        <script src="http://127.0.0.1:9/d.js"></script><a id=e href="javascript:alert(3)">e</a>
        <style>h1 { background: url("http://127.0.0.1:9/f.png") }</style>"""
    path = tmp_path / "report.html"
    made = make(recordings.delivered(store, home, *recordings.training(50)))
    path.write_text(made.replace("</main>", f"{hostile}</main>"), "utf-8")
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    answered, said = [], []
    page.on("response", lambda response: answered.append(response.url))
    page.on("requestfinished", lambda request: answered.append(request.url))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    blocked: list[str] = []
    page.on("console", lambda message: blocked.append(message.text))
    page.goto(path.as_uri())
    page.evaluate("document.getElementById('e').click()")
    page.wait_for_timeout(500)
    assert min(page.evaluate(_DRAWN)) > 4
    assert set(answered) <= {path.as_uri()} and not said
    assert sum("Content Security Policy" in text for text in blocked) >= 7
    page.close()


@pytest.mark.thorough
def test_a_comparison_is_drawn_with_its_seams_and_asks_for_nothing(
    browser: Any, store: str, home: Path, tmp_path: Path
) -> None:
    seam = Facts(tags={"tfmon.seams": "201"}, time=1.0)
    first = recordings.delivered(
        store, home, *recordings.training(400), seam, name="<script>alert(4)</script>"
    )
    other = recordings.delivered(store, home, *recordings.training(400, seed=1), name="other")
    path = tmp_path / "comparison.html"
    path.write_text(compare([first, other]), "utf-8")
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(path.as_uri())
    assert min(page.evaluate(_DRAWN)) > 4
    assert page.inner_text(".seams").startswith(
        "Dashed lines in the charts: further fit from step 201 on of <script>"
    )
    dashed = page.locator("figure[data-panel=learning_rate] svg path[stroke-dasharray]")
    assert dashed.count() >= 1  # the seam: a single curve is solid
    page.evaluate("document.querySelector('input[value=epoch]').click()")
    assert min(page.evaluate(_DRAWN)) > 4
    assert asked == [path.as_uri()] and not said
    page.close()


@pytest.fixture
def opened(browser: Any, store: str, home: Path, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A report in the browser, and the id of its run."""
    from mlflow_tfmon.report.making import make

    path = tmp_path / "report.html"
    run_id = recordings.delivered(store, home, *recordings.training(400))
    path.write_text(make(run_id), "utf-8")
    page = browser.new_page(viewport={"width": 1300, "height": 1800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    yield page, run_id
    page.close()
    assert not said


def _over(page: Any, panel: str, x: float, y: float = 0.5) -> tuple[float, float]:
    """A place within a chart."""
    box = page.locator(f"figure[data-panel='{panel}'] .chart").first.bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


@pytest.mark.thorough
def test_curves_are_smoothed_as_a_mean_by_hand(opened: tuple[Any, str]) -> None:
    page, run_id = opened
    raw = page.evaluate(_OPTION, "loss")["series"]
    page.locator("#smoothing").fill("0.9")
    page.wait_for_timeout(300)
    found = page.evaluate(_OPTION, "loss")["series"]
    values = load_run(run_id).steps.loss.to_numpy()
    weights = 0.9 ** np.arange(len(values))[::-1]
    means = [np.average(values[: at + 1], weights=weights[-at - 1 :]) for at in range(len(values))]
    smooth, faint = (one for one in found if one["name"] == "loss of the step")
    assert faint["data"] == raw[0]["data"] and faint["opacity"] < smooth["opacity"]
    np.testing.assert_allclose([point[1] for point in smooth["data"]], means, rtol=1e-4)
    assert sum(one["name"] == "val_loss" for one in found) == 1  # of few points
    rates = page.evaluate(_OPTION, "learning_rate")["series"][0]["data"]
    assert {point[1] for point in rates} == {0.1}  # what is constant stays so
    page.locator("#smoothing").fill("0")
    page.wait_for_timeout(300)
    assert page.evaluate(_OPTION, "loss")["series"] == raw


@pytest.mark.thorough
def test_the_pointer_is_at_the_same_step_in_all_charts(opened: tuple[Any, str]) -> None:
    page, _ = opened
    page.mouse.move(*_over(page, "loss", 0.4))
    page.mouse.move(*_over(page, "loss", 0.5))
    page.wait_for_timeout(500)
    heads = {
        panel: re.findall(r"step (\d+)", page.locator(f"figure[data-panel='{panel}'] svg").text_content())[:1]
        for panel in ("loss", "learning_rate", "gradient")
    }
    (at,) = {head[0] for head in heads.values()}
    assert 100 < int(at) < 300, heads
    told = page.locator("figure[data-panel=loss] svg").text_content()
    assert (
        "loss of the step: " in told and "val_loss: 1.5 (step " in told
    )  # also of a curve without a point there
    page.mouse.move(1, 1)
    page.wait_for_timeout(500)
    assert not re.search(r"step \d+", page.locator("figure[data-panel=gradient] svg").text_content())


@pytest.mark.thorough
def test_a_range_that_is_chosen_is_that_of_all_charts(opened: tuple[Any, str]) -> None:
    page, _ = opened
    whole = page.evaluate(_EXTENTS)
    assert not page.locator("#whole").is_visible()
    page.mouse.move(*_over(page, "loss", 0.3))
    page.mouse.down()
    page.mouse.move(*_over(page, "loss", 0.45), steps=5)
    page.mouse.move(*_over(page, "loss", 0.6), steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    found = page.evaluate(_EXTENTS)
    assert {tuple(extent) for extent in found} == {tuple(found[0])} and len(found) > 5
    assert 50 < found[0][0] < 150 and 200 < found[0][1] < 300
    assert min(page.evaluate(_DRAWN)) > 4
    page.click("#whole")
    page.wait_for_timeout(300)
    assert page.evaluate(_EXTENTS) == whole and not page.locator("#whole").is_visible()


@pytest.mark.thorough
def test_a_name_shows_its_line_alone_and_a_button_says_what_it_does(opened: tuple[Any, str]) -> None:
    page, _ = opened
    name = page.locator("figure[data-panel=loss] svg text", has_text="val_loss").first
    name.click(force=True)
    page.wait_for_timeout(300)
    assert page.evaluate(_OPTION, "loss")["shown"] == {
        "loss of the step": False,
        "loss": False,
        "val_loss": True,
    }
    name.click(force=True)
    page.wait_for_timeout(300)
    assert all(page.evaluate(_OPTION, "loss")["shown"].values())
    button = page.locator("figure[data-panel=learning_rate] button")
    assert (button.text_content(), page.evaluate(_OPTION, "learning_rate")["type"]) == (
        "Use a log scale",
        "value",
    )
    button.click()
    assert (button.text_content(), page.evaluate(_OPTION, "learning_rate")["type"]) == (
        "Use a linear scale",
        "log",
    )


@pytest.mark.thorough
def test_an_axis_is_that_of_its_values(browser: Any, tmp_path: Path) -> None:
    steps = np.arange(1, 401)
    random = np.random.default_rng(0).uniform(0.9, 1, 400)
    begun, spike = np.where(steps == 1, 1800.0, random), np.where(steps == 200, 1800.0, random)
    panels = (
        Panel("small", "A small share", (Curve.of("one", steps, 0.003 * random),), share=True),
        Panel("large", "A large share", (Curve.of("one", steps, 0.7 * random),), share=True),
        Panel("above", "No share after all", (Curve.of("one", steps, 1.3 * random),), share=True),
        Panel("time", "Step time", (Curve.of("one", steps, begun),), outliers=True),
        Panel("short", "Step time of three steps", (Curve.of("one", steps[:3], begun[:3]),), outliers=True),
        Panel("even", "Step time without a first step", (Curve.of("one", steps, random),), outliers=True),
        Panel(
            "loss", "Loss", (Curve.of("one", steps, spike),), log=needs_log([Curve.of("one", steps, spike)])
        ),
    )
    clock = {"step": [1, 400], "epoch": [0, 1], "minutes": [0, 1]}
    path = tmp_path / "page.html"
    path.write_text(
        render(Page("axes", (), "", None, (), (Section("All", panels),), (clock,), ((),))), "utf-8"
    )
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(path.as_uri())
    ends = {key: page.evaluate(_AXIS, key) for key in ("small", "large", "above", "time", "short", "even")}
    assert ends["small"][0] == 0 and 0.003 <= ends["small"][1] < 0.01
    assert ends["large"] == [0, 1] and ends["above"][0] == 0 and 1.3 <= ends["above"][1] < 3
    assert all(1 <= ends[key][1] <= 2 for key in ("time", "short", "even"))
    types = {key: page.evaluate(_OPTION, key)["type"] for key in ("time", "even", "loss")}
    assert types == {"time": "value", "even": "value", "loss": "log"}
    page.click("figure[data-panel=time] button")  # on a log scale nothing sticks out
    least, most = page.evaluate(_AXIS, "time")
    assert least <= 1 and most >= 1800 and min(page.evaluate(_DRAWN)) > 4
    page.close()


@pytest.mark.thorough
def test_a_layer_is_picked_in_all_charts_and_heat_maps_are_whole(opened: tuple[Any, str]) -> None:
    page, run_id = opened
    page.select_option("#layers select", label="second")
    page.wait_for_timeout(300)
    shown = {one["name"]: one["opacity"] for one in page.evaluate(_OPTION, "grad_norm by layer")["series"]}
    assert shown["second.kernel"] == 1 and max(v for n, v in shown.items() if n != "second.kernel") < 0.3
    chosen = page.eval_on_selector(
        "figure[data-panel='weight histograms'] select", "(one) => one.selectedIndex"
    )
    assert chosen == 1
    picture = page.locator("figure[data-panel='weight_norm of all']")
    told = picture.locator("svg").text_content()
    for name in recordings.KERNELS:
        assert name.removeprefix("net.") in told.replace("\n", "")
    norms = load_run(run_id).layers.weight_norm.dropna()
    colours = [float(one) for one in page.evaluate(_OPTION, "weight_norm of all")["colours"]]
    np.testing.assert_allclose(colours, [norms.max(), norms.min()], rtol=0.01)  # values, not their logarithms


@pytest.mark.thorough
@pytest.mark.parametrize("width", [1300, 390])
def test_contents_lead_to_each_section(opened: tuple[Any, str], width: int) -> None:
    page, _ = opened
    page.set_viewport_size({"width": width, "height": 900})
    links = page.locator(".contents a")
    titles = page.locator("h2").all_text_contents()
    assert links.all_text_contents() == titles and {"Training", "Layers", "Settings"} <= set(titles)
    links.filter(has_text="Layers").click()
    page.wait_for_timeout(300)
    box = page.locator("h2", has_text="Layers").bounding_box()
    assert 0 <= box["y"] < 200
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.thorough
@pytest.mark.parametrize("width", [1300, 390])
def test_the_slider_shows_what_was_predicted_after_each_epoch(
    browser: Any, store: str, home: Path, tmp_path: Path, width: int
) -> None:
    from mlflow_tfmon.report.making import make

    random = np.random.default_rng(0)
    pixels = random.uniform(size=(5, 3, 12, 12))  # of epoch and example
    texts = [["0 (40%)", "1 (90%)", "<i>7 (70%)"], ["3 (60%)"] * 3, ["0 (99%)", "1 (51%)", "2 (80%)"]]
    fixed = Text("tfmon/predictions/examples-0123456789abcdef.json", json.dumps(
        [{"input": picture(random.uniform(size=(12, 12))), "target": str(at)} for at in range(3)]))  # fmt: skip
    told = [
        Text(f"tfmon/predictions/epoch-{epoch:05d}.json", json.dumps({
            "epoch": epoch, "step": 80 * (epoch + 1), "examples": "0123456789abcdef",
            "cells": [{"prediction": texts[epoch][at], "drawn": picture(pixels[epoch, at])} for at in range(3)],
            "right": [text.startswith(str(at)) for at, text in enumerate(texts[epoch])],
        }))
        for epoch in range(3)
    ]  # fmt: skip
    run_id = recordings.delivered(store, home, *recordings.training(400), fixed, *told)
    path = tmp_path / "report.html"
    path.write_text(make(run_id), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    part = page.locator("[data-slides]")
    for epoch in (2, 0, 1, 2):
        part.locator("input").fill(str(epoch))
        cells = part.locator("td[data-name=prediction]").all_text_contents()
        assert [one.strip() for one in cells] == texts[epoch]
        right = [text.startswith(str(at)) for at, text in enumerate(texts[epoch])]
        classes = part.locator("tbody tr").evaluate_all("(rows) => rows.map((one) => one.className)")
        assert classes == ["right" if one else "wrong" for one in right]
        after = f"after epoch {epoch + 1} (step {80 * (epoch + 1)}): {sum(right)} of 3 right"
        assert part.locator("output").text_content() == after
        drawn = part.locator("td[data-name=drawn] img").evaluate_all("(all) => all.map((one) => one.src)")
        assert drawn == [picture(one) for one in pixels[epoch]]
        part.locator("td[data-name=drawn] img").first.evaluate("(one) => one.decode()")
    wide = part.locator("img").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().width)")
    assert min(wide) >= 96 and page.evaluate("document.documentElement.scrollWidth") <= width
    assert not said
    page.close()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_the_chart_view_opens_with_what_people_look_at_first(
    browser: Any, server: str, store: str, home: Path
) -> None:
    kinds = ("best_model", "last_model", "resume_model", "model")
    ids = Facts(tags={pointer(kind): f"m-{kind}" for kind in kinds}, time=1.0)
    run_id = recordings.delivered(store, home, *recordings.training(400), ids, name="digits")
    note = mlflow.MlflowClient(store).get_run(run_id).data.tags["mlflow.note.content"]
    (link,) = re.findall(r"\((#/experiments/0/runs\?.*?)\)", note)
    page = browser.new_page(viewport={"width": 1600, "height": 1400})
    page.goto(f"{server}/{link}")
    first = ["loss vs val_loss", "accuracy vs val_accuracy", "batch/learning_rate", "batch/grad_norm"]
    for title in first:
        page.wait_for_selector(f"text={title}", timeout=_SECONDS * 1000)
    told = page.inner_text("body")
    places = [told.index(title) for title in first]
    assert places == sorted(places) and "auc vs" not in told
    cut = "one => one.scrollWidth > one.clientWidth"
    assert not any(page.get_by_text(title, exact=True).first.evaluate(cut) for title in first)
    page.goto(f"{server}/#/experiments/0/runs/{run_id}?workflowType=machine_learning")
    links = page.locator("a", has_text="Charts of this experiment's runs")
    links.first.wait_for(timeout=_SECONDS * 1000)
    seen = page.inner_text("body")
    assert "m-best_model" in seen and "opt_name" in seen  # and of what programs alone read nothing
    assert not [one for one in ("m-last_model", "m-resume_model", "m-model", "reached") if one in seen]
    with page.expect_popup(timeout=_SECONDS * 1000) as opened:  # MLflow opens links of a description so
        links.first.click()
    opened.value.wait_for_selector("text=loss vs val_loss", timeout=_SECONDS * 1000)
    opened.value.close()
    page.close()


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_the_chart_view_shows_the_curves_of_runs_below_others(
    browser: Any, server: str, store: str, home: Path
) -> None:
    mlflow.set_tracking_uri(store)
    parent = mlflow.MlflowClient().create_run("0", run_name="comparison").info.run_id
    for seed, name in enumerate(("one", "other")):
        recordings.delivered(store, home, *recordings.training(400, seed=seed), name=name, parent=parent)
    page = browser.new_page(viewport={"width": 1600, "height": 1400})
    page.goto(charts(server, "0"))
    for text in ("loss vs val_loss", "one (loss)", "other (loss)"):
        page.wait_for_selector(f"text={text}", timeout=_SECONDS * 1000)
    page.close()
