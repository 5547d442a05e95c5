"""Detector of training steps that TensorFlow traces again and again."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem


def detect(history: History, *, min_traces: int = 20, min_share: float = 0.1) -> Iterator[Problem]:
    """Finds steps that were traced at least 20 times, and at a tenth of all steps.

    A last batch of another size, or a dozen sequence lengths, is not reported. TensorFlow itself warns after five
    retraces in a row.

    Args:
        history: the training up to some step.
        min_traces: least number of traces.
        min_share: least number of traces as a share of the steps.
    """
    traces = history.steps.column("traces")
    if not len(traces):
        return
    count = int(traces.most.max())
    if count >= min_traces and count >= min_share * history.step:
        yield Problem(
            "retracing", "warning", int(traces.first[0]), (),
            f"The training step was traced {count} times in {history.step} steps; each trace costs as much as "
            "hundreds of steps.",
            "Pass tensors instead of Python numbers to the step, create the tf.function once, outside the loop, and "
            "pad batches to a few shapes (tf.function(reduce_retracing=True), drop_remainder=True).",
            history.step, 0.95,
        )  # fmt: skip
