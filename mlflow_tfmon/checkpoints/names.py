"""Tags by which checkpoints and versions are found again. Imports neither TensorFlow nor MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable

from mlflow_tfmon.tags import DATASET, EPOCH, METRIC, MODE, STEP, VALUE

BEST, LAST, FINAL, ERROR = "best_model", "last_model", "model", "checkpoint_error"
RESUME = "resume_model"  # the last at an epoch's end, from which a training resumes
MODELS = "models:/"  # prefix of a logged model's id where a path is also possible


def judged_on(metric: str, dataset_of: Callable[[str], tuple[str, str] | None]) -> dict[str, str]:
    """Returns the tag with the data on which a checkpoint was evaluated; none if unknown.

    Args:
        metric: the metric by which it is compared.
        dataset_of: returns name and digest of a metric's dataset.
    """
    data = dataset_of(metric) or dataset_of("")  # a validation split comes from the training data
    return {DATASET: data[1]} if data else {}


def name_of(prefix: str = "", best: bool = False) -> str:
    """Returns the name of a model's checkpoints in MLflow: of those that were the best when made, or of others.

    `runs:/<run>/<name>`, and therefore `mlflow.tensorflow.load_checkpoint`, finds the newest of that name.

    Example:
        >>> name_of("generator."), name_of(best=True)
        ('generator-last', 'best')
    """
    return f"{prefix}{'best' if best else 'last'}".replace(".", "-")


def tags_of(epoch: int, step: int, metric: str, value: float | None, more: bool) -> dict[str, str]:
    """Returns the tags that describe a checkpoint, for its logged model.

    Args:
        epoch: its epoch.
        step: optimizer steps done.
        metric: the metric by which it is compared.
        value: its value; None or non-finite if there is none.
        more: whether higher values are better.
    """
    tags = {EPOCH: str(epoch), STEP: str(step)}
    if value is not None and math.isfinite(value):
        tags |= {METRIC: metric, VALUE: repr(float(value)), MODE: "max" if more else "min"}
    return tags
