"""Shapes and types of a model's input and output, and MLflow schemas of them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import tensorflow as tf
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import FitArguments

_logger = logging.getLogger(__name__)
_EXAMPLE_ROWS = 5


def spec_of(data: Any) -> Any:
    """The `tf.TensorSpec` (rows unknown) of an array or tensor, or a dict of them; None for anything else."""
    if isinstance(data, dict):
        specs = {key: spec_of(part) for key, part in data.items()}
        return specs if specs and None not in specs.values() else None
    if isinstance(data, (np.ndarray, tf.Tensor)) and len(data.shape):
        return tf.TensorSpec((None, *data.shape[1:]), data.dtype)
    return None


def schema(spec: Any) -> Schema | None:
    """MLflow's schema of a spec or array, a dict or a tuple of them (names "0", "1", …); None if there is none."""
    if isinstance(spec, tuple):
        spec = {str(i): part for i, part in enumerate(spec)}
    named = spec if isinstance(spec, dict) else {None: spec}
    fields = []
    for name, part in named.items():
        if not isinstance(part, (np.ndarray, tf.Tensor, tf.TensorSpec)) or not part.shape:
            return None
        sizes = tuple(-1 if size is None else int(size) for size in part.shape[1:])
        fields.append(TensorSpec(_numpy_type(part.dtype), (-1, *sizes), name))
    return Schema(fields) if fields else None


def _numpy_type(dtype: Any) -> np.dtype:
    if isinstance(dtype, np.dtype):
        return np.dtype({"U": "str", "S": "bytes"}.get(dtype.char, dtype))  # of strings of any length
    return np.dtype(tf.as_dtype(dtype).as_numpy_dtype)


def input_spec(arguments: FitArguments | None, model: Any) -> Any:
    """What the model takes as input: from the training data's type, or else from the model itself.

    Args:
        arguments: the call of fit, or None for a training without one.
        model: the model, built.

    Returns:
        A `tf.TensorSpec` or a dict of them, rows unknown; None if unknown or a list. No data are read.
    """
    x = None if arguments is None else arguments.x
    if isinstance(x, tf.data.Dataset):
        element = x.element_spec
        spec = element[0] if isinstance(element, tuple) else element
        parts = list(spec.values()) if isinstance(spec, dict) else [spec]
        if all(isinstance(part, tf.TensorSpec) and part.shape.rank for part in parts):
            free = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in parts]
            return dict(zip(spec, free, strict=True)) if isinstance(spec, dict) else free[0]
    elif x is not None:
        spec = spec_of(x)
        if spec is not None or isinstance(x, (list, tuple)):
            return spec
    inputs = getattr(model, "inputs", None)
    if inputs and len(inputs) == 1:
        return tf.TensorSpec((None, *inputs[0].shape[1:]), inputs[0].dtype)
    return None


def input_example(arguments: FitArguments | None) -> Any:
    """The first rows (5 at most) of the training data as an array or a dict of arrays.

    Returns:
        None where the data cannot be read without an effect on the training: generators, PyDatasets, and pipelines
        that shuffle, run code or read files.
    """
    x = None if arguments is None else arguments.x
    if isinstance(x, tf.data.Dataset):
        if not pipelines.is_repeatable(x):
            return None
        x = next(iter(x), None)
        x = x[0] if isinstance(x, tuple) else x
    if isinstance(x, dict):
        rows = {key: _first_rows(part) for key, part in x.items()}
        return None if any(part is None for part in rows.values()) else rows
    return _first_rows(x)


def _first_rows(data: Any) -> np.ndarray | None:
    if isinstance(data, (np.ndarray, tf.Tensor)) and len(data.shape):
        return np.array(data[:_EXAMPLE_ROWS])
    return None


def signature(spec: Any, model: Any, trace: bool = True) -> ModelSignature | None:
    """The model's signature for inputs of a spec.

    The output's shape and type are found by tracing the model: a prediction would move the random state of layers that
    draw numbers in inference too.

    Args:
        spec: from `input_spec`.
        model: the model, built.
        trace: whether nothing else uses the model meanwhile. If something does, the model's own account of its outputs
            is taken, if it has one of a single output.

    Returns:
        The signature, without outputs where they are a list or cannot be traced; None without a spec.
    """
    inputs = None if spec is None else schema(spec)
    if inputs is None:
        return None
    outputs = None
    if not trace:
        known = getattr(model, "outputs", None) or []
        if len(known) == 1:
            outputs = schema(tf.TensorSpec((None, *known[0].shape[1:]), known[0].dtype))
        return ModelSignature(inputs=inputs, outputs=outputs)
    try:
        infer = tf.function(lambda x: model(x, training=False), autograph=False)
        outputs = schema(infer.get_concrete_function(spec).structured_outputs)
    except Exception:
        _logger.debug("The model's output could not be traced.", exc_info=True)
    return ModelSignature(inputs=inputs, outputs=outputs)
