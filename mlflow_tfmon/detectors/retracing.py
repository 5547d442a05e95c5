"""A training step that TensorFlow builds anew again and again."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem

_TRACES = 20
_SHARE = 0.1


def detect(history: History) -> Iterator[Problem]:
    """Sees a step that was traced 20 times, and at a tenth of the steps at least.

    A last batch of another size, or a dozen lengths of sequences, is none. TensorFlow itself warns of five in a row.
    """
    traces = history.steps.column("traces")
    if not len(traces):
        return
    count = int(traces.most.max())
    if count >= _TRACES and count >= _SHARE * history.step:
        yield Problem(
            "retracing", "warning", int(traces.first[0]), (),
            f"The training step was traced {count} times in {history.step} steps; each time costs as much as "
            f"hundreds of "
            "steps.",
            "Give the step tensors instead of Python numbers, make the tf.function once, not in the loop, and "
            "pad batches "
            "to few shapes (tf.function(reduce_retracing=True), drop_remainder=True).",
            history.step, 0.95,
        )  # fmt: skip
