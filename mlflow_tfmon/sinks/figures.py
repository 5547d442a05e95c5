"""Figures of a training as they stand, for the sinks of dashboards: step, rate, loss, the machine, problems, lag."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np

from mlflow_tfmon.sinks.sink import Sink, Target
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded, Problems, System

_OF_STEP = {
    "step": "Optimizer steps done",
    "loss": "Loss of the last step",
    "learning_rate": "Learning rate of the last step",
    "grad_norm": "Norm of the last step's gradient, before clipping",
    "examples_per_second": "Examples a second in the last step",
    "steps_per_second": "Steps a second, without pauses such as validation",
    "last_step_time_seconds": "When the last step was done, Unix time",
}
_OF_MACHINE = {  # as in MLflow, after "system/"
    "process_cpu_percent": "Processor time of the training's processes; 100 is one core",
    "process_memory_mb": "Memory of these processes",
    "memory_free_mb": "Memory that is free for them",
    "gpu_percent": "How busy the training's GPUs are, on average",
    "gpu_memory_mb": "Memory in use on them",
}
RUN = ("run_id", "run_name")  # labels of all figures
# Of each figure what it is, and its labels after those of the run. "stream" is "" where a run has one optimizer.
FIGURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{name: (about, ("stream",)) for name, about in _OF_STEP.items()},
    "epochs": ("Epochs done", ("stream",)),
    "epoch_metric": ("Metric of the last epoch, such as val_loss", ("stream", "metric")),
    **{name: (about, ()) for name, about in _OF_MACHINE.items()},
    "problems": ("How many problems stand", ("severity",)),
    "problem_first_step": ("Since which step a problem stands", ("kind", "severity")),
    "delivery_lag_seconds": ("Age of the oldest step that MLflow lacks; 0 if it has all", ()),
}
Reading = tuple[str, tuple[str, ...], float]  # name and labels, as in `FIGURES`, and value


class Figures(Sink):
    """Keeps the last value of each figure; a dashboard's sink asks for `readings`, from any thread."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._lock = threading.Lock()
        self._streams: dict[int, tuple[str, dict[str, float]]] = {}
        self._epochs: dict[str, EpochEnded] = {}
        self._machine: dict[str, float] = {}
        self._problems: tuple[tuple[str, str, float], ...] = ()  # kind, severity, first step
        self._oldest: float | None = None  # time of the first step that is not in MLflow

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        if not len(block):
            return
        last = block.last | {name: float(values[-1]) for name, values in measures.items()}
        last["last_step_time_seconds"] = float(block.times[-1])
        spans = measures.get("step_time_ms", np.empty(0))
        if np.isfinite(spans).any():
            last["steps_per_second"] = 1e3 / float(spans[np.isfinite(spans)].mean())
        found = {name: last[name] for name in _OF_STEP if name in last}
        with self._lock:
            _, known = self._streams.get(block.layout.stream, ("", {}))
            self._streams[block.layout.stream] = block.layout.prefix.rstrip("."), known | found
            if self._oldest is None:
                self._oldest = float(block.times[0])

    def epoch(self, record: EpochEnded) -> None:
        with self._lock:
            self._epochs[record.prefix.rstrip(".")] = record

    def system(self, record: System) -> None:
        found = {name.removeprefix("system/"): value for name, value in record.values.items()}
        with self._lock:
            self._machine = {name: value for name, value in found.items() if name in _OF_MACHINE}

    def problems(self, record: Problems) -> None:
        found = tuple(
            (str(one["kind"]), str(one["severity"]), float(one["first_step"])) for one in record.found
        )
        with self._lock:
            self._problems = found

    def flush(self, number: int) -> None:
        with self._lock:
            self._oldest = None

    def readings(self) -> Iterator[Reading]:
        """All figures as they stand."""
        with self._lock:
            streams, epochs = list(self._streams.values()), list(self._epochs.items())
            machine, problems, oldest = self._machine, self._problems, self._oldest
        for stream, found in streams:
            yield from ((name, (stream,), value) for name, value in found.items())
        for stream, record in epochs:
            yield "epochs", (stream,), float(record.epoch + 1)
            yield from (("epoch_metric", (stream, name), value) for name, value in record.metrics.items())
        yield from ((name, (), value) for name, value in machine.items())
        for severity in ("critical", "warning"):
            yield "problems", (severity,), float(sum(one == severity for _, one, _ in problems))
        yield from (("problem_first_step", (kind, severity), step) for kind, severity, step in problems)
        yield "delivery_lag_seconds", (), 0.0 if oldest is None else max(0.0, time.time() - oldest)
