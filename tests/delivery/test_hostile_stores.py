"""Tests with malicious data from a store, or from whoever answers in its place."""

from __future__ import annotations

import http.server
import io
import json
import threading
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from recordings import BEGUN, blocks, layout, started, values, write

from mlflow_tfmon import SettingError, load_run
from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery.tally import MANIFEST, read_manifest
from mlflow_tfmon.problems import alerts
from mlflow_tfmon.report.making import _code
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.stream.records import Problems, RunEnded
from mlflow_tfmon.tags import REACHED_TAG
from mlflow_tfmon.tracking import findings
from mlflow_tfmon.tracking.credentials import WithheldError, check_artifacts
from mlflow_tfmon.tracking.models import drop_model, registered_as
from mlflow_tfmon.tracking.runs import Run
from mlflow_tfmon.tracking.store import RunStore
from mlflow_tfmon.uris import in_a_line

ENDED = RunEnded(BEGUN + 10, "FINISHED", True)
DEEP = "[" * 200_000


class Listening:
    """A server that takes note of what comes, and answers the same to all."""

    def __init__(self, status: int, **headers: str) -> None:
        seen: list[tuple[str, str | None]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.append((self.command, self.headers.get("Authorization")))
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.seen = seen
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def other() -> Iterator[Listening]:
    """A server that is nobody's store."""
    one = Listening(404)
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_the_token_does_not_go_to_where_an_experiment_keeps_its_files(
    store: str, other: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "T0KEN")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = mlflow.MlflowClient(store)
    place = f"{other.uri}/api/2.0/mlflow-artifacts/artifacts/x"
    run_id = client.create_run(client.create_experiment("theirs", place)).info.run_id
    with pytest.raises(WithheldError, match="token") as raised:
        load_run(run_id, store)
    assert not other.seen and other.uri in str(raised.value)
    assert main(["sync", "--check", run_id, "--tracking-uri", store]) == 1
    assert not other.seen


@pytest.mark.parametrize(
    ("uri", "first", "goes"),
    [
        ("http://a.example.org/api/2.0/mlflow-artifacts/artifacts/1", "mlflow-artifacts:/0", True),
        ("mlflow-artifacts:/1/x", "mlflow-artifacts:/0", True),
        ("mlflow-artifacts://a.example.org:80/1/x", "mlflow-artifacts:/0", True),
        ("s3://bucket/1", "s3://bucket/0", True),
        ("http://b.example.org/x", "http://b.example.org:80/0", True),
        ("mlflow-artifacts://b.example.org/1", "mlflow-artifacts:/0", False),
        ("https://a.example.org/x", "mlflow-artifacts:/0", False),
        ("http://a.example.org@b.example.org/x", "mlflow-artifacts:/0", False),
        ("http://a.example.org:81/x", "mlflow-artifacts:/0", False),
    ],
)
def test_which_server_of_files_is_the_stores_own(
    monkeypatch: pytest.MonkeyPatch, uri: str, first: str, goes: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "T0KEN")
    client = SimpleNamespace(
        tracking_uri="http://a.example.org",
        get_experiment=lambda _: SimpleNamespace(artifact_location=first),
    )
    if goes:
        check_artifacts(client, uri)
    else:
        with pytest.raises(WithheldError):
            check_artifacts(client, uri)
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        check_artifacts(client, uri)


@pytest.mark.parametrize(
    "text", [DEEP, "[]", '{"series": [], "files": {}}', '{"series": {"a": "x"}, "files": {}}']
)
def test_what_a_run_says_of_earlier_deliveries_keeps_nothing_waiting(
    store: str, home: Path, text: str
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0", tags={REACHED_TAG: DEEP[:4000]}).info.run_id
    client.log_text(run_id, text, MANIFEST)
    client.log_text(run_id, text, findings.FILE)
    folder = write(home, started(store, run_id), layout(), *blocks(values(10)), ENDED)
    assert main(["sync"]) == 0 and not folder.exists()


@pytest.mark.parametrize(
    "name",
    ["../../x.parquet", "tfmon/telemetry/../../../x.parquet", "/etc/passwd", "tfmon/telemetry/a\nb.parquet"],
)
def test_a_manifest_names_telemetry_files_alone(name: str) -> None:
    assert read_manifest(
        json.dumps({"series": {"loss": 3}, "files": {"tfmon/telemetry/steps-0-00000.parquet": 3}})
    )
    assert read_manifest(json.dumps({"series": {}, "files": {name: 3}})) is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_an_alert_goes_to_the_address_that_was_named_alone(
    other: Listening, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0,))
    monkeypatch.setattr("mlflow_tfmon.errors.logger.propagate", True)
    leads = Listening(status, Location=other.uri)
    assert not alerts.post(leads.uri.replace("://", "://ann:s3cret@"), {"a": 1})
    leads.server.shutdown()
    assert not other.seen and [how for how, _ in leads.seen] == ["POST"]
    assert f"it answers {status}, a redirect" in caplog.text


def test_an_error_has_no_secret_in_what_it_came_from(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_tfmon.checkpoints.promote import PromotionError, promote
    from mlflow_tfmon.watching import resuming

    def fails(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("API request to http://ann:QJZ@db/x failed with exception no")

    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", store)
    monkeypatch.setattr(mlflow.MlflowClient, "get_run", fails)
    for call in (lambda: resuming.prepare("some"), lambda: promote("some")):
        with pytest.raises((SettingError, PromotionError)) as raised:
            call()
        assert "QJZ" not in "".join(traceback.format_exception(raised.value))
    run = Run("id", "0", None, "http://a:QJZ@b", "http://a:QJZ@b", 0.0, True, True, {})
    assert "QJZ" not in repr(run) + repr(Settings(alert_url="https://hooks.example.org/QJZ"))


def test_an_error_that_is_made_to_take_for_ever_is_cut() -> None:
    text = "API request to http://a failed with exception " + "(Caused by a(" * 50_000
    assert len(in_a_line(OSError(text))) <= 400


def test_arrays_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    from mlflow_tfmon.reading.arrays import read_arrays

    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.arange(1000))
    assert read_arrays(path)["a"].tolist() == list(range(1000))
    found = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(found)) as archive:
        directory = archive.start_dir
    entries, end = found[directory:-22], bytearray(found[-22:])
    end[8:12] = (3).to_bytes(2, "little") * 2
    end[12:16] = (3 * len(entries)).to_bytes(4, "little")
    path.write_bytes(found[:directory] + 3 * entries + bytes(end))
    with pytest.raises(ValueError, match="compressed"):
        read_arrays(path)


def test_what_the_report_gives_to_be_copied_is_a_name_and_no_program() -> None:
    tags = {"tfmon.best_model": "x') or __import__('os').system('id') #"}
    run: Any = SimpleNamespace(data=SimpleNamespace(tags=tags), info=SimpleNamespace(run_id="r"))
    (_, text), _ = _code(run)
    import ast

    call = ast.parse(text).body[-1].value  # type: ignore[attr-defined]
    assert isinstance(call, ast.Call) and isinstance(call.args[0], ast.Constant)


def test_a_problem_is_text_in_the_description_all_of_it() -> None:
    one = {"kind": "<img src=x>", "severity": "<b>", "first_step": 1, "evidence": "<i>", "advice": "<u>"}
    assert "<" not in findings.summary(Problems(1, 0.0, (one,))).replace("\\<", "")


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "7",
        '{"streams": [{"number": "x"}]}',
        '{"epochs": {"": "x"}}',
        '{"epochs": {"": true}, "seams": [1]}',
    ],
)
def test_what_a_tag_says_of_the_past_is_that_or_nothing(text: str) -> None:
    assert Past.from_text(text) == Past()


