"""Tests of what dashboards read: a real scrape, a real OTLP receiver, and the Grafana dashboard's metrics."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.sinks.figures import FIGURES, RUN, Figures
from mlflow_tfmon.sinks.sink import Target
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded, Flushed, Problems, RunEnded, System
from tests.delivery.recordings import BEGUN, blocks, deliver, layout, started, values

ROWS = 200
PROBLEM = {
    "kind": "dead_relu",
    "severity": "critical",
    "first_step": 40,
    "variables": [],
    "evidence": "",
    "advice": "",
}
MACHINE = {
    "process_cpu_percent": 150.0,
    "process_memory_mb": 900.0,
    "memory_free_mb": 4000.0,
    "gpu_percent": 87.5,
    "gpu_memory_mb": 12_000.0,
}
Found = dict[tuple[str, frozenset[tuple[str, str]]], float]  # by name and labels
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def training(store: str, home: Path) -> Iterator[Any]:
    """Begins to deliver a training that goes on; what it gives ends it."""
    opened: list[tuple[Journal, Deliverer]] = []

    def begin(sinks: str) -> str:
        journal = Journal.create(home)
        epoch = EpochEnded(0, ROWS, BEGUN + 3, {"loss": 0.5, "val_loss": 0.75})
        journal.append(
            [
                started(store, None, sinks=sinks), layout(), *blocks(values(ROWS)), epoch,
                System(ROWS, BEGUN + 3, {f"system/{name}": one for name, one in MACHINE.items()}),
                Problems(ROWS, BEGUN + 3, (PROBLEM,)), Flushed(BEGUN + 4),
            ]
        )  # fmt: skip
        deliverer = deliver(journal.folder, trainer_gone=False)
        opened.append((journal, deliverer))
        assert deliverer.status.run_id is not None
        return deliverer.status.run_id

    def end() -> None:
        while opened:
            journal, deliverer = opened.pop()
            journal.append([Flushed(BEGUN + 8)])
            for _ in range(3):
                deliverer.advance(hurry=True)
            journal.append([RunEnded(BEGUN + 9, "FINISHED", True)])
            journal.close()
            while not deliverer.done:
                deliverer.advance(trainer_gone=True, hurry=True)

    begin.end = end  # type: ignore[attr-defined]
    yield begin
    end()


def check(found: Found, run_id: str) -> None:
    """All figures are those of the recording's last step."""
    rows = values(ROWS)
    run = {"run_id": run_id, "run_name": "a run"}

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset((run | labels).items())]

    assert value("step", stream="") == ROWS and value("epochs", stream="") == 1
    for column, name in ((4, "loss"), (5, "learning_rate"), (6, "grad_norm")):
        assert value(name, stream="") == rows[-1, column]
    np.testing.assert_allclose(value("steps_per_second", stream=""), 100, rtol=1e-3)
    np.testing.assert_allclose(value("examples_per_second", stream=""), 3200, rtol=1e-3)
    assert value("last_step_time_seconds", stream="") == rows[-1, 1]
    assert value("epoch_metric", stream="", metric="val_loss") == 0.75
    assert (value("problems", severity="critical"), value("problems", severity="warning")) == (1, 0)
    assert value("problem_first_step", kind="dead_relu", severity="critical") == 40
    assert {name: value(name) for name in MACHINE} == MACHINE
    assert value("delivery_lag_seconds") == 0
    assert {name for name, _ in found} == set(FIGURES)


def scrape(port: int) -> Found:
    parser = pytest.importorskip("prometheus_client.parser")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (one.name.removeprefix("tfmon_"), frozenset(one.labels.items())): one.value
        for family in parser.text_string_to_metric_families(text)
        for one in family.samples
    }


