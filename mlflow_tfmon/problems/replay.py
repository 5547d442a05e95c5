"""Conversion of records to histories, in the trainer while it runs and in `diagnose` afterwards."""

from __future__ import annotations

import dataclasses

import numpy as np

from mlflow_tfmon.detectors import Gatherer, History
from mlflow_tfmon.detectors.history import ACTIVATIONS, Witness
from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.block import Block

_MIN_EXAMPLES = 16  # a unit that is zero for fewer examples need not be dead


class Replay:
    """Gathers the histories of a recording, one a stream, in bounded memory.

    Example:
        >>> replay = Replay()
        >>> replay.take(record)
        >>> [history.step for prefix, history in replay.histories().items()]
        [900]
    """

    def __init__(self) -> None:
        self._gatherers: dict[int, Gatherer] = {}
        self._layouts: dict[int, records.StreamOpened] = {}
        self._premises: dict[str, Premises] = {}
        self._times: dict[
            int, tuple[float, float, np.ndarray]
        ] = {}  # of a stream's steps: first, last, of late
        self._turning: set[int] = set()  # the streams within which another one made steps

    def take(self, record: records.Record) -> None:
        """Takes the next record; those that hold nothing for a detector are passed over."""
        if isinstance(record, records.StreamOpened):
            gatherer = self._gatherers.setdefault(record.stream, Gatherer())
            gatherer.opened([(one.name, one.size, one.is_kernel) for one in record.variables])
            gatherer.total_steps = record.total_steps
            self._layouts[record.stream] = record
            self._tell()
        elif isinstance(record, records.Steps) and record.stream in self._gatherers:
            block = Block.of(self._layouts[record.stream], record)
            # Clipped gradients, where those before clipping are not known, tell nothing of exploding ones.
            gradients = block.variables("grad_norm") if "grad_norm" in block.quantities else None
            self._gatherers[record.stream].steps(block.names, block.scalars, gradients)
            if "time" in block.names:
                self._turn(record.stream, block.times)
        elif isinstance(record, records.DeepSteps) and record.stream in self._gatherers:
            block = Block.of(self._layouts[record.stream], record)
            quantities = {name: block.variables(name) for name in block.quantities}
            self._gatherers[record.stream].deep(block.step("step"), quantities)
        elif isinstance(record, records.EpochEnded):
            for gatherer in self._of(record.prefix):
                gatherer.epoch(record.epoch, record.step, record.metrics)
        elif isinstance(record, records.Activations):
            told = [
                name for name in ACTIVATIONS if name != "dead_fraction" or record.examples >= _MIN_EXAMPLES
            ]
            layers = {
                one.layer: (one.activation, {name: getattr(one, name) for name in told})
                for one in record.layers
                if not one.output  # which may well be saturated, or zero
            }
            for gatherer in self._of(record.prefix):
                gatherer.activation(record.step, layers)
        elif isinstance(record, records.System):
            for gatherer in list(self._gatherers.values())[:1]:  # of several streams one tells
                gatherer.system(record.step, record.values)
        elif isinstance(record, records.Evidence):
            for gatherer in self._of(record.prefix):
                kind, text = str(record.about.get("kind")), str(record.about.get("text"))
                gatherer.witness(Witness(record.step, kind, text))
        elif isinstance(record, records.Premises):
            self._premises[record.prefix] = Premises.from_dict(record.about)
            self._tell()

    def histories(self, ended: bool = False) -> dict[str, History]:
        """The histories up to now, by the prefix of their stream; `ended` if nothing is to come."""
        if not self._gatherers:  # before the first step, which may never come
            return {prefix: History(premises=premises) for prefix, premises in self._premises.items()}
        found = {}
        for stream, gatherer in list(self._gatherers.items()):
            gatherer.alone = stream not in self._turning
            found[self._layouts[stream].prefix] = gatherer.history(ended)
        turning = {self._layouts[stream].prefix for stream in self._turning} & found.keys()
        for prefix in turning:
            others = {one.rstrip("."): found[one].steps.column("loss") for one in turning - {prefix}}
            found[prefix] = dataclasses.replace(found[prefix], others=others)
        return found

    def restart(self, prefix: str) -> None:
        """Forgets what was measured of a stream: its training begins anew from an earlier state."""
        for gatherer in self._of(prefix):
            gatherer.restart()

    def _tell(self) -> None:
        for stream, layout in self._layouts.items():
            known = self._premises.get(layout.prefix) or self._premises.get(f"{layout.model}.")
            self._gatherers[stream].know(known)

    def _of(self, prefix: str) -> list[Gatherer]:
        return [one for stream, one in self._gatherers.items() if self._layouts[stream].prefix == prefix]

    def _turn(self, stream: int, times: np.ndarray) -> None:
        """Tells by steps' times which streams take turns: blocks come in any order, and of one training at a time."""
        times = times[np.isfinite(times)]
        if not len(times):
            return
        first, last, _ = self._times.get(stream, (np.inf, -np.inf, times))
        now = self._times[stream] = (min(first, times.min()), max(last, times.max()), times)
        for other, known in self._times.items():
            if other != stream:
                self._turning |= {
                    one for one, of, by in ((stream, now, known), (other, known, now)) if _within(by, of)
                }


def _within(by: tuple[float, float, np.ndarray], of: tuple[float, float, np.ndarray]) -> bool:
    return bool(((by[2] > of[0]) & (by[2] < of[1])).any())
