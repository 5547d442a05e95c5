"""Tests with a store that rejects some data: the rest arrives, the run ends, missing data are named and kept."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.db.utils import _get_managed_session_maker
from mlflow.utils.rest_utils import verify_rest_response
from recordings import BEGUN, blocks, deliver, layout, started, values, write
from requests import Response
from sqlalchemy import create_engine, exc
from sqlalchemy.orm import sessionmaker

from mlflow_tfmon.delivery import calls
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.sync import deliver as sync
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import EpochEnded, Facts, Record, RunEnded, Text
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, store_errors
from tests.servers import Proxy, Server

ENDED = RunEnded(BEGUN + 100.0, "FAILED", True, "ValueError: no")
HTML = (400, "text/html", b"<html><body>Bad request</body></html>")


def recording(uri: str, run_id: str | None = None) -> list[Record]:
    facts = Facts(params={"epochs": "2", "odd": "select *"}, tags={"team": "a"}, time=BEGUN)
    epoch = EpochEnded(0, 100, BEGUN, {"loss": 0.5})
    return [started(uri, run_id), facts, layout(), *blocks(values(100)), Text("a.txt", "a"), epoch, ENDED]


def check_all_but_files(client: mlflow.MlflowClient, run_id: str) -> mlflow.entities.Run:
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["epochs"], run.data.tags["team"]) == ("FAILED", "2", "a")
    assert run.data.metrics["loss"] == 0.5 and run.data.metrics["batch/loss"] == values(100)[-1, 4]
    assert "ValueError: no" in run.data.tags["mlflow.note.content"]
    assert "step 100" in run.data.tags["tfmon.progress"]
    return run


def check_all(client: mlflow.MlflowClient, run_id: str, uri: str) -> None:
    run = check_all_but_files(client, run_id)
    assert run.data.tags["tfmon.delivery"] == "complete" and "tfmon.refused" not in run.data.tags
    assert load_run(run_id, uri).steps.index.tolist() == list(range(1, 101))
    points = [point.step for point in client.get_metric_history(run_id, "batch/loss")]
    assert len(points) == len(set(points)) > 50
    assert find_waiting() == []


def test_the_run_ends_though_its_artifacts_cannot_be_written(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.write_text("a file where the folder of artifacts should be")
    folder = write(home, *recording(store, run_id))
    one = Deliverer(folder)
    for _ in range(3):
        one.advance(trainer_gone=True, hurry=True)
    tags = check_all_but_files(client, run_id).data.tags
    assert tags["tfmon.delivery"] == "incomplete"
    assert "steps-0-" in tags["tfmon.refused"] and "Not a directory" in tags["tfmon.refused"]
    assert "a.txt: " in tags["tfmon.refused"]
    assert not one.done and "Not a directory" in str(one.status.error) and one.status.delivered == 0
    one.close()
    (waiting,) = find_waiting()
    assert "Not a directory" in str(sync(waiting)) and folder.exists()
    artifacts.unlink()
    (waiting,) = find_waiting()
    assert sync(waiting) is None
    check_all(client, run_id, store)


def test_a_report_that_another_delivery_has_made_is_no_longer_said_to_be_missing(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path
) -> None:
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.executescript(
            "CREATE TRIGGER no BEFORE INSERT ON params WHEN NEW.key = 'odd' BEGIN SELECT RAISE(ABORT, 'not now'); END"
        )
    folder = write(home, started(store, run_id, report=True), *recording(store, run_id)[1:])
    rows = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"), "tfmon", "telemetry")
    rows.mkdir(parents=True)
    (rows / "steps-9-0-00000.parquet").write_text("nothing of which a report can be made")
    assert "param odd" in str(deliver(folder).status.error)
    assert "tfmon/report.html: UnreadableError" in client.get_run(run_id).data.tags["tfmon.refused"]
    (rows / "steps-9-0-00000.parquet").unlink()
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute("DROP TRIGGER no")
    assert sync(find_waiting()[0]) is None
    assert "tfmon/report.html" in {one.path for one in client.list_artifacts(run_id, "tfmon")}
    check_all(client, run_id, store)


def test_one_file_that_is_too_large_holds_up_no_other(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunStore.text

    def text(self: RunStore, path: str, text: str) -> None:
        if path == "a.txt":
            raise AwayError("413 Request Entity Too Large")
        real(self, path, text)

    monkeypatch.setattr(RunStore, "text", text)
    folder = write(home, *recording(store, run_id))
    one = Deliverer(folder)
    for _ in range(3):
        one.advance(trainer_gone=True, hurry=True)
    tags = check_all_but_files(client, run_id).data.tags
    assert tags["tfmon.refused"] == "a.txt: 413 Request Entity Too Large"
    assert [item.path for item in client.list_artifacts(run_id, "tfmon/telemetry") if "steps-0" in item.path]
    one.close()
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TFMON_HOME", str(home))
    assert sync(find_waiting()[0]) is None
    check_all(client, run_id, store)


def answered(status: int, body: bytes) -> Response:
    response = Response()
    response.status_code, response._content = status, body
    return response


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}', True),
        (400, HTML[2], False),
        (400, b"", False),
        (400, b'{"message": "blocked"}', False),
        (400, b'{"error_code": 400, "message": "blocked"}', False),
        (403, HTML[2], False),
        (404, HTML[2], False),
        (413, b"too large", False),
        (400, b'["INVALID_PARAMETER_VALUE"]', False),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}', False),
    ],
)
def test_only_what_mlflow_itself_says_is_a_refusal(status: int, body: bytes, refused: bool) -> None:
    with pytest.raises(RefusedError if refused else AwayError), store_errors():
        verify_rest_response(answered(status, body), "/api/2.0/mlflow/runs/log-batch")


@pytest.mark.parametrize("through_a_server", [False, True])
@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        (exc.DataError, True),
        (exc.ProgrammingError, False),  # a column is missing: the database is being migrated
        (exc.InternalError, False),  # it is read-only for a while
        (exc.IntegrityError, False),
        (exc.TimeoutError, False),  # no connection is free
        (exc.OperationalError, False),
    ],
)
def test_what_a_database_says_is_a_refusal_only_where_it_is_about_the_value(
    kind: type[Exception], refused: bool, through_a_server: bool
) -> None:
    said = kind("no", code="3o7r") if kind is exc.TimeoutError else kind("INSERT", {}, ValueError("no"))  # type: ignore[call-arg]
    session = _get_managed_session_maker(sessionmaker(create_engine("sqlite://")), "sqlite")
    with pytest.raises(MlflowException) as caught, session():
        raise said
    with pytest.raises(RefusedError if refused else AwayError), store_errors():
        if not through_a_server:
            raise caught.value
        body = caught.value.serialize_as_json().encode()
        verify_rest_response(
            answered(caught.value.get_http_status_code(), body), "/api/2.0/mlflow/runs/log-batch"
        )


def test_what_mlflow_says_without_a_server_is_a_refusal() -> None:
    with pytest.raises(RefusedError), store_errors():
        raise MlflowException.invalid_parameter_value("no")
    with pytest.raises(AwayError), store_errors():
        raise RestException({"message": "INVALID_PARAMETER_VALUE"})


@pytest.fixture(scope="module")
def server(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(store_template.read_bytes())
    one = Server(folder, f"sqlite:///{folder}/mlflow.db")
    yield one
    one.kill()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the delivery process has it: MLflow itself would ask for minutes.

    A call is made once more: a server that does not take a file's bytes breaks the connection that the next call has.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    one = Proxy(server.uri)
    yield one
    one.close()


def run_of(client: mlflow.MlflowClient) -> str:
    """A run whose artifacts go through its server."""
    return str(client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "answer",
    [
        (403, "application/xml", b"<Error><Code>AccessDenied</Code></Error>"),
        (413, "text/html", b"<html>Request Entity Too Large</html>"),
        (500, "text/plain", b"[Errno 30] Read-only file system"),
    ],
)
def test_the_run_ends_though_a_server_takes_no_artifacts(
    answer: tuple[int, str, bytes], proxy: Proxy, home: Path
) -> None:
    client = mlflow.MlflowClient(proxy.uri)
    run_id = run_of(client)
    proxy.answers["/mlflow-artifacts/artifacts"] = answer
    one = Deliverer(write(home, *recording(proxy.uri, run_id)))
    for _ in range(3):
        one.advance(trainer_gone=True, hurry=True)
    tags = check_all_but_files(client, run_id).data.tags
    assert proxy.asked and tags["tfmon.delivery"] == "incomplete" and str(answer[0]) in tags["tfmon.refused"]
    one.close()
    proxy.answers.clear()
    assert sync(find_waiting()[0]) is None
    check_all(client, run_id, proxy.uri)


@pytest.mark.thorough
def test_a_server_whose_artifacts_are_on_a_disk_that_cannot_be_written(server: Server, home: Path) -> None:
    client = mlflow.MlflowClient(server.uri)
    served = server._folder / "served"
    aside = served.with_name("aside")
    run_id = run_of(client)
    if served.exists():
        served.rename(aside)
    served.write_text("a file where the folder should be")
    try:
        one = Deliverer(write(home, *recording(server.uri, run_id)))
        for _ in range(3):
            one.advance(trainer_gone=True, hurry=True)
        assert check_all_but_files(client, run_id).data.tags["tfmon.delivery"] == "incomplete"
        one.close()
    finally:
        served.unlink()
        if aside.exists():
            aside.rename(served)
    assert sync(find_waiting()[0]) is None
    check_all(client, run_id, server.uri)


@pytest.mark.thorough
def test_a_proxy_that_answers_400_in_html_refuses_nothing_for_good(proxy: Proxy, home: Path) -> None:
    client = mlflow.MlflowClient(proxy.uri)
    run_id = run_of(client)
    proxy.answers["/runs/log-batch"] = HTML
    folder = write(home, *recording(proxy.uri, run_id))
    one = Deliverer(folder)
    for _ in range(calls._TRIES + 3):
        one.advance(trainer_gone=True, hurry=True)
    assert one.status.rejected == {} and "400" in str(one.status.error) and folder.exists()
    proxy.answers.clear()
    while not one.done:
        one.advance(trainer_gone=True, hurry=True)
    check_all(client, run_id, proxy.uri)


@pytest.mark.thorough
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        (401, "text/html", b"You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth"),
        (403, "text/html", b"Permission denied"),
    ],
    ids=["401", "403"],
)
def test_a_token_that_is_revoked_in_mid_run(
    answer: tuple[int, str, bytes], again: bool, proxy: Proxy, home: Path
) -> None:
    """What a server with MLflow's basic-auth answers then: all waits until the token counts again, or for a new one."""
    client = mlflow.MlflowClient(proxy.uri)
    run_id = run_of(client)
    begins, facts, opened, *of_steps, text, epoch, ended = recording(proxy.uri, run_id)
    journal = Journal.create(home)
    journal.append([begins, opened, of_steps[0]])
    one = Deliverer(journal.folder)
    one.advance(hurry=True)
    assert "batch/loss" in client.get_run(run_id).data.metrics
    proxy.answers[""] = answer
    for records in (
        [facts],
        of_steps[1:],
        [text],
        [epoch],
        [],
        [],
        [ended],
    ):  # more often than a call is tried
        journal.append(records)
        one.advance(hurry=True)
        assert one.status.rejected == {} and str(answer[0]) in str(one.status.error)
    journal.close()
    if not again:
        one.close()
        assert str(answer[0]) in str(sync(find_waiting()[0]))
    proxy.answers.clear()
    if again:
        one.advance(trainer_gone=True, hurry=True)
        assert one.done, one.status
    else:
        assert sync(find_waiting()[0]) is None
    check_all(client, run_id, proxy.uri)


def test_a_value_that_a_store_never_answers_to_holds_up_no_other(
    store: str, client: mlflow.MlflowClient, run_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what stands between does that looks into what passes, and cuts it off."""
    real = RunStore.params

    def params(self: RunStore, params: dict[str, str]) -> dict[str, str]:
        if any("select" in value for value in params.values()):
            raise AwayError("the line was cut")
        return real(self, params)

    monkeypatch.setattr(RunStore, "params", params)
    folder = write(home, *recording(store, run_id))
    one = deliver(folder)
    tags = check_all_but_files(client, run_id).data.tags
    assert one.done and "param odd" in str(one.status.error) and folder.exists()
    assert tags["tfmon.delivery"] == "incomplete" and "param odd: the line was cut" in tags["tfmon.refused"]
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 101))
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TFMON_HOME", str(home))
    assert sync(find_waiting()[0]) is None
    assert client.get_run(run_id).data.params["odd"] == "select *"
    check_all(client, run_id, store)
