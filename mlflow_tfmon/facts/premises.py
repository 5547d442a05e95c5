"""Collection of the facts that are known before the first step: model, loss, optimizer, a sample of the data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.detectors.sample import Sample, mixed
from mlflow_tfmon.errors import contained
from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.facts.layers import is_graph, layers_of, norm_momentum, normalizes
from mlflow_tfmon.probes.alone import alone
from mlflow_tfmon.probes.goal import KERAS, goal_of
from mlflow_tfmon.stream import coding, records

_BATCH_SIZE = 32  # Keras's own
_MOST_BATCHES = 1000  # of which it is looked at how labels are mixed


def premises_of(
    model: Any,
    inputs: Any = None,
    targets: Any = None,
    *,
    val_inputs: Any = None,
    val_targets: Any = None,
    weighted: bool = False,
    in_order: bool = False,
    batch_size: int = 32,
    drawn: bool = True,
) -> Premises:
    """What is known of a training before its first step.

    Args:
        model: a built Keras model, with its initial weights.
        inputs: of the data, as an array; None if unknown. Only what is in memory is looked at: a dataset is never read.
        targets: the same.
        val_inputs: of the validation data, the same.
        val_targets: the same.
        weighted: whether examples or classes are weighted, by whatever.
        in_order: whether the examples are fed as they come in the arrays.
        batch_size: examples of a batch, where they are.
        drawn: whether its kernels are as they were drawn, not trained within the run.

    Example:
        >>> premises_of(model, x, y).loss
        'sparse_categorical_crossentropy'
    """
    goal = goal_of(model)
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # within what scales the loss
    return Premises(
        layers=layers_of(model, drawn),
        loss=goal.name,
        goal=goal.about,
        from_logits=goal.from_logits,
        optimizer=class_of(inner),
        learning_rate=rate_of(optimizer),
        clips=any(
            getattr(inner, name, None) is not None for name in ("clipnorm", "clipvalue", "global_clipnorm")
        ),
        normalizes=normalizes(model),
        graph=is_graph(model),
        inputs=_sample(inputs, targets=False),
        targets=None if goal.ignores else _in_batches(_sample(targets), targets, batch_size, in_order),
        val_inputs=_sample(val_inputs, targets=False),
        val_targets=None if goal.ignores else _sample(val_targets),
        weighted=weighted or not goal.plain or goal.ignores or masked(model),
        in_order=in_order,
        trained_before=number_of(getattr(optimizer, "iterations", None)) > 0,
        norm_momentum=norm_momentum(model),
    )


def loss_name(model: Any) -> str:
    """The name of the loss that a model is compiled with, in snake case; "" for one of the user's own, or several."""
    return goal_of(model).name


def class_of(optimizer: Any) -> str:
    """Keras's class of an optimizer, or that which one of the user's own is made of; "" for none."""
    names = [one.__name__ for one in type(optimizer).__mro__ if one.__module__.split(".")[0] in KERAS]
    if not names or names[0].endswith("Optimizer"):
        names = [type(optimizer).__name__]
    return "" if optimizer is None else names[0]


def number_of(value: Any) -> float:
    """A value as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def rate_of(optimizer: Any) -> float:
    """An optimizer's learning rate; NaN where only the user's own code would tell it, which may count its calls."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(inner, "_learning_rate", None)
    if rate is None:  # of Keras 2's legacy optimizers
        rate = getattr(inner, "_hyper", {}).get("learning_rate")
    if callable(rate) and type(rate).__module__.split(".")[0] not in KERAS:
        return float("nan")
    return number_of(getattr(optimizer, "learning_rate", None))


def _sample(values: Any, targets: bool = True) -> Sample | None:
    if isinstance(values, (pd.DataFrame, pd.Series)):
        values = values.to_numpy()
    known = isinstance(values, np.ndarray) or (tf.is_tensor(values) and hasattr(values, "numpy"))
    return Sample.of(values, targets) if known else None


