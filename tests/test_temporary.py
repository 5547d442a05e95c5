"""Tests of temporary folders: deleted with their process, or by the next one if it was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_tfmon.temporary import Folder

HOLDS = """
import time
from pathlib import Path
from mlflow_tfmon.temporary import Folder
held = Folder()
Path(held.name, "steps.parquet").write_text("telemetry")
print(held.name, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def process(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder."""
    command = [sys.executable, "-c", HOLDS]
    one = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert one.stdout is not None
    return one, Path(one.stdout.readline().strip())


@pytest.mark.skipif(os.name != "posix", reason="nothing tells of who uses a folder there")
def test_what_a_killed_process_leaves_is_deleted_by_the_next(tmp_path: Path) -> None:
    killed, left = process(tmp_path)
    living, held = process(tmp_path)
    try:
        assert stat.S_IMODE(left.stat().st_mode) == 0o700 and tmp_path in left.parents
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with Folder() as name:
            assert not left.exists() and (held / "steps.parquet").exists() and Path(name).is_dir()
            with Folder() as other:
                assert Path(name).is_dir() and other != name
        assert not Path(name).exists() and held.exists()
    finally:
        for one in (killed, living):
            one.kill()
            one.wait()
    Folder().cleanup()
    assert not held.exists()


def test_a_folder_of_somebody_elses_is_not_used(tmp_path: Path) -> None:
    with Folder() as name:
        place = Path(name).parent.parent
    place.chmod(0o777)
    with Folder() as name:
        assert Path(name).is_dir() and place not in Path(name).parents
