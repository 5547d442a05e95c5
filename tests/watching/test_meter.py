"""Tests of the meter of the machine, with real processes; NVML is a stand-in, where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from mlflow_tfmon.watching import meter
from mlflow_tfmon.watching.meter import Meter, free_memory

_HOLDS = "held = bytearray(80_000_000); print('ready', flush=True); input()"


def _sampled(gpu: bool = False) -> list[dict[str, float]]:
    """What two looks give, the second of which ends a sample."""
    found: list[dict[str, float]] = []
    one = Meter(lambda values: found.append(dict(values)), gpu)
    for _ in range(2):
        one._due = 0.0
        one.look()
    return found


def test_the_memory_of_workers_counts() -> None:
    (before,) = _sampled()
    child = subprocess.Popen([sys.executable, "-c", _HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        (after,) = _sampled()
    finally:
        child.kill()
        child.communicate()
    assert after["system/process_memory_mb"] - before["system/process_memory_mb"] > 75
    assert set(after) == {"system/process_cpu_percent", "system/process_memory_mb", "system/memory_free_mb"}
    own = psutil.Process().memory_info()
    assert before["system/process_memory_mb"] == pytest.approx((own.rss - own.shared) / 1e6, rel=0.2)


def test_processor_time_is_that_of_a_core() -> None:
    found: list[dict[str, float]] = []
    one = Meter(lambda values: found.append(dict(values)), False)
    one.look()
    assert not found  # nothing was used since
    begun = psutil.Process().cpu_times().user
    while psutil.Process().cpu_times().user - begun < 0.3:
        np.linalg.svd(np.ones((60, 60)))
    one.look()
    assert not found  # too soon
    one._due = 0.0
    one.look()
    assert 0 < found[0]["system/process_cpu_percent"] <= 110 * (psutil.cpu_count() or 1)


def test_a_containers_limit_is_what_is_free(tmp_path: Path) -> None:
    machine = free_memory(tmp_path)  # without a limit
    assert machine == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 500000000\ninactive_file 300000000\n")
    assert free_memory(tmp_path) == pytest.approx(machine, rel=0.2)
    (tmp_path / "memory.max").write_text("700000000\n")
    assert free_memory(tmp_path) == 100e6  # files that nobody needs make room
    (tmp_path / "memory.max").write_text("500000000\n")
    assert free_memory(tmp_path) == 0


@pytest.mark.parametrize(("shown", "busy"), [(None, 55.0), ("1", 80.0), ("GPU-a", 30.0), ("", None)])
def test_gpus_are_those_that_this_process_may_use(
    shown: str | None, busy: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = {"GPU-a": 30, "GPU-b": 80}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: len(uses),
        nvmlDeviceGetHandleByIndex=lambda at: list(uses)[at], nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetUtilizationRates=lambda one: SimpleNamespace(gpu=uses[one]),
        nvmlDeviceGetMemoryInfo=lambda one: SimpleNamespace(used=1e9),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    (found,) = _sampled(gpu=True)
    assert found.get("system/gpu_percent") == busy
    assert found.get("system/gpu_memory_mb") == (
        None if busy is None else 2000.0 if shown is None else 1000.0
    )


def test_without_nvml_there_is_nothing_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert not [name for name in _sampled(gpu=True)[0] if "gpu" in name]


def test_a_sample_is_taken_each_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found: list[object] = []
    one = Meter(found.append, False)
    for _ in range(61):
        one.look()
        now[0] += 1.0
    assert len(found) == 6
