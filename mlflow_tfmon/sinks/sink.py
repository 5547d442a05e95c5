"""The interface of a sink: one more place to which the delivery process writes what is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded, Histograms, Logged, Problems, StreamOpened, System


@dataclass(frozen=True)
class Target:
    """What a sink writes of, and where to.

    Attributes:
        path: what follows the sink's name in the setting `sinks`, such as a folder; "" where nothing does.
        run_id: the MLflow run.
        run_name: its name, or None.
        recording: unique among the recordings of a run (a training that was resumed has several), and in their order.
        notes: a folder of the sink's own, which is there until the recording has been delivered in full: for what a new
            sink has to know after a crash.
        delivered: number of the last record that does not come again; a sink may have flushed more before a crash.
    """

    path: str = ""
    run_id: str = ""
    run_name: str | None = None
    recording: str = ""
    notes: Path = Path()
    delivered: int = 0


class Sink:
    r"""One more place to write to. Subclass it, and override what it writes.

    A sink lives in the delivery process, one for each recording, and is called in the order of the records. Whatever
    it raises is contained: it is named in the run's tag `tfmon.refused`, and keeps no other sink from its work. A write
    that takes long holds up delivery, never the training.

    What was written counts once `flush` has returned. After a crash of the delivery process the records after
    `Target.delivered` come again, to a new sink.

    A package offers its sink by an entry point of the group `mlflow_tfmon.sinks`, whose name is used in the setting.

    Args:
        target: what it writes of, and where to.

    Example:
        >>> class Losses(Sink):
        ...     def steps(self, block, measures):
        ...         with open(self.target.path, "a") as file:
        ...             print(*block.step("loss"), sep="\n", file=file)
    """

    def __init__(self, target: Target = Target()) -> None:  # it is frozen
        self.target = target

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        """Takes optimizer steps.

        Args:
            block: their rows, read by name.
            measures: what is computed of them: "step_time_ms" and the like, shape (rows,); NaN where it is not known.
        """

    def deep_steps(self, block: Block) -> None:
        """Takes the signals that are recorded of each variable every `deep_every` steps."""

    def histograms(self, layout: StreamOpened, record: Histograms) -> None:
        """Takes histograms of weights and gradients.

        Args:
            layout: of the stream: its prefix and variables.
            record: with a row for each step, kind and variable; `stream.bins` has the edges.
        """

    def epoch(self, record: EpochEnded) -> None:
        """Takes the metrics of an epoch."""

    def logged(self, prefix: str, record: Logged) -> None:
        """Takes what the user has logged at a step.

        Args:
            prefix: of the stream, as in `StreamOpened`.
            record: step, time and values.
        """

    def system(self, record: System) -> None:
        """Takes what the training takes of the machine, every 10 s."""

    def problems(self, record: Problems) -> None:
        """Takes the problems of the training as they stand; they take the place of those before."""

    def flush(self, number: int) -> None:
        """Brings all that was taken to where it is safe.

        Args:
            number: of the last record that was taken.
        """

    def close(self, status: str) -> None:
        """Ends its work, after the last flush.

        Args:
            status: how the recording ended: "FINISHED", "FAILED" or "KILLED"; "" where it goes on elsewhere.
        """
