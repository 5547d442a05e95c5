"""Facts about a tf.data pipeline that are available without running it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.probes.unchanging import effect

# Kinds of steps after which an element still is the batch that `batch` made.
_KEEPS_BATCHES = frozenset(
    ("Prefetch", "Cache", "Map", "ParallelMap", "Filter", "Shuffle", "Repeat", "Take", "TakeWhile", "Skip", "Shard",
     "Options")
)  # fmt: skip
# Kinds that give the same elements every time, run no code of the user's and keep no state: running such a pipeline
# once more changes nothing. `shuffle` is not one: every run of it takes numbers that the training's runs would get.
_REPEATABLE = frozenset(
    ("TensorSlice", "Tensor", "Range", "Batch", "ParallelBatch", "Prefetch", "Take", "Skip", "Shard", "Options", "Zip",
     "Concatenate")
)  # fmt: skip
# The same where what they call has no effect, or where they keep what they have read in memory.
_MAPS = frozenset(("Map", "ParallelMap"))
# Kinds that give each element that they get, as it is.
_GIVES_ALL = frozenset(
    ("TensorSlice", "Batch", "ParallelBatch", "Shuffle", "Prefetch", "Cache", "Repeat", "Options")
)


def kind(dataset: tf.data.Dataset) -> str:
    """The kind of a pipeline's last step, such as "Batch", "Shuffle" or "TensorSlice"."""
    return type(dataset).__name__.lstrip("_").removesuffix("Dataset").rstrip("V12")


def inputs(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    """The pipelines that the last step of a pipeline reads."""
    return list(dataset._inputs())


def steps(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """All steps of a pipeline, the last one first."""
    waiting = [dataset]
    while waiting:
        step = waiting.pop()
        yield step
        waiting.extend(inputs(step))


def batch_size(dataset: tf.data.Dataset) -> int | None:
    """Rows per element: from the element's static shape, or else as the last `batch` was told; None if unknown."""
    shape = getattr(tf.nest.flatten(dataset.element_spec)[0], "shape", None)
    if shape is not None and shape.rank and shape[0] is not None:
        return int(shape[0])
    step = dataset
    while not hasattr(step, "_batch_size"):
        before = inputs(step)
        if kind(step) not in _KEEPS_BATCHES or len(before) != 1:
            return None
        step = before[0]
    size = int(np.max(step._batch_size))
    return size if size > 0 else None


def is_repeatable(dataset: tf.data.Dataset) -> bool:
    """Whether a pipeline may be run without any effect on later runs of it."""
    return all(kind(step) in _REPEATABLE for step in steps(dataset))


def is_readable(dataset: tf.data.Dataset) -> bool:
    """Whether a pipeline's first elements may be read without any effect on later runs of it.

    Unlike `is_repeatable` this takes pipelines that call the user's TensorFlow code, as long as it has no state and
    draws no random number, and those that keep what they have read in memory.
    """
    return all(kind(step) in _REPEATABLE or _is_pure(step) for step in steps(dataset))


def _is_pure(step: tf.data.Dataset) -> bool:
    if kind(step) == "Cache":  # TF 2.16 to 2.21
        return bool(tf.equal(getattr(step, "_filename", "a file"), ""))
    function = getattr(getattr(step, "_map_func", None), "function", None)  # TF 2.16 to 2.21
    return kind(step) in _MAPS and function is not None and not effect(function.graph, random=True)


def tensors(dataset: tf.data.Dataset) -> list[Any]:
    """The tensors in memory that a pipeline starts from; empty if it reads anything else."""
    sources = [step for step in steps(dataset) if not inputs(step)]
    if not all(kind(source) in ("TensorSlice", "Tensor") for source in sources):
        return []
    return [tensor for source in sources for tensor in source._tensors]


def arrays(dataset: tf.data.Dataset) -> tuple[Any, ...]:
    """The tensors in memory that a pipeline's batches are slices of, in the order of its elements; else empty."""
    spec = dataset.element_spec if isinstance(dataset.element_spec, tuple) else (dataset.element_spec,)
    unchanged = all(kind(step) in _GIVES_ALL for step in steps(dataset))
    if not unchanged or not all(isinstance(one, tf.TensorSpec) for one in spec):
        return ()
    found = tuple(tensors(dataset))
    return found if len(found) == len(spec) else ()


def cost(dataset: tf.data.Dataset) -> float:
    """Numbers that running the whole pipeline would bring forth; infinite if that is unknown."""
    cardinality, rows = int(dataset.cardinality()), batch_size(dataset)
    if cardinality < 0 or rows is None:
        return float("inf")
    row = 0
    for spec in tf.nest.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank or None in spec.shape[1:]:
            return float("inf")
        row += spec.shape[1:].num_elements()
    return float(cardinality * rows * row)
