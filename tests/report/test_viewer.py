"""Tests of the report in a real browser: in the MLflow UI of a real server, and from disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_tfmon.report.comparison import compare
from mlflow_tfmon.stream.records import Facts
from tests.report import recordings
from tests.servers import Server

playwright = pytest.importorskip("playwright.sync_api")
_DRAWN = """() => [...document.querySelectorAll("figure[data-panel] .chart")].map(
    (chart) => chart.querySelectorAll("svg path").length)"""
_SECONDS = 120


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
    page.goto(f"{server}/#/experiments/0/runs/{run_id}/artifacts/tfmon/report.html")
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
