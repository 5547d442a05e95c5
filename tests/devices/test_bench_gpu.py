"""Tests of `make bench-gpu` on a CPU: its results are there, and those of a training are correct."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import WATCHERS, WAYS
from benchmarks.watchers import ONLY_FIT
from tests.notebooks import ROOT


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_rehearsal_of_the_benchmark_on_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--steps", "1", "--repeats", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["cost"]) == {f"{way}, 1 ms" for way in WAYS} and found["rehearsal"]
    for case, one in found["cost"].items():
        expected = [name for name in WATCHERS if "loop" not in case or name not in ONLY_FIT]
        assert list(one["watchers"]) == expected
        for name, figures in one["watchers"].items():
            assert figures["step_ms"][0] > 0 and figures["peak_mb"] > 0
            assert name in done.stdout
        assert one["watchers"]["unwatched"]["ratio"] == [1, 1, 1]
    for way, one in found["truth"].items():
        assert one["true"] and one["same_weights"], f"{way}: {one}"
        assert f"{way:20} true" in done.stdout


@pytest.mark.thorough
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "sees no GPU here" in done.stderr.splitlines()[-1] and "--rehearse" in done.stderr.splitlines()[-1]
