"""Tests of the message about a store that does not answer."""

import socket

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_tfmon.uris import absolute, in_a_line


@pytest.fixture
def error(monkeypatch) -> MlflowException:
    """MLflow's own, of a server that is not there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MlflowException) as raised:
        MlflowClient(f"http://127.0.0.1:{port}").search_experiments()
    return raised.value


def test_the_server_and_the_reason(error):
    assert "HTTPConnectionPool" in str(error)
    said = in_a_line(error)
    assert said.startswith("no answer from http://127.0.0.1:") and said.endswith(
        ": Failed to establish a new connection: [Errno 111] Connection refused"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "API request to https://me:pw@example.org/api/2.0/x failed with exception "
            "HTTPSConnectionPool(host='example.org', port=443): Read timed out. (read timeout=5)",
            "no answer from https://example.org: Read timed out. (read timeout=5)",
        ),
        (
            "API request to http://e.org/api/2.0/x failed with exception HTTPConnectionPool(host='e.org', "
            "port=80): Max retries exceeded with url: /api/2.0/x (Caused by ResponseError('too many 500 error "
            "responses'))",
            "no answer from http://e.org: too many 500 error responses",
        ),
        ("API request to endpoint /api/2.0/x failed with error code 403", "API request to endpoint /api/2.0/x failed "
         "with error code 403"),
        ("", "Exception"),
    ],
)  # fmt: skip
def test_other_errors(text, said):
    assert in_a_line(Exception(text)) == said


def test_a_folder_is_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("file:my%20runs", "file:./my%20runs", f"file://{tmp_path}/my%20runs"):
        assert absolute(uri) == (tmp_path / "my runs").as_uri()
    assert absolute("runs") == str(tmp_path / "runs")
