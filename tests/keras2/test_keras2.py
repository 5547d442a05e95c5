"""Tests of Keras 2 (`tf_keras`), as `tf.keras` and beside Keras 3: a process can have only one of the two setups."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("tf_keras") is None, reason="tf_keras is not installed")
@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("tests", "legacy"), [("legacy.py", "1"), ("beside.py", "0")])
def test_keras_2(tests: str, legacy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / tests)],
        env={**os.environ, "TF_USE_LEGACY_KERAS": legacy},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
