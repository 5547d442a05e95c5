"""Detector of workers that do not go on, while the others wait for them."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem


def detect(history: History) -> Iterator[Problem]:
    """Finds workers that were not waiting in TensorFlow when a training had stalled, or did not answer; or had died.

    Whether it has stalled, and where each worker is, the trainer looks itself (`watching.stalls`). What is found is
    withdrawn when steps come again. That a worker has died tells the error with which TensorFlow ends the others.

    Args:
        history: the training up to some step.
    """
    if history.stopped:
        who, seconds = " and ".join(history.stopped), max(history.stopped.values())
        yield Problem(
            "worker_stopped", "critical", history.step, (),
            f"Training stopped after step {history.step}: {who} did not continue; the others have waited "
            f"{seconds:.0f} s.",
            f"See where {who} is, in tfmon/stacks.txt, and in its log: a dataset of another length, an input that "
            "hangs, code that one worker runs alone, a process that was stopped or is gone. Then restart all workers, "
            'with resume="latest".',
            history.step, 0.9,
        )  # fmt: skip
