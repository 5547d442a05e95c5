"""Tests with a server slower than the initial time limit of a call: it gets more time, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import RunEnded
from mlflow_tfmon.tracking import patience
from tests.servers import Between, Server

pytestmark = pytest.mark.thorough


@pytest.fixture
def slow(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    server = Server(tmp_path, store)
    one = Between(server.port)
    monkeypatch.setattr(Between, "SLOW", 1.5)
    one.fault = "slow"
    yield one
    one.close()
    server.kill()


def test_a_slow_server_is_given_more_time(
    slow: Between, store: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")  # so that what is set now is undone
        monkeypatch.delenv(name)
    for name in ("_call", "_quick"):
        monkeypatch.setattr(patience, name, getattr(patience, name))
    patience.be_quick(1)
    folder = write(
        home, started(slow.uri, None), layout(), *blocks(values(100)), RunEnded(BEGUN, "FINISHED", True)
    )
    assert deliver(folder).done
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))
