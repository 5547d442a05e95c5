"""Tests of the creation of a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

OPEN = "import sys; from mlflow_tfmon.tracking.store import open_store; open_store(sys.argv[1])"


@pytest.mark.thorough
def test_processes_that_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    """All get it, and nothing of ours is left beside it."""
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"]
    openers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [opener.communicate()[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0, 0, 0], said
    assert sum("Creating initial MLflow database tables" in text for text in said) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


@pytest.mark.slow
def test_a_database_is_made_without_a_line_for_each_step(tmp_path, capfd):
    """MLflow 3.1 has alembic write them to stderr; in a process of its own, for that is how its logging is set up."""
    subprocess.run([sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/mlflow.db"], check=True)
    assert "Running upgrade" not in capfd.readouterr().err and (tmp_path / "mlflow.db").exists()
