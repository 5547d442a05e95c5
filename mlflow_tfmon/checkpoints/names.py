"""Tags by which checkpoints and versions are found again. Imports neither TensorFlow nor MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable

BEST, LAST, FINAL, ERROR = "best_model", "last_model", "model", "checkpoint_error"
RESUME = "resume_model"  # the last at an epoch's end, from which a training goes on
REGISTERED = "tfmon.registered"  # what became of the registered model
MODELS = "models:/"  # precedes the id of a logged model where there could be a path
EPOCH, STEP, METRIC, VALUE, MODE = "tfmon.epoch", "tfmon.step", "tfmon.metric", "tfmon.value", "tfmon.mode"
WEIGHTS_ONLY = "tfmon.weights_only"  # "true" of a checkpoint that MLflow cannot load
DATASET = "tfmon.dataset"  # digest of the data that the metric was measured on


def pointer(kind: str, prefix: str = "") -> str:
    """The run's tag that holds the id of its best or last model.

    Example:
        >>> pointer(BEST, "generator.")
        'tfmon.generator.best_model'
    """
    return f"tfmon.{prefix}{kind}"


def judged_on(metric: str, dataset_of: Callable[[str], tuple[str, str] | None]) -> dict[str, str]:
    """The tag that says on which data a checkpoint was judged; none if that is not known.

    Args:
        metric: what it was judged by.
        dataset_of: gives name and digest of the dataset that a metric is of.
    """
    data = dataset_of(metric) or dataset_of("")  # a validation split is of the training data
    return {DATASET: data[1]} if data else {}


def name_of(prefix: str = "", best: bool = False) -> str:
    """What the checkpoints of a model are called in MLflow: those that were the best when they were made, and others.

    The newest with a name is what `runs:/<run>/<name>` is, and so what `mlflow.tensorflow.load_checkpoint` finds.

    Example:
        >>> name_of("generator."), name_of(best=True)
        ('generator-checkpoint', 'best-checkpoint')
    """
    return f"{prefix}{'best-' if best else ''}checkpoint".replace(".", "-")


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
