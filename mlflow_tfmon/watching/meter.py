"""Meter of what a training takes of the machine: processor, memory, and the GPUs that it may use."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mlflow_tfmon.errors import contained

SECONDS = 10.0  # between two samples
_MB = 1e6
_CGROUP = Path("/sys/fs/cgroup")


class Meter:
    """Samples the machine every ten seconds, at the first look after they have passed.

    Args:
        record: takes a sample: values by name.
        gpu: whether this training has a GPU.
    """

    def __init__(self, record: Callable[[Mapping[str, float]], None], gpu: bool) -> None:
        self._record = record
        self._due = 0.0
        self._last: tuple[float, float] | None = None  # when it looked, and the processor time by then
        self._gpu = gpu
        self._gpus: list[Any] = []

    def look(self) -> None:
        """Takes a sample if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + SECONDS
        with contained("sampling the machine", "its use is not recorded"):
            processes = _processes()
            spent = _processor_seconds(processes)
            before, self._last = self._last, (now, spent)
            if before is None:
                self._gpus = _gpus() if self._gpu else []
                return
            # A worker that has ended takes its time away.
            values = {"process_cpu_percent": 100 * max(0.0, spent - before[1]) / (now - before[0])}
            values["process_memory_mb"] = sum(map(_memory, processes)) / _MB
            values["memory_free_mb"] = free_memory() / _MB
            values |= _of_gpus(self._gpus)
            self._record({f"system/{name}": value for name, value in values.items()})


def _processes() -> list[psutil.Process]:
    """This process and what it has started: the workers that read its data."""
    own = psutil.Process()
    with contextlib.suppress(psutil.Error, OSError):
        return [own, *own.children(recursive=True)]
    return [own]


def _processor_seconds(processes: list[psutil.Process]) -> float:
    spent = 0.0
    for one in processes:
        with contextlib.suppress(psutil.Error, OSError):
            times = one.cpu_times()
            spent += times.user + times.system
    return spent


def _memory(process: psutil.Process) -> int:
    """Bytes that a process alone has in memory: files that it maps are not among them."""
    with contextlib.suppress(psutil.Error, OSError):
        found = process.memory_info()
        return int(found.rss - getattr(found, "shared", 0))
    return 0


def free_memory(cgroup: Path = _CGROUP) -> float:
    """Bytes that are free for this process: of the machine, or within its container's limit (cgroup, version 2)."""
    free = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = float((cgroup / "memory.max").read_text())  # "max" where there is none
        held = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        current = float((cgroup / "memory.current").read_text()) - float(held.get("inactive_file", 0))
        free = min(free, max(0.0, limit - current))
    return free


def _gpus() -> list[Any]:
    """NVML's handles of the GPUs that this process may use; none without its driver."""
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        if shown is None:
            return [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
        names = [name.strip() for name in shown.split(",") if name.strip()]
        return [
            pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        ]
    return []


def _of_gpus(handles: list[Any]) -> dict[str, float]:
    """How busy the GPUs are on average, and what is used of their memory in all."""
    found: dict[str, float] = {}
    with contextlib.suppress(Exception):
        import pynvml

        busy = [float(pynvml.nvmlDeviceGetUtilizationRates(one).gpu) for one in handles]
        used = [float(pynvml.nvmlDeviceGetMemoryInfo(one).used) for one in handles]
        if busy:
            found = {"gpu_percent": sum(busy) / len(busy), "gpu_memory_mb": sum(used) / _MB}
    return found
