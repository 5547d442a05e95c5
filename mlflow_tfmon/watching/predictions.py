"""Predictions of a model for a few fixed examples at epochs' ends, or whatever a function of the user's shows of it.

The examples are a text artifact of the run, named after what is in it, and so is each epoch's.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon import cluster
from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.facts.examples import picture, png
from mlflow_tfmon.facts.premises import loss_name
from mlflow_tfmon.facts.validation import NoExamplesError, first_examples
from mlflow_tfmon.probes.unchanging import Forward, NotPossibleError
from mlflow_tfmon.random_state import same_random_numbers
from mlflow_tfmon.settings import MOST_PREDICTIONS
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.records import Text
from mlflow_tfmon.tracking.names import predictions_file

_SIDE = 192  # pixels of a picture's longer side
_LETTERS, _NUMBERS = 400, 8  # of a cell
_DPI = 60  # of a figure of the user's
_REMEDY = "give the examples themselves, predictions=(inputs, targets), or a function of the model"
_SEVERAL = "the model has several replicas"

Cells = dict[str, str]


class Predictions:
    """The predictions of one training.

    Args:
        wanted: as the setting `predictions` has it.
    """

    def __init__(self, wanted: Any) -> None:
        self._wanted = wanted
        self._off = isinstance(wanted, int) and not wanted
        self._given: tuple[Any, Any] | None = None  # inputs and targets
        self._forward: tuple[tuple[int, ...], Forward] | None = None  # and the layers that it was traced of
        self._examples: list[Cells] = []
        self._stored = ""

    def look(
        self, model: Any, arguments: FitArguments | None, epoch: int, step: int, prefix: str
    ) -> tuple[Text, ...]:
        """What the model predicts now; of the first 32 epochs, later more rarely.

        Args:
            model: the model, or None if it is not known.
            arguments: of its fit, or None.
            epoch: number of the epoch that ended.
            step: optimizer steps done by then.
            prefix: what precedes the names of the model's metrics.
        """
        if self._off or not bins.due(epoch):
            return ()
        with contained("looking at predictions", "the report lacks those of this epoch"):
            try:
                if _has_replicas(model):  # the chief alone would wait for the other workers for ever
                    raise NotPossibleError(_SEVERAL)
                found = self._shown_by_user(model) if callable(self._wanted) else self._of(model, arguments)
            except (NoExamplesError, NotPossibleError) as reason:
                self._off = True
                what = f"predictions={self._wanted}" if isinstance(self._wanted, int) else "predictions"
                say_once(
                    f"predictions {reason}",
                    f"mlflow_tfmon: {what}: none are shown, since {reason}; "
                    f"{'predict with a checkpoint instead' if str(reason) == _SEVERAL else _REMEDY}.",
                )
                return ()
            except Exception:
                self._off = True  # else the model would be traced anew at each epoch
                raise
            if found:
                return self._files(found, epoch, step, prefix)
        return ()

    def _files(
        self, found: Sequence[tuple[Cells, bool | None]], epoch: int, step: int, prefix: str
    ) -> tuple[Text, ...]:
        about = json.dumps(self._examples)
        digest = hashlib.sha256(about.encode()).hexdigest()[:16] if self._examples else ""
        files = (
            [Text(predictions_file(prefix, f"examples-{digest}"), about)] if digest != self._stored else []
        )
        self._stored = digest
        content = {
            "epoch": epoch, "step": step, "examples": digest,
            "cells": [cells for cells, _ in found], "right": [right for _, right in found],
        }  # fmt: skip
        return (*files, Text(predictions_file(prefix, f"epoch-{epoch:05d}"), json.dumps(content)))

    def _of(self, model: Any, arguments: FitArguments | None) -> list[tuple[Cells, bool | None]]:
        """What the model gives for the examples, with whether that is right, where it can be told."""
        if model is None:
            raise NoExamplesError("the Monitor has no model")
        if self._given is None:
            given = (
                self._wanted if isinstance(self._wanted, tuple) else first_examples(arguments, self._wanted)
            )
            self._given = inputs, targets = _arrays(given[0]), _arrays(given[1])
            fixed = {**_cells("input", inputs), **_cells("target", targets)}
            self._examples = _rows(fixed)
        inputs, targets = self._given
        tensors = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        layers = tuple(map(id, getattr(model, "layers", None) or ()))
        if self._forward is None or self._forward[0] != layers:
            self._forward = layers, Forward(model, tensors)
        outputs = self._forward[1](tensors)
        binary = loss_name(model).startswith("binary_")
        pairs = _paired(outputs, targets)
        columns: dict[str, list[str]] = {}
        right: list[bool | None] = [None] * len(self._examples)
        for name, output, target in pairs:
            columns[name], judged = _read(output, target, binary)
            right = judged if len(pairs) == 1 else right
        return list(zip(_rows(columns), right, strict=False))

    def _shown_by_user(self, model: Any) -> list[tuple[Cells, bool | None]]:
        try:
            with same_random_numbers():
                found = self._wanted(model)
            rows = found if isinstance(found, (list, tuple)) else [found]
            named = [
                one if isinstance(one, Mapping) else {"prediction": one} for one in rows[:MOST_PREDICTIONS]
            ]
            return [_row(one) for one in named]
        except Exception as error:  # the user's, not ours: never raised, not even in tests
            say_once(
                f"predictions {self._wanted!r}",
                f"mlflow_tfmon: the function given as predictions failed ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}); fix it: the report lacks what it shows; training continues.",
            )
            return []


def _has_replicas(model: Any) -> bool:
    """Whether a model is trained by several workers, or on several devices of this one."""
    place, strategy = cluster.place(), getattr(model, "distribute_strategy", None)
    return (place is not None and place.count > 1) or getattr(strategy, "num_replicas_in_sync", 1) > 1


def _rows(columns: Mapping[str, Sequence[str]]) -> list[Cells]:
    """The cells of each example; columns may be of different lengths where the data are."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]


