"""Test of the runner that Databricks has for several workers: one run, with each step that both have written down."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.promises.test_launchers import check

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    find_spec("spark_tensorflow_distributor") is None,
    reason="needs Spark: pip install pyspark spark-tensorflow-distributor, and Java",
)
def test_every_step_is_in_one_run(store: str, home: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
    environment |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    del environment["MLFLOW_TFMON_EXIT_WAIT"]
    command = [sys.executable, "-m", "tests.spark_training", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    check(store, tmp_path)
