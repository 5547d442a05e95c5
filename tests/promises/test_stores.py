"""Tests of checkpoints and the registry in common stores: MLflow's server, and PostgreSQL."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.checkpoints.test_checkpoints import check_best_and_last, every_epoch  # noqa: F401
from tests.servers import Server, free_port

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"it ended with status {process.returncode}")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own, which does not run as root."""
    # Not within pytest's folder: each pytest that begins closes that to other users.
    with (
        tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder,
        _postgres(Path(folder)) as found,
    ):
        yield found


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    initdb = shutil.which("initdb") or (programs and programs / "initdb")
    if not initdb or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL (Debian package postgresql) or psycopg2 is not installed")
    prefix: list[str] = []
    if os.getuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        prefix = ["runuser", "-u", "postgres", "--"]
    data, port = folder / "data", free_port()
    make = [*prefix, str(initdb), "-D", str(data), "-A", "trust", "-U", "mlflow", "--no-sync"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    binary = str(Path(initdb).resolve().with_name("postgres"))
    serve = [*prefix, binary, "-D", str(data), "-p", str(port), "-k", str(folder), "-F"]
    with subprocess.Popen(serve, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()


@pytest.fixture(params=["server over SQLite", "PostgreSQL"])
def uri(request: Any, store: str, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "server"
    folder.mkdir()
    if request.param == "PostgreSQL":
        with postgres() as found:
            yield found
    else:
        one = Server(folder, store.replace("mlflow.db", "served.db"))
        yield one.uri
        one.kill()


def test_the_best_and_the_last_of_a_fit(uri: str, fresh: None, tmp_path: Path, every_epoch: Any) -> None:  # noqa: F811
    mlflow.set_tracking_uri(uri)
    location = None if uri.startswith("http") else (tmp_path / "artifacts").as_uri()
    mlflow.create_experiment("checkpoints", artifact_location=location)
    mlflow.set_experiment("checkpoints")
    check_best_and_last(tmp_path, every_epoch)
