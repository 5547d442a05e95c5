"""Search for problems while a training runs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable

from mlflow_tfmon.detectors import History, Problem
from mlflow_tfmon.detectors.thresholds import Chosen
from mlflow_tfmon.errors import contained, logger
from mlflow_tfmon.problems.current import Standing
from mlflow_tfmon.problems.plugins import others
from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.stream import records

_PAUSE_S = 1.0  # s between two judgements, at least
_FREE_S = 0.2  # s of processor time that judgements may take before `_MAX_SHARE` counts: for short trainings
_MAX_SHARE = 0.01  # of one core's time, for all judgements
_MAX_URGENT_SHARE = 0.05  # the same at epochs' ends, where a training is to be stopped


class Watch:
    """Periodic diagnosis of one run's recording, on the thread that calls it.

    Attributes:
        on_new: told of each new problem, on that thread.
        chosen: as in the setting `detectors`.

    Args:
        append: takes records (the recording's).
        chosen: as in the setting `detectors`.
    """

    def __init__(self, append: Callable[[records.Record], None], chosen: Chosen | None = None) -> None:
        self._append = append
        self.on_new: list[Callable[[Problem], None]] = []
        self._replay = Replay()
        self.chosen = chosen
        self._standing = Standing(others(), chosen)
        self._lock = threading.Lock()
        self._judging = threading.Lock()
        self._due = self._soonest = 0.0  # monotonic time
        self._changed = False
        self._spent = 0.0  # s of processor time
        self._step = 0
        self._recorded: tuple[Problem, ...] | None = None

    @property
    def problems(self) -> list[Problem]:
        """Those that stand."""
        return self._standing.problems

    @property
    def found(self) -> dict[tuple[str, str], Problem]:
        """What is the matter now, by the prefix of a stream and the kind."""
        return self._standing.found

    @property
    def histories(self) -> dict[str, History]:
        """The trainings as they were judged last, by the prefix of the stream."""
        return self._standing.histories

    def go_on(self, replay: Replay, standing: Standing) -> None:
        """Goes on from what was recorded, and found, of the training before it was interrupted."""
        with self._judging, self._lock:
            self._replay, self._standing = replay, standing

    def take(self, out: Iterable[records.Record]) -> None:
        """Takes what is recorded."""
        with contained("gathering data for the detectors", "problems may go unnoticed"), self._lock:
            for record in out:
                self._replay.take(record)
                self._changed |= isinstance(
                    record,
                    (records.Steps, records.EpochEnded, records.Premises, records.Evidence, records.System),
                )

    def look(self, urgent: bool = False) -> None:
        """Judges what was recorded if something was and the last judgement is long enough ago.

        Args:
            urgent: whether something is about to be done about it.
        """
        if self._changed and time.monotonic() >= (self._soonest if urgent else self._due):
            self._judge(final=False)

    def learned(self, prefix: str) -> float:
        """How far a stream has come: see `detectors.learning.Learning`."""
        return self._standing.learned.get(prefix, float("nan"))

    def history(self, prefix: str) -> History:
        """A stream's training as it was judged last; an empty one before."""
        return self._standing.histories.get(prefix, History())

    def restart(self, prefix: str) -> None:
        """Diagnoses a stream's training from here on as a new one."""
        with self._judging, self._lock:
            self._replay.restart(prefix)
            self._standing.restart(prefix)

    def finish(self, ended: bool = False) -> None:
        """Diagnoses everything that was recorded.

        Args:
            ended: whether nothing is to come, and nothing interrupted the training.
        """
        self._judge(final=True, ended=ended)

    def _judge(self, final: bool, ended: bool = False) -> None:
        new: list[Problem] = []
        with contained("diagnosing the training", "problems may go unnoticed"), self._judging:
            start = time.thread_time()  # waiting for a busy machine is no cost
            with self._lock:
                self._changed = False
                histories = self._replay.histories(ended)
            if not histories:
                return
            self._step = max(history.step for history in histories.values())
            new = self._standing.judge(histories)
            for problem in new:
                logger.warning("mlflow_tfmon: step %d: %s", problem.said_at, problem.line())
            self._record(final)
            spent = time.thread_time() - start
            self._spent += spent
            self._due = time.monotonic() + max(_PAUSE_S, spent / _MAX_SHARE if self._spent > _FREE_S else 0.0)
            self._soonest = time.monotonic() + spent / _MAX_URGENT_SHARE
        for problem in new:  # without the lock: who is told may end the run, which judges once more
            for told in self.on_new:
                told(problem)

    def _record(self, final: bool) -> None:
        found = tuple(self.problems)
        kinds = [one.kind for one in found]
        known = None if self._recorded is None else [one.kind for one in self._recorded]
        if kinds != known or (final and found != self._recorded):
            self._recorded = found
            self._append(
                records.Problems(self._step, time.time(), tuple(dataclasses.asdict(one) for one in found))
            )