def _in_batches(sample: Sample | None, labels: Any, size: int, in_order: bool) -> Sample | None:
    """A sample of labels with how they are mixed in the batches that they come in."""
    if (
        sample is None
        or not in_order
        or not sample.class_counts
        or (sample.columns > 1 and not sample.one_hot)
    ):
        return sample
    array = np.asarray(labels)
    # Of very many, batches at even distances.
    starts = np.arange(0, len(array), size)[:: max(1, len(array) // (size * _MOST_BATCHES))]
    return dataclasses.replace(sample, mixed=mixed([array[at : at + size] for at in starts]))


def _data(arguments: FitArguments | None) -> dict[str, Any]:
    """Inputs and targets of a fit, as far as they are in memory, and whether its examples are weighted."""
    if arguments is None:
        return {}
    x, y, weighted = in_memory(arguments.x, arguments.y)
    val_x, val_y, _ = in_memory(*_pair(arguments.validation_data))
    if arguments.validation_data is None and arguments.validation_split and _splits(x) and _splits(y):
        first = math.floor(len(x) * (1 - arguments.validation_split))  # as Keras splits, without shuffling
        (x, val_x), (y, val_y) = ((one[:first], one[first:]) for one in (x, y))
    weighted |= arguments.sample_weight is not None or bool(arguments.values.get("class_weight"))
    in_order = arguments.values.get("shuffle") is False and _splits(arguments.x)
    batch_size = arguments.values.get("batch_size") or _BATCH_SIZE
    return {
        "inputs": x, "targets": y, "val_inputs": val_x, "val_targets": val_y, "weighted": weighted,
        "in_order": in_order, "batch_size": int(batch_size),
    }  # fmt: skip


def in_memory(x: Any, y: Any = None) -> tuple[Any, Any, bool]:
    """The arrays of a dataset that is a slice of them, whatever else as it is; whether its examples have weights."""
    if not isinstance(x, tf.data.Dataset):
        return x, y, False
    elements = x.element_spec if isinstance(x.element_spec, tuple) else ()
    x, y, *_ = (*pipelines.arrays(x), None, None)
    return x, y, len(elements) == 3


def _pair(validation: Any) -> tuple[Any, Any]:
    """Inputs and targets as `validation_data` has them."""
    if isinstance(validation, (tuple, list)):
        return (*validation, None, None)[:2]
    return validation, None


def _splits(values: Any) -> bool:
    return isinstance(values, (np.ndarray, pd.DataFrame, pd.Series)) and values.ndim > 0


def masked(model: Any) -> bool:
    """Whether some of the positions of a model's output may not count."""
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) < 3:
        return False
    return any(
        getattr(one, "mask_zero", False) or type(one).__name__ == "Masking" for one in model._flatten_layers()
    )


class Telling:
    """Tells what is known of a model's training, once, while its weights are the initial ones.

    A model that is built by its first call has weights when the step has been traced, and before it runs: so this is
    asked when the training starts, and when its first optimizer is seen.

    Attributes:
        arguments: of the call of fit, where there is one that is known.

    Args:
        model: the model, or None.
    """

    def __init__(self, model: Any) -> None:
        self.arguments: FitArguments | None = None
        self._model = model
        self._told = model is None
        self._told_of: FitArguments | None = None
        self._found = Premises()

    @property
    def told(self) -> bool:
        """Whether there is nothing to tell."""
        return self._told

    def tell(self, prefix: str, recorded: int = 0, drawn: bool = True) -> tuple[records.Premises, ...]:
        """The record, if there is something new to tell.

        Args:
            prefix: that of the model's series.
            recorded: how many of the model's steps are in the run: what it learned in these is known.
            drawn: whether kernels are as they were drawn, as far as the run knows.
        """
        # Within a replica's thread no variable can be read.
        if (
            self._told
            or not self._model.built
            or (not tf.distribute.in_cross_replica_context() and tf.distribute.has_strategy())
        ):
            return ()
        with alone(), contained("examining model and data", "some problems may be found later or not at all"):
            self._told, self._told_of = True, self.arguments
            found = premises_of(self._model, **_data(self.arguments), drawn=drawn)
            found = dataclasses.replace(found, trained_before=found.trained_before and not recorded)
            self._found = found
            return (records.Premises(coding.plain(found), prefix, recorded),)
        return ()

    def tell_more(self, prefix: str, recorded: int, **found: Any) -> records.Premises:
        """The record with what became known of a training after the rest was told.

        Args:
            prefix: that of the series.
            recorded: as above.
            **found: fields of `Premises`.
        """
        self._found = dataclasses.replace(self._found, **found)
        return records.Premises(coding.plain(self._found), prefix, recorded)

    @property
    def found(self) -> Premises:
        """What was told."""
        return self._found

    def again(self) -> None:
        """A fit begins: of which it may have been told already, when its monitor was started."""
        known = self.arguments is not None and self._told_of is self.arguments
        self._told = self._model is None or (self._told and known)
