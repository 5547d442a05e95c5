"""Messages to a user whose training, or whose values, are not as they should be."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from mlflow_tfmon import cluster, kerases
from mlflow_tfmon.checkpoints.best import Best
from mlflow_tfmon.errors import SettingError, logger, say_once
from mlflow_tfmon.probes import all_rings, tape
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.translation.series import charted, patterns_of

# `fit` has a batch reduced as a whole, of which TensorFlow takes single tensors alone once there are several workers
# (Keras 3.15, TF 2.21).
_FAILS = re.compile(r"""\.reduce\(\s*['"]MEAN['"],\s*maybe_distributed_data_batch\b""")


def say_that_fit_fails(model: Any) -> None:
    """Says, before Keras does so in other words, that its `fit` cannot train with several workers.

    Args:
        model: that is to be fitted.
    """
    strategy, place = getattr(model, "distribute_strategy", None), cluster.place()
    if (
        not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        or place is None
        or place.count < 2
    ):
        return
    source = ""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        source = inspect.getsource(type(model)._maybe_symbolic_build)
    if kerases.of(model) is keras and _FAILS.search(source):
        say_once(
            "fit of several workers",
            f"mlflow_tfmon: the fit of Keras {keras.version()} fails under MultiWorkerMirroredStrategy with several "
            "workers, monitored or not (keras issue 20585): use Keras 2 (pip install tf_keras, and "
            "TF_USE_LEGACY_KERAS=1 before TensorFlow is imported), or a custom loop.",
        )


def say_what_is_missing(model: Any, steps: int, best: Best) -> None:
    """Says what a training that is done has come without.

    Args:
        model: that was trained, or None for whatever is trained.
        steps: how many optimizer steps were seen.
        best: its best epoch.
    """
    if not steps:
        logger.warning("mlflow_tfmon: no optimizer step was seen: %s", _why_no_steps(model))
    complaint = best.complaint()
    if complaint:
        logger.warning(complaint)


def _why_no_steps(model: Any) -> str:
    if model is not None and not model.trainable_variables:
        return "the model has no trainable weights (or was not built); unfreeze a layer."
    if model is not None and getattr(model, "optimizer", True) is None:
        return "the model has no optimizer; pass one to model.compile, or train it with a Keras optimizer."
    if tape.applied(None if model is None else model.trainable_variables):
        return (
            "an optimizer got gradients, but made no step, or none that could be measured (a failure, if any, "
            "was logged above)."
        )
    return _not_applied() or (
        "no Keras optimizer was applied, or the training step had been traced before monitoring began; call "
        "mlflow_tfmon.autolog() or start the Monitor before the step is first called."
    )


def _not_applied() -> str:
    names = tape.not_applied()
    if not names:
        return ""
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"gradients of {some} were computed, but not applied by a Keras optimizer: updates by other means "
        "(assign_sub, tf.compat.v1.train, SciPy) are not seen; apply them with a Keras optimizer, such as "
        "keras.optimizers.SGD(rate).apply_gradients."
    )


def say_what_was_not_seen() -> None:
    """Says, at the end of a script, why nothing of it was recorded, if it took gradients of losses."""
    why = "" if any(ring.written() for ring in all_rings()) else _not_applied()
    if why:
        logger.warning("mlflow_tfmon: no training step was recorded: %s", why)


def say_what_is_not_matched(setting: str, variables: Sequence[Variable]) -> None:
    """Says, once, that the setting `variables` matches none of those that an optimizer trains."""
    if setting and variables and not charted(variables, len(variables), patterns_of(setting)):
        names = ", ".join(one.name for one in variables[:3]) + (", …" if len(variables) > 3 else "")
        say_once(
            f"variables {setting}",
            f"mlflow_tfmon: variables={setting!r} matches none of the variables {names}: they have no series in "
            "MLflow; '*' stands for any part of a name, as in '*.kernel'.",
        )


def plain_epoch(epoch: Any) -> int:
    """The number of an epoch.

    Raises:
        SettingError: it is not a whole number from 0.
    """
    if isinstance(epoch, bool) or not hasattr(epoch, "__index__") or int(epoch) < 0:
        raise SettingError(f"epoch={epoch!r}: epoch must be a whole number, 0 or more.")
    return int(epoch)


def plain_numbers(values: Mapping[str, Any], what: str) -> dict[str, float]:
    """A user's figures as floats.

    Args:
        values: numbers, or tensors of one number.
        what: the call that they were given to, for the message.

    Raises:
        SettingError: one of them is not a number.
    """
    numbers = {}
    for name, value in values.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError):
            raise SettingError(f"{what}({name}={value!r}): {name} must be a number.") from None
    return numbers
