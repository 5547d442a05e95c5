"""The TensorBoard sink: event files that grow while training, for a TensorBoard that looks on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.sinks.sink import Sink, Target
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded, Histograms, Logged, StreamOpened
from mlflow_tfmon.tensorboard.events import EventFile


class EventFiles(Sink):
    """Writes `<run name>-<run id>/train` and `.../validation` into the folder of the target.

    After a crash of the delivery process, steps that come again are written to a further file; TensorBoard shows the
    later ones.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        name = "".join(one if one.isalnum() or one in " -_." else "_" for one in target.run_name or "run")
        self._folder = Path(target.path or "logs", f"{name}-{target.run_id[:8]}")
        self._train = EventFile(self._folder / "train")
        self._validation: EventFile | None = None

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        columns = {name: block.step(name) for name in block.names} | dict(measures)
        prefix, steps, times = block.layout.prefix, block.steps, block.times
        for name, values in columns.items():
            signal = signals.of_step(name)
            if name != "step" and (signal is None or signal.curve):
                self._scalars(f"{prefix}batch_{name}", steps, times, values)

    def deep_steps(self, block: Block) -> None:
        for name in filter(signals.is_drawn, block.quantities):
            for variable, values in zip(block.layout.variables, block.variables(name).T, strict=True):
                tag = f"{name}/{block.layout.prefix}{variable.name}"
                self._scalars(tag, block.steps, block.times, values)

    def histograms(self, layout: StreamOpened, record: Histograms) -> None:
        for row in record.values:
            kinds = row[1:].reshape(len(record.kinds), len(layout.variables), bins.WIDTH)
            for kind, variables in zip(record.kinds, kinds, strict=True):
                for variable, values in zip(layout.variables, variables, strict=True):
                    first, end = bins.trimmed(values[: bins.COUNT])
                    edges = np.clip(bins.EDGES[first : end + 1], *values[-2:])
                    tag = f"{kind}/{layout.prefix}{variable.name}"
                    self._train.histogram(tag, int(row[0]), record.seen, edges, values[first:end])

    def epoch(self, record: EpochEnded) -> None:
        for name, value in record.metrics.items():
            tag = f"{record.prefix}epoch_{name.removeprefix('val_')}"
            file = self._train
            if name.startswith("val_"):
                file = self._validation = self._validation or EventFile(self._folder / "validation")
            if np.isfinite(value):
                file.scalars(tag, [(record.epoch, record.time, value)])

    def logged(self, prefix: str, record: Logged) -> None:
        for name, value in record.values.items():
            self._train.scalars(f"{prefix}batch_{name}", [(record.step, record.time, value)])

    def flush(self, number: int) -> None:
        for file in self._files():
            file.flush()

    def close(self, status: str) -> None:
        for file in self._files():
            file.close()

    def _files(self) -> list[EventFile]:
        return [one for one in (self._train, self._validation) if one is not None]

    def _scalars(self, tag: str, steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> None:
        known = np.isfinite(values)
        points = zip(steps[known].tolist(), times[known].tolist(), values[known].tolist(), strict=True)
        self._train.scalars(tag, points)
