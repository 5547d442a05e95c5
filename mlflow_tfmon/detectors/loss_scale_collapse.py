"""Detector of gradients that are too large for float16, so that the loss scale collapses."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem


def detect(
    history: History, *, min_scale: float = 1.0, max_skipped: float = 0.5, min_steps: int = 20
) -> Iterator[Problem]:
    """Finds loss scales that were halved until they are below 1, and trainings half of whose steps are left out.

    Loss scaling multiplies the loss so that small float16 gradients do not become 0, and halves the factor whenever a
    gradient is not finite, which is expected now and then. A factor below 1 does the opposite of what it is for: the
    gradients themselves are too large for float16 (above 65,504), or not finite. Source: Micikevicius et al., 2018.

    Args:
        history: the training up to some step.
        min_scale: least harmless loss scale.
        max_skipped: largest harmless share of left-out steps, in the second half of the steps so far.
        min_steps: steps before which nothing is reported about left-out ones.
    """
    scale, skipped = history.steps.column("loss_scale"), history.steps.column("skipped")
    if not len(scale) or not len(skipped):
        return
    now = float(scale.least[-1, 0])
    late = float(skipped.since(history.at(0.5)).mean.mean()) if history.step > history.start else 0.0
    begun = skipped.first[skipped.most[:, 0] > 0]
    collapsed = now < min_scale
    stuck = late > max_skipped and history.step - history.start >= min_steps
    if not len(begun) or not (collapsed or stuck):
        return
    yield Problem(
        "loss_scale_collapse", "critical", int(begun[0]), (),
        f"The loss scale fell from {scale.most[0, 0]:.3g} to {now:.3g} (threshold: {min_scale:g}), and {late:.0%} of "
        f"the latest steps were left out (threshold: {max_skipped:.0%}): "
        + ("the gradients themselves are too large for float16, and at this scale small ones become 0."
           if collapsed and not stuck else "in float16 the gradients are not finite."),
        'Use "mixed_bfloat16" instead of "mixed_float16" (keras.config.set_dtype_policy), which needs no loss scale. '
        'If the GPU has no bfloat16, compute the last layer and the loss in float32 (dtype="float32"); if that does '
        "not help either, train in float32 to find the values that are not finite.",
        history.step, 0.9,
    )  # fmt: skip
