"""Rows, batches and steps of a fit, as far as they can be known before it runs."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import FitArguments

_logger = logging.getLogger(__name__)
_DEFAULT_BATCH_SIZE = 32  # what Keras takes for arrays


def batch_size(arguments: FitArguments) -> int | None:
    """The batch size that fit really uses.

    Returns:
        Rows per batch: as given for arrays, or else Keras's default for them; from the pipeline for tf.data; from the
        attribute `batch_size` of a PyDataset. None if unknown, as for a generator: nothing is ever read to find out.

    Example:
        >>> batch_size(bind_fit(keras.Model.fit, model, (x, y), {}))
        32
    """
    x = arguments.x
    try:
        if isinstance(x, tf.data.Dataset):
            return pipelines.batch_size(x)
        if isinstance(x, kerases.every("utils.Sequence")):
            # Its first batch would tell too, but making it may draw random numbers (augmentation) and take its time.
            size = getattr(x, "batch_size", None)
            return int(size) if size else None
        rows = _training_rows(arguments)
        if rows is None:
            return None
        if arguments.batch_size:
            return int(arguments.batch_size)
        if arguments.steps_per_epoch:
            return math.ceil(rows / arguments.steps_per_epoch)
        return _DEFAULT_BATCH_SIZE
    except Exception:
        _logger.debug("The batch size is not known in advance.", exc_info=True)
        return None


def total_steps(arguments: FitArguments) -> int | None:
    """The optimizer steps that fit will make if nothing stops it early and gradients are not accumulated.

    Returns:
        The number of steps over all epochs of the call, or None if it cannot be known beforehand.

    Example:
        >>> total_steps(bind_fit(keras.Model.fit, model, (np.ones((100, 4)), np.ones(100)), {"epochs": 2}))
        8
    """
    try:
        # BackupAndRestore moves the first epoch of an interrupted training this way.
        first = getattr(arguments.model, "_initial_epoch", None) or arguments.initial_epoch
        epochs = max(int(arguments.epochs) - int(first), 0)
        batches, per_epoch = _batches(arguments), arguments.steps_per_epoch
        if not per_epoch:
            return None if batches is None else batches * epochs
        # An execution of Keras 3 runs all its steps, past the epoch's last one too, as long as there is data.
        keras_3 = isinstance(arguments.model, keras.Model)
        at_once = int(getattr(arguments.model, "steps_per_execution", None) or 1) if keras_3 else 1
        per_epoch = math.ceil(per_epoch / at_once) * at_once
        return per_epoch * epochs if batches is None else _steps_of_finite_data(per_epoch, epochs, batches)
    except Exception:
        _logger.debug("The number of steps is not known in advance.", exc_info=True)
        return None


def rows(data: Any) -> int | None:
    """Rows of arrays (or of a list, tuple or dict of them); None for anything else."""
    lengths = set()
    for leaf in tf.nest.flatten(data):
        shape = getattr(leaf, "shape", None)
        if leaf is None:
            continue
        if shape is None or not len(shape) or shape[0] is None:
            return None
        lengths.add(int(shape[0]))
    return lengths.pop() if len(lengths) == 1 else None


def _training_rows(arguments: FitArguments) -> int | None:
    count = rows(arguments.x)
    if count is None or not arguments.validation_split or arguments.validation_data is not None:
        return count
    return math.floor(count * (1.0 - arguments.validation_split))


def _batches(arguments: FitArguments) -> int | None:
    """Batches that the data hold; None if unknown or without end."""
    x = arguments.x
    if isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset)):
        cardinality = int(x.cardinality() if callable(x.cardinality) else x.cardinality)
        return cardinality if cardinality >= 0 else None
    if isinstance(x, kerases.every("utils.Sequence")):  # a `PyDataset`, as Keras 3 calls it
        batches = x.num_batches if hasattr(x, "num_batches") else len(x)
        return None if batches is None else int(batches)
    count, size = _training_rows(arguments), batch_size(arguments)
    return None if count is None or size is None else math.ceil(count / size)


def _steps_of_finite_data(per_epoch: int, epochs: int, batches: int) -> int:
    """With `steps_per_epoch`, the data go on from epoch to epoch; the epoch in which they end is cut short."""
    total = used = 0
    for _ in range(epochs):
        steps = min(per_epoch, batches - used)
        total += steps
        used = 0 if used + steps >= batches else used + steps
    return total