@pytest.mark.parametrize("text", [DEEP, "7", "[7]", "no JSON"])
def test_a_model_of_which_nobody_can_tell_whether_it_is_registered_is_kept(text: str) -> None:
    model: Any = SimpleNamespace(tags={"mlflow.modelVersions": text})
    assert registered_as(model)


@pytest.mark.parametrize("model_id", ["m-1", "..", "precious"])
def test_what_a_server_calls_a_models_files_is_not_deleted(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_id: str
) -> None:
    precious, model = tmp_path / "precious", tmp_path / "1" / "models" / "m-1" / "artifacts"
    for folder in (precious / "artifacts", model):
        folder.mkdir(parents=True)
        (folder / "kept").write_text("PRECIOUS")
    client = mlflow.MlflowClient(store)
    said = {"m-1": precious, "..": precious / ".." / "artifacts", "precious": precious}[model_id]
    location = [str(said)]
    known: dict[str, Any] = {"tags": {}}
    monkeypatch.setattr(client, "delete_logged_model", lambda _: None)
    monkeypatch.setattr(client, "search_model_versions", lambda _: [])
    monkeypatch.setattr(
        client,
        "get_logged_model",
        lambda _: SimpleNamespace(**known, artifact_location=location[0], source_run_id="run"),
    )
    drop_model(RunStore(client, "run"), model_id)
    assert (precious / "artifacts" / "kept").exists()
    location[0] = str(model)
    drop_model(RunStore(client, "run"), "m-1")
    assert not model.exists()