def test_prometheus_reads_how_all_trainings_of_a_process_stand_while_they_last(training: Any) -> None:
    port = free_port()
    first, second = training(f"prometheus:{port}"), training(f"prometheus:127.0.0.1:{port}")
    found = scrape(port)
    for run_id in (first, second):
        check({(name, of): one for (name, of), one in found.items() if ("run_id", run_id) in of}, run_id)
    training.end()
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_a_port_that_is_taken_is_named_in_the_run(training: Any, store: str) -> None:
    pytest.importorskip("prometheus_client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run_id = training(f"prometheus:{port}")
        training.end()
    tags = mlflow.MlflowClient(store).get_run(run_id).data.tags
    assert (
        f"127.0.0.1:{port}: Address already in use; give this training another port" in tags["tfmon.refused"]
    )
    assert tags["tfmon.delivery"] == "complete"


def test_the_lag_is_the_age_of_what_mlflow_lacks() -> None:
    sink = Figures(Target(run_id="run"))
    first, second = blocks(values(100), size=50)
    sink.steps(Block.of(layout(), first), {})  # type: ignore[arg-type]
    sink.steps(Block.of(layout(), second), {})  # type: ignore[arg-type]

    def lag() -> float:
        return next(value for name, _, value in sink.readings() if name == "delivery_lag_seconds")

    assert lag() == pytest.approx(time.time() - values(100)[0, 1], abs=60)
    sink.flush(3)
    assert lag() == 0


class Receiver(http.server.BaseHTTPRequestHandler):
    """An OTLP receiver."""

    requests: list[Any]

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
        self.requests.append((self.path, dict(self.headers), request))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(metrics_service_pb2.ExportMetricsServiceResponse().SerializeToString())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """Address of an OTLP receiver, and what it gets."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    handler = type("Handler", (Receiver,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.requests  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def received(request: Any) -> Found:
    found: Found = {}
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.gauge.data_points:
                    labels = frozenset((one.key, one.value.string_value) for one in point.attributes)
                    value = point.as_double if point.WhichOneof("value") == "as_double" else point.as_int
                    found[metric.name.removeprefix("tfmon."), labels] = value
    return found


def test_a_collector_gets_the_figures_by_otlp(
    training: Any, receiver: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, requests = receiver
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=ours")
    run_id = training(f"opentelemetry:{address}")
    before = len(requests)
    give_up = time.monotonic() + 60
    while len(requests) < before + 2 and time.monotonic() < give_up:
        time.sleep(0.05)
    training.end()
    path, headers, request = requests[-1]
    check(received(request), run_id)
    assert path == "/v1/metrics" and {name.lower(): one for name, one in headers.items()}["x-team"] == "ours"
    (resource,) = request.resource_metrics
    services = [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"]
    assert services == ["mlflow_tfmon"]


@pytest.mark.slow
def test_a_collector_that_is_away_is_named_and_keeps_nothing_from_mlflow(
    training: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    run_id = training(f"opentelemetry:http://127.0.0.1:{free_port()}")
    time.sleep(1.5)  # until it was tried in vain
    training.end()
    tags = mlflow.MlflowClient(store).get_run(run_id).data.tags
    assert "sink opentelemetry: OSError: the collector does not take metrics" in tags["tfmon.refused"]
    assert tags["tfmon.delivery"] == "complete"


def test_the_dashboard_asks_for_nothing_that_is_not_there() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    legends = [target["legendFormat"] for panel in board["panels"] for target in panel["targets"]]
    for text, legend in zip(asked, [*legends, ""], strict=True):
        names = re.findall(r"tfmon_(\w+)", text)
        assert names and set(names) <= set(FIGURES), text
        labels = {*RUN, *(one for name in names for one in FIGURES[name][1])}
        told = {*re.findall(r"{{(\w+)}}", legend), *re.findall(r'[{,]\s*(\w+)\s*=~?"', text)}
        told |= {one.strip() for group in re.findall(r"by \(([^)]*)\)", text) for one in group.split(",")}
        assert told <= labels, (text, legend)
    page = DASHBOARD.with_name("dashboards.md").read_text()
    assert set(re.findall(r"`tfmon_(\w+)`", page)) == set(FIGURES)


def in_a_browser(path: str, prometheus: str, queries: list[str]) -> dict[str, str]:
    """What Prometheus's own page shows a person for each query (that of Debian's package, 2.42)."""
    playwright = pytest.importorskip("playwright.sync_api")
    found: dict[str, str] = {}
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
        while some := queries[len(found) :][:8]:  # it shows ten at most
            asked = "&".join(
                f"g{at}.expr={urllib.parse.quote(one)}&g{at}.tab=1" for at, one in enumerate(some)
            )
            page.goto(f"{prometheus}/classic/graph?{asked}")
            page.wait_for_function(
                "many => [...document.querySelectorAll('.console tbody')].filter((o) => o.innerText).length == many",
                arg=len(some),
            )
            found |= dict(zip(some, page.locator(".console tbody").all_inner_texts(), strict=True))
    return found


@pytest.mark.thorough
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Prometheus (Debian's package prometheus)"
)
def test_prometheus_itself_scrapes_and_the_dashboard_s_queries_have_answers(
    training: Any, tmp_path: Path
) -> None:
    parts = re.findall(
        r"^```yaml\n# (\S+)\n(.*?)^```$", DASHBOARD.with_name("dashboards.md").read_text(), re.M | re.S
    )
    for name, text in parts:
        (tmp_path / name).write_text(text)
        check = ["promtool", "check", "rules" if name == "Alerts" else "config", str(tmp_path / name)]
        assert subprocess.run(check, capture_output=True).returncode == 0, text
    assert [name for name, _ in parts] == ["prometheus.yml", "Alerts"]
    port, own = free_port(), free_port()
    run_id = training(f"prometheus:{port}")
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: trainings\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )
    server = subprocess.Popen(
        [
            "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{own}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(query: str) -> list[Any]:
        address = f"http://127.0.0.1:{own}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
            return found

    try:
        give_up = time.monotonic() + 60
        result: list[Any] = []
        while not result and time.monotonic() < give_up:
            time.sleep(0.5)
            try:
                result = ask(f'tfmon_step{{run_id="{run_id}"}}')
            except OSError:
                continue
        assert result and float(result[0]["value"][1]) == ROWS
        panels = json.loads(DASHBOARD.read_text())["panels"]
        queries = [one["expr"].replace("$run", ".*") for panel in panels for one in panel["targets"]]
        for query in queries:
            assert ask(query), query
        if path := shutil.which("chromium"):
            shown = in_a_browser(path, f"http://127.0.0.1:{own}", queries)
            (loss,) = (text for query, text in shown.items() if "tfmon_loss" in query)
            assert run_id in loss and float(loss.split()[-1]) == values(ROWS)[-1, 4]
            for name, value in MACHINE.items():
                found = [float(text.split()[-1]) for query, text in shown.items() if f"_{name}" in query]
                assert found == [value] * ("free" not in name), (name, shown)
    finally:
        server.terminate()
        server.wait(30)
