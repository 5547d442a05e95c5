"""The JSON-lines sink: what is recorded as a text file that grows while training, an object a line.

    {"kind": "step", "prefix": "", "step": 7, "loss": 0.31, "learning_rate": 0.001, "grad_norm": 1.2, ...}
    {"kind": "variable", "prefix": "", "step": 50, "variable": "dense.kernel", "weight_norm": 3.1, ...}
    {"kind": "epoch", "prefix": "", "epoch": 0, "step": 400, "loss": 0.4, "val_loss": 0.5}
    {"kind": "logged", "prefix": "", "step": 7, "temperature": 1.0}
    {"kind": "problem", "step": 120, "problem": "exploding_gradient", "severity": "critical", "evidence": "..."}

Each line has the run's id as "run_id". A value that is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_tfmon.sinks.sink import Sink, Target
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded, Logged, Problems

_FLUSHES = 100  # that may follow one another without their records counting as delivered


class JsonLines(Sink):
    """Writes `<run id>-<recording>.jsonl` into the folder of the target."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        folder = Path(target.path or ".")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{target.run_id}-{target.recording}.jsonl"
        self._note = target.notes / "flushed.json"
        noted = json.loads(self._note.read_text()) if self._note.exists() else []
        # How long the file was, by the number of the last record; what was flushed and comes again is not among them.
        self._flushed: list[list[int]] = [one for one in noted if one[0] <= target.delivered]
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(self._flushed[-1][1] if self._flushed else 0)
        self._file = path.open("a", encoding="utf-8")

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        columns = {name: block.step(name) for name in block.names} | dict(measures)
        for at, step in enumerate(block.steps.tolist()):
            row = {name: values[at] for name, values in columns.items()}
            self._write("step", block.layout.prefix, {**row, "step": step})

    def deep_steps(self, block: Block) -> None:
        for at, step in enumerate(block.steps.tolist()):
            for column, variable in enumerate(block.layout.variables):
                row = {name: block.variables(name)[at, column] for name in block.quantities}
                self._write("variable", block.layout.prefix, {"step": step, "variable": variable.name, **row})

    def epoch(self, record: EpochEnded) -> None:
        self._write("epoch", record.prefix, {"epoch": record.epoch, "step": record.step, **record.metrics})

    def logged(self, prefix: str, record: Logged) -> None:
        self._write("logged", prefix, {"step": record.step, **record.values})

    def problems(self, record: Problems) -> None:
        for one in record.found:
            told = {name: one.get(name) for name in ("severity", "evidence", "advice")}
            self._write("problem", "", {"step": record.step, "problem": one.get("kind")} | told)

    def flush(self, number: int) -> None:
        self._file.flush()
        self._flushed = [*self._flushed[-_FLUSHES:], [number, self._file.tell()]]
        draft = self._note.with_suffix(".new")
        draft.write_text(json.dumps(self._flushed))
        os.replace(draft, self._note)  # whatever happens meanwhile, there is a whole one

    def close(self, status: str) -> None:
        if status:  # after the last flush: a sink that comes after a crash writes it again in its place
            self._write("end", "", {"status": status})
        self._file.close()

    def _write(self, kind: str, prefix: str, row: dict[str, Any]) -> None:
        told = {"kind": kind, "run_id": self.target.run_id, "prefix": prefix}
        self._file.write(json.dumps(told | {name: _plain(value) for name, value in row.items()}) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
