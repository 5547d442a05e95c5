"""Datasets of a fit, as MLflow's dataset inputs describe them."""

from __future__ import annotations

import functools
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.facts.specs import schema
from mlflow_tfmon.internals import find
from mlflow_tfmon.stream.records import DatasetUsed

if TYPE_CHECKING:
    from mlflow.data.dataset_source import DatasetSource

_logger = logging.getLogger(__name__)
# MLflow's digest of a tf.data pipeline runs the pipeline; below these bounds that takes some 25 ms.
_MAX_NUMBERS = 500_000
_MAX_ELEMENTS = 20


def datasets(arguments: FitArguments) -> tuple[DatasetUsed, ...]:
    """Describes the training and validation data of a fit without using them up.

    Args:
        arguments: the call.

    Returns:
        One record for the training data ("train") and one for `validation_data` ("eval"), each with name, digest,
        source, schema and profile as `mlflow.tensorflow.autolog` gives them. Data that MLflow has no description for
        (generators, PyDatasets, lists, data frames) are left out.

    Example:
        >>> [used.context for used in datasets(bind_fit(keras.Model.fit, model, (x, y), {}))]
        ['train']
    """
    source = _here()
    data = [("train", arguments.x, arguments.y)]
    validation = arguments.validation_data
    if isinstance(validation, (tuple, list)) and validation:
        data.append(("eval", validation[0], validation[1] if len(validation) > 1 else None))
    elif validation is not None:
        data.append(("eval", validation, None))
    found = []
    for context, features, targets in data:
        try:
            description = describe(features, targets, source)
        except Exception:
            _logger.debug("The %s data could not be described.", context, exc_info=True)
            continue
        if description is None:
            _logger.debug("Cannot describe %s data of type %s.", context, type(features).__name__)
        else:
            found.append(DatasetUsed(dataset=description, context=context))
    return tuple(found)


@functools.cache
def _here() -> DatasetSource:
    """The program, which stays the same: MLflow looks for what tells of it in the whole environment."""
    return _source(find("mlflow.tracking.context.registry.resolve_tags")())


def _source(tags: dict[str, str]) -> DatasetSource:
    source: DatasetSource = find("mlflow.data.code_dataset_source.CodeDatasetSource")(tags=tags)
    return source


def _digest(*parts: Any) -> str:
    return str(find("mlflow.data.digest_utils.compute_numpy_digest")(*parts))


def describe(features: Any, targets: Any, source: DatasetSource) -> dict[str, str] | None:
    """What `mlflow.data.Dataset.to_dict()` says of arrays, tensors or a pipeline; None for anything else."""
    if isinstance(features, tf.data.Dataset):
        profile: dict[str, Any] = {"features_cardinality": int(features.cardinality())}
        return _entry(source, _pipeline_digest(features), features.element_spec, None, profile)
    given = [features] if targets is None else [features, targets]
    if all(tf.is_tensor(part) and hasattr(part, "numpy") for part in given):
        profile = {
            f"{name}_cardinality": int(np.prod(part.shape, dtype=np.int64))
            for name, part in zip(("features", "targets"), given, strict=False)
        }
    elif all(_is_arrays(part) for part in given):
        profile = {
            f"{name}_{what}": {key: getattr(array, what) for key, array in part.items()}
            if isinstance(part, dict)
            else getattr(part, what)
            for name, part in zip(("features", "targets"), given, strict=False)
            for what in ("shape", "size", "nbytes")
        }
    else:
        return None
    digest = _digest(*(_heads(part) for part in given))
    return _entry(source, digest, features, targets, profile)


def _entry(source: DatasetSource, digest: str, features: Any, targets: Any, profile: Any) -> dict[str, str]:
    entry = {
        "name": "dataset",
        "digest": digest,
        "source": source.to_json(),
        "source_type": source._get_source_type(),
        "profile": json.dumps(profile),
    }
    features_schema = schema(features)
    if features_schema is not None:
        targets_schema = None if targets is None else schema(targets)
        both = find("mlflow.data.schema.TensorDatasetSchema")(features_schema, targets_schema)
        entry["schema"] = json.dumps(both.to_dict())
    return entry


def _is_arrays(data: Any) -> bool:
    parts = list(data.values()) if isinstance(data, dict) else [data]
    return bool(parts) and all(isinstance(part, np.ndarray) for part in parts)


class _Head:
    """Stands in for an array in MLflow's digest, which looks at its shape and its first numbers only.

    MLflow itself copies the whole array for these few, which takes as much memory again and, at 300 MB, 80 ms.
    """

    def __init__(self, array: Any) -> None:
        self.shape = tuple(array.shape)
        self._array = array

    def flatten(self) -> np.ndarray:
        head = self._array
        if self.shape:
            rows = find("mlflow.data.digest_utils.MAX_ROWS")
            head = head[: -(-rows // max(int(np.prod(self.shape[1:], dtype=np.int64)), 1))]
        return np.asarray(head).flatten()


def _heads(data: Any) -> Any:
    return {key: _Head(array) for key, array in data.items()} if isinstance(data, dict) else _Head(data)


def _pipeline_digest(dataset: tf.data.Dataset) -> str:
    """MLflow's own digest where running the pipeline is quick and has no effect; else one of what is known of it.

    MLflow runs every pipeline to its end before the training: that never ends for one that repeats, takes as long as an
    epoch's input, and changes the training, since a `shuffle` goes on in its random numbers and a generator in its
    state. So other pipelines are told apart by the structure of their elements, their length, the kinds of their steps
    and the first numbers of the tensors that they start from.
    """
    if (
        pipelines.is_repeatable(dataset)
        and 0 < int(dataset.cardinality()) <= _MAX_ELEMENTS
        and pipelines.cost(dataset) <= _MAX_NUMBERS
    ):
        described = find("mlflow.data.tensorflow_dataset.from_tensorflow")(dataset, source=_source({}))
        return str(described.digest)
    known = [repr(dataset.element_spec), str(int(dataset.cardinality()))]
    known += [pipelines.kind(step) for step in pipelines.steps(dataset)]
    known += [_digest(_Head(tensor)) for tensor in pipelines.tensors(dataset)]
    digest = find("mlflow.data.digest_utils.get_normalized_md5_digest")
    return str(digest([text.encode() for text in known]))