def _row(found: Mapping[Any, Any]) -> tuple[Cells, bool | None]:
    """What a function shows of one example; `right`, if it is told, marks it as right or wrong."""
    cells = {str(name): _cell(value) for name, value in found.items() if name != "right"}
    return cells, bool(found["right"]) if "right" in found else None


def _arrays(values: Any) -> Any:
    """Nested values as arrays of at most so many rows, texts as bytes."""
    return None if values is None else tf.nest.map_structure(_plain, values)


def _plain(values: Any) -> np.ndarray:
    if not np.ndim(values):
        raise NoExamplesError("the examples are no arrays")
    array = np.asarray(values)[:MOST_PREDICTIONS]
    if array.dtype.kind in "OSU":
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in array.reshape(-1).tolist()]
        array = np.array(texts, dtype="O").reshape(array.shape)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _leaves(name: str, values: Any) -> dict[str, np.ndarray]:
    """Nested arrays by name: one alone by `name`."""
    if values is None:
        return {}
    paths = tf.nest.flatten(values)
    if len(paths) == 1:
        return {name: paths[0]}
    if isinstance(values, Mapping):
        names = [str(key) for key in sorted(values)]
        if len(names) == len(paths):
            return {f"{name} {key}": one for key, one in zip(names, paths, strict=True)}
    return {f"{name} {at + 1}": one for at, one in enumerate(paths)}


def _cells(name: str, values: Any) -> dict[str, list[str]]:
    """Columns of a table, by name: what each example has."""
    found = {}
    for key, array in _leaves(name, values).items():
        one_hot = name == "target" and _is_one_hot(array)
        shown = array.argmax(axis=1) if one_hot else array
        found[key] = [_cell(one) for one in shown]
    return found


def _paired(outputs: Any, targets: Any) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """The model's outputs by name, each with the targets that it is to meet."""
    given, wanted = _leaves("prediction", outputs), list(_leaves("target", targets).values())
    known = wanted if len(wanted) == len(given) else [None] * len(given)
    return [(name, output, target) for (name, output), target in zip(given.items(), known, strict=True)]


def _read(output: np.ndarray, target: np.ndarray | None, binary: bool) -> tuple[list[str], list[bool | None]]:
    """An output as text or pictures, and whether each is right: of classes, what is most probable and how probable."""
    unknown: list[bool | None] = [None] * len(output)
    flat = target.reshape(len(target)) if target is not None and target.size == len(target) else None
    if output.ndim == 2 and output.shape[1] > 1 and target is not None:
        classes = target.argmax(axis=1) if _is_one_hot(target) else flat
        if classes is not None and _are_classes(classes, output.shape[1]):
            shares = _shares(output)
            most = shares.argmax(axis=1)
            texts = [f"{at} ({shares[row, at]:.0%})" for row, at in enumerate(most)]
            return texts, (most == classes).tolist()
    if binary and output.size == len(output):
        chance = output.reshape(-1)
        if chance.min() < 0 or chance.max() > 1:
            chance = 1 / (1 + np.exp(-chance.astype(np.float64)))
        right = unknown if flat is None else ((chance > 0.5) == (flat > 0.5)).tolist()
        return [f"{one:.3g}" for one in chance], right
    if output.ndim == 4 and output.shape[3] > 4:  # a class for each pixel
        return [_cell(one / max(1, output.shape[3] - 1)) for one in output.argmax(axis=3)], unknown
    return [_cell(one) for one in output], unknown


def _is_one_hot(array: np.ndarray) -> bool:
    return (
        array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf"
        and bool(((array == 0) | (array == 1)).all()) and bool((array.sum(axis=1) == 1).all())
    )  # fmt: skip


def _are_classes(values: np.ndarray, count: int) -> bool:
    return (
        values.dtype.kind in "biuf"
        and bool(((values == np.floor(values)) & (values >= 0)).all())
        and bool((values < count).all())
    )


def _shares(output: np.ndarray) -> np.ndarray:
    """Probabilities as they are; logits by the softmax."""
    if output.min() >= 0 and output.max() <= 1:
        return output
    raised = np.exp(output - output.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _cell(value: Any) -> str:
    """What is shown of a value: a text, or the address of a picture."""
    if hasattr(value, "savefig"):
        file = io.BytesIO()
        value.savefig(file, format="png", dpi=_DPI)
        pyplot, figure = sys.modules.get("matplotlib.pyplot"), getattr(value, "figure", value)
        if pyplot is not None and isinstance(figure, pyplot.Figure):
            pyplot.close(figure)  # which would keep it, one more at each epoch
        return png(file.getvalue())
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value if len(value) <= _LETTERS else value[: _LETTERS - 1] + "…"
    array = np.asarray(value)
    if array.dtype.kind in "biuf" and array.ndim > 1 and (shown := picture(array, _SIDE)):
        return shown
    flat = array.reshape(-1)
    texts = [_number(one) for one in flat[:_NUMBERS].tolist()]
    return ", ".join(texts) + (f", … ({len(flat)} values)" if len(flat) > _NUMBERS else "")


def _number(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
