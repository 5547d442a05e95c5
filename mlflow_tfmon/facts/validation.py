"""The first examples of a fit's validation data, read without any effect on the training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import FitArguments


class NoExamplesError(Exception):
    """There are no examples that may be read; the message says why, in a clause."""


def first_examples(arguments: FitArguments | None, count: int) -> tuple[Any, Any]:
    """Inputs and targets (None if there are none) of the first validation examples: arrays, nested as the data are.

    Args:
        arguments: of the call of fit; None if they are not known.
        count: how many, at most.

    Raises:
        NoExamplesError: there are none, or reading them would change something.
    """
    if arguments is None:
        raise NoExamplesError("validation data are known only in model.fit() under autolog()")
    data, first = arguments.validation_data, 0
    if data is None and arguments.validation_split:
        data = arguments.x, arguments.y
        rows = [len(one) for one in tf.nest.flatten(data[:1]) if hasattr(one, "__len__")]
        first = math.floor(min(rows, default=0) * (1 - arguments.validation_split))  # as Keras splits
    if data is None:
        raise NoExamplesError("the fit has no validation data")
    if isinstance(data, tf.data.Dataset):
        return _of_pipeline(data, count)
    pair = (*data, None)[:2] if isinstance(data, (tuple, list)) else (data, None)
    return _rows(pair, first, count)


def _rows(pair: tuple[Any, Any], first: int, count: int) -> tuple[Any, Any]:
    def rows(values: Any) -> Any:
        if values is None:
            return None
        if isinstance(values, (pd.DataFrame, pd.Series)):
            return values.iloc[first : first + count].to_numpy()
        if not isinstance(values, np.ndarray) and not hasattr(values, "numpy"):
            raise NoExamplesError(f"the validation data are a {type(values).__name__}, which is not read")
        return np.asarray(values[first : first + count])

    inputs, targets = (tf.nest.map_structure(rows, one) for one in pair)
    return inputs, targets


def _of_pipeline(dataset: tf.data.Dataset, count: int) -> tuple[Any, Any]:
    in_memory = pipelines.arrays(dataset)
    if in_memory:  # also of one that is shuffled
        return _rows((*in_memory, None)[:2], 0, count)
    if not pipelines.is_readable(dataset):
        raise NoExamplesError(
            "the validation dataset shuffles, draws random numbers or calls Python, so reading it again could change "
            "the training"
        )
    found: list[Any] = []
    for element in dataset:
        parts = element[:2] if isinstance(element, tuple) else (element,)
        if not all(isinstance(one, tf.Tensor) for one in tf.nest.flatten(parts)):
            raise NoExamplesError("the validation data are ragged or sparse")
        found.append(tf.nest.map_structure(lambda one: one.numpy(), parts))
        if sum(len(tf.nest.flatten(one)[0]) for one in found) >= count:
            break
    if not found:
        raise NoExamplesError("the validation data are empty")
    parts = tf.nest.map_structure(lambda *all_: np.concatenate(all_)[:count], *found)
    return (*parts, None)[:2]
