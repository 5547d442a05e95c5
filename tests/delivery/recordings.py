"""Recordings with NumPy's numbers, as a trainer would write them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.records import DeepSteps, Record, RunStarted, Steps, StreamOpened, Variable

VARIABLES = (
    Variable("dense.kernel", (4, 3), True),
    Variable("dense.bias", (3,), False),
    Variable("head.kernel", (3, 2), True),
)
COLUMNS = ("step", "time", "input_wait", "examples", "loss", "learning_rate", "grad_norm")
BEGUN = 1_700_000_000.0
BEGAN = f"{int(BEGUN * 1e3):x}"  # as the names of files say it


def started(uri: str, run_id: str | None = None, **changes: object) -> RunStarted:
    fields: dict[str, object] = {
        "tracking_uri": uri, "registry_uri": uri, "experiment_id": "0", "run_id": run_id, "run_name": "a run",
        "tags": {"who": "test"}, "start_time": BEGUN, "owned": True,
    }  # fmt: skip
    return RunStarted(**{**fields, **changes})  # type: ignore[arg-type]


def layout(total_steps: int | None = None, **changes: object) -> StreamOpened:
    fields: dict[str, object] = {
        "stream": 0, "prefix": "", "variables": VARIABLES, "columns": COLUMNS, "variable_columns": ("grad_norm",),
        "deep_columns": ("weight_norm", "update_ratio"), "total_steps": total_steps, "model": "net",
    }  # fmt: skip
    return StreamOpened(**{**fields, **changes})  # type: ignore[arg-type]


def values(count: int, seed: int = 0, seconds: float = 0.01, first: int = 1) -> np.ndarray:
    """Rows of `COLUMNS` and a gradient norm per variable."""
    rows = np.random.default_rng(seed).uniform(0.1, 1.0, (count, len(COLUMNS) + len(VARIABLES)))
    rows[:, 0] = np.arange(first, first + count)
    rows[:, 1] = BEGUN + seconds * rows[:, 0]
    rows[:, 2] = 0.25 * seconds
    rows[:, 3] = 32.0
    return rows


def blocks(rows: np.ndarray, size: int = 64, stream: int = 0) -> list[Record]:
    return [Steps(stream, BEGUN, rows[at : at + size]) for at in range(0, len(rows), size)]


def deep(steps: np.ndarray, seed: int = 1) -> DeepSteps:
    rows = np.random.default_rng(seed).uniform(0.1, 1.0, (len(steps), 1 + 2 * len(VARIABLES)))
    rows[:, 0] = steps
    return DeepSteps(0, BEGUN, rows)


def write(home: Path, *records: Record) -> Path:
    """A journal of these records, closed."""
    journal = Journal.create(home)
    journal.append(records)
    journal.close()
    return journal.folder


def deliver(
    folder: Path, uri: str | None = None, trainer_gone: bool = True, within: float = 60.0
) -> Deliverer:
    """Delivers a recording in this process, until it is done or nothing more is there."""
    deliverer = Deliverer(folder, uri)
    until = time.monotonic() + within
    while not deliverer.done and time.monotonic() < until:
        deliverer.advance(trainer_gone=trainer_gone, hurry=True)
        if not trainer_gone and deliverer.status.waiting == 0:
            break
    return deliverer
