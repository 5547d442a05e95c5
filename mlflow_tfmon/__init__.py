"""The training monitor and debugger for TensorFlow that lives inside MLflow.

Nothing is imported until it is used, since the delivery process needs parts of this package without TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_tfmon.checkpoints.promote import promote
    from mlflow_tfmon.detectors.problem import Problem
    from mlflow_tfmon.errors import SettingError
    from mlflow_tfmon.integration import autolog
    from mlflow_tfmon.problems.plugins import Detector
    from mlflow_tfmon.reading.batches import find_batch
    from mlflow_tfmon.reading.recorded import load_run
    from mlflow_tfmon.report.comparison import compare
    from mlflow_tfmon.sinks.sink import Sink
    from mlflow_tfmon.watching.callback import MonitorCallback
    from mlflow_tfmon.watching.loops import end_run
    from mlflow_tfmon.watching.monitor import Monitor
    from mlflow_tfmon.watching.range_test import LearningRateRangeTest

__version__ = "0.1.0"
__all__ = [
    "Detector",
    "LearningRateRangeTest",
    "Monitor",
    "MonitorCallback",
    "Problem",
    "SettingError",
    "Sink",
    "autolog",
    "compare",
    "end_run",
    "find_batch",
    "load_run",
    "promote",
]

_HOMES = {
    "autolog": "integration",
    "MonitorCallback": "watching.callback",
    "SettingError": "errors",
    "end_run": "watching.loops",
    "Monitor": "watching.monitor",
    "LearningRateRangeTest": "watching.range_test",
    "find_batch": "reading.batches",
    "load_run": "reading.recorded",
    "promote": "checkpoints.promote",
    "Problem": "detectors.problem",
    "Detector": "problems.plugins",
    "Sink": "sinks.sink",
    "compare": "report.comparison",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
