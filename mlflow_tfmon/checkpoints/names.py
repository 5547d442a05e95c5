"""The tags by which checkpoints and versions are found again. Nothing in here knows TensorFlow or MLflow."""

from __future__ import annotations

import math

BEST, LAST, FINAL, ERROR = "best_model", "last_model", "model", "checkpoint_error"
RESUME = "resume_model"  # the last at an epoch's end, from which a training goes on
REGISTERED = "tfmon.registered"  # what became of the registered model
MODELS = "models:/"  # precedes the id of a logged model where there could be a path
EPOCH, STEP, METRIC, VALUE, MODE = "tfmon.epoch", "tfmon.step", "tfmon.metric", "tfmon.value", "tfmon.mode"


def pointer(kind: str, prefix: str = "") -> str:
    """The run's tag that holds the id of its best or last model.

    Example:
        >>> pointer(BEST, "generator.")
        'tfmon.generator.best_model'
    """
    return f"tfmon.{prefix}{kind}"


def tags_of(epoch: int, step: int, metric: str, value: float | None, more: bool) -> dict[str, str]:
    """What a checkpoint is, as tags of its logged model.

    Args:
        epoch: its epoch.
        step: optimizer steps done.
        metric: what it was judged by.
        value: what that was; None, or not finite, where there is nothing to judge by.
        more: whether more of it is better.
    """
    tags = {EPOCH: str(epoch), STEP: str(step)}
    if value is not None and math.isfinite(value):
        tags |= {METRIC: metric, VALUE: repr(float(value)), MODE: "max" if more else "min"}
    return tags
