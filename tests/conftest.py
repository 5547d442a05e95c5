"""Fixtures of all tests: a quiet MLflow, a store for each test, and a home for its recordings."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

# Before TensorFlow or MLflow is imported by any test, and inherited by the processes that tests start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["MLFLOW_TFMON_RAISE_ERRORS"] = "1"  # an error of ours fails the test it occurs in
os.environ["MLFLOW_AUTOLOGGING_TESTING"] = "true"  # and MLflow checks how we behave
os.environ["MLFLOW_TFMON_DELIVERY_WAIT"] = "60"  # a busy machine is no outage
os.environ["MLFLOW_TFMON_EXIT_WAIT"] = "0"  # though the tests may run in a container
os.environ["MLFLOW_TFMON_REPORT"] = "false"  # it takes delivery seconds: the fixture `reports` has them made
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


# Fixtures that take seconds, and so make each test slow that asks for them: other processes that train or serve.
_SLOW_FIXTURES = {"examples", "project_store", "script", "server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left with it at the end."""
    for item in items:
        if _SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("thorough") is None)


@pytest.fixture(autouse=True, scope="module")
def environment_of_the_module() -> Iterator[None]:
    """What a module's fixtures set is gone when it ends."""
    with _environment_restored():
        yield


@pytest.fixture(autouse=True)
def environment_of_the_test(environment_of_the_module: None) -> Iterator[None]:
    """`mlflow.set_experiment` writes to the environment, which another test's process would inherit."""
    with _environment_restored():
        yield


@contextmanager
def _environment_restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store that MLflow has migrated: that takes seconds, so it is done once."""
    from mlflow_tfmon.tracking.store import open_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tracking URI of a SQLite store with its artifacts beside it, new for each test."""
    # An experiment that an earlier test set is in that test's store.
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    path = tmp_path / "mlflow.db"
    shutil.copyfile(store_template, path)
    with closing(sqlite3.connect(path)) as connection:
        location = (tmp_path / "artifacts").as_uri()
        connection.execute("UPDATE experiments SET artifact_location = ?", (location,))
        connection.commit()
    return f"sqlite:///{path}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all recordings, new for each test."""
    path = tmp_path / "home"
    monkeypatch.setenv("MLFLOW_TFMON_HOME", str(path))
    yield path


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are made, as they are by default."""
    monkeypatch.delenv("MLFLOW_TFMON_REPORT")


@pytest.fixture
def fresh(store: str, home: Path) -> Iterator[None]:
    """MLflow at the test's own store, with nothing said yet; afterwards nothing is watched and no run is active."""
    import mlflow

    import mlflow_tfmon
    from mlflow_tfmon import errors

    mlflow.set_tracking_uri(store)
    errors._said.clear()
    yield
    mlflow_tfmon.autolog(disable=True)
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture(autouse=True)
def nothing_stays_watched() -> Iterator[None]:
    """A test that leaves the probes in would be felt by the next."""
    yield
    probes = sys.modules.get("mlflow_tfmon.probes")
    left = list(probes._users) if probes is not None else []
    for user in left:
        probes.remove(user)
        if user in sys.modules["mlflow_tfmon.watching.claims"].active:
            user.end()
    assert not left, f"still watching: {left}"
