"""Replay of a bad step: a checkpoint of the run, run forward on the step's batch, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf
from mlflow.tracking import MlflowClient

from mlflow_tfmon import kerases
from mlflow_tfmon.facts import examples
from mlflow_tfmon.reading.batches import KeptBatch, load_batch
from mlflow_tfmon.tags import STEP, WEIGHTS_ONLY
from mlflow_tfmon.tracking.models import current_store
from mlflow_tfmon.tracking.names import MODEL_ID
from mlflow_tfmon.uris import in_a_line

_MOST = 1000  # logged models of a run that are looked at


class ReplayError(ValueError):
    """A step that cannot be replayed; the message says why, and what to do."""


@dataclass(frozen=True)
class Layer:
    """What a layer gave for a batch.

    Attributes:
        name: the layer's path.
        largest: the largest absolute value that is finite.
        nonfinite: how many values are not.
        examples: the places in the batch of the examples with such values.
    """

    name: str
    largest: float
    nonfinite: int
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Replayed:
    """A replayed step.

    Attributes:
        batch: the batch.
        model: which model it was, in words.
        spoilt: names of the variables that were not finite before.
        layers: in the order of their calls.
        losses: of each kept example; None if the model is not compiled, or its loss cannot be asked for them.
    """

    batch: KeptBatch
    model: str
    spoilt: tuple[str, ...]
    layers: tuple[Layer, ...]
    losses: tuple[float, ...] | None

    def text(self) -> str:
        """The replay in words, a line each."""
        lines = [self.batch.text, f"Model: {self.model}."]
        if self.spoilt:
            lines.append(
                f"Its weights are not finite themselves ({self.spoilt[0]} first): what follows shows no cause."
            )
        for one in self.layers:
            bad = f", {one.nonfinite} values not finite, of {_places(one.examples)}" if one.nonfinite else ""
            lines.append(f"  {one.name}: largest {one.largest:.4g}{bad}")
        first = next((one for one in self.layers if one.nonfinite), None)
        if first is not None:
            lines.append(
                f"First layer whose output is not finite: {first.name}, of {_places(first.examples)}."
            )
        elif self.layers:
            most = max(self.layers, key=lambda one: one.largest)
            lines.append(f"All outputs are finite; the largest, {most.largest:.4g}, is that of {most.name}.")
        if self.losses is None:
            lines.append("The loss of each example cannot be had: the model was saved without its loss.")
        else:
            worst = np.argsort([-np.inf if np.isnan(one) else -one for one in self.losses], kind="stable")[:5]
            told = ", ".join(f"{self.batch.kept[at]}: {self.losses[at]:.4g}" for at in worst)
            lines.append(f"Largest losses, by the place in the batch: {told}.")
        return "\n".join(lines)


def replay(run_id: str, step: int, tracking_uri: str | None = None) -> Replayed:
    """Runs the nearest checkpoint of a run forward on the kept batch of a step.

    The checkpoint is the last one before the step, else the first one after it. It is loaded as MLflow loads a model,
    which runs code that is saved with it: replay only runs of people you trust.

    Args:
        run_id: the run.
        step: of which a batch is kept.
        tracking_uri: the run's store; default: MLflow's current tracking URI.

    Raises:
        ReplayError: the batch or the model is missing, or does not fit.
    """
    client = MlflowClient(tracking_uri)
    try:
        batch = load_batch(run_id, step, tracking_uri)
        arrays = batch.arrays()
    except ValueError as error:
        raise ReplayError(str(error)) from error
    if not examples.inputs_of(arrays):
        raise ReplayError(f"the batch of step {step} is not in the run: {batch.text}")
    model, about = _model(client, run_id, step)
    spoilt = tuple(v.path for v in model.variables if not np.isfinite(_floats(v)).all())
    try:
        layers, outputs = _run(model, _nested(examples.inputs_of(arrays)), batch.kept)
    except Exception as error:
        raise ReplayError(f"the model cannot be called with the batch ({in_a_line(error)[:300]})") from error
    return Replayed(batch, about, spoilt, layers, _losses(model, arrays, outputs))


def _model(client: MlflowClient, run_id: str, step: int) -> tuple[Any, str]:
    run = client.get_run(run_id)
    found = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run_id}'", max_results=_MOST
    )
    steps = {
        one.model_id: int(one.tags[STEP])
        for one in found
        if str(one.tags.get(STEP, "")).isdecimal() and one.tags.get(WEIGHTS_ONLY) != "true"
    }
    before = {one: at for one, at in steps.items() if at < step}
    if not steps:
        raise ReplayError(
            "the run has no checkpoint with its model: train with log_models and checkpoint on, and without "
            "checkpoint_save_weights_only"
        )
    chosen = max(before, key=before.__getitem__) if before else min(steps, key=steps.__getitem__)
    if not MODEL_ID.fullmatch(chosen):
        raise ReplayError("the store names a model as it never does")
    try:
        with current_store(client.tracking_uri):
            model = mlflow.tensorflow.load_model(f"models:/{chosen}")
    except Exception as error:
        raise ReplayError(f"the checkpoint {chosen} cannot be loaded ({in_a_line(error)[:300]})") from error
    if not isinstance(model, keras.Model):
        raise ReplayError(f"the checkpoint {chosen} is no Keras 3 model, so its layers cannot be told apart")
    when = "before it" if before else "after it, since there is none before"
    return model, f"the checkpoint of step {steps[chosen]}, the nearest one {when}"


def _floats(variable: Any) -> np.ndarray:
    value = np.asarray(variable)
    return value if value.dtype.kind in "fc" else np.zeros(0)


def _nested(arrays: dict[str, np.ndarray]) -> Any:
    """Inputs as the model takes them: one array, a list or a dictionary."""
    if list(arrays) == [examples.INPUTS]:
        return tf.constant(arrays[examples.INPUTS])
    named = {name.partition("/")[2]: tf.constant(one) for name, one in arrays.items()}
    return list(named.values()) if all(name.isdecimal() for name in named) else named


def _run(model: Any, inputs: Any, places: tuple[int, ...]) -> tuple[tuple[Layer, ...], Any]:
    """Calls a model eagerly; what each layer gave, and what the model gave."""
    found: list[Layer] = []
    owner = kerases.of(model).layers.Layer
    original = owner.__call__

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        for tensor in tf.nest.flatten(result) if self is not model else ():
            if tf.is_tensor(tensor) and tensor.dtype.is_floating and hasattr(tensor, "numpy"):
                found.append(_looked_at(self.path, np.asarray(tf.cast(tensor, tf.float32)), places))
        return result

    owner.__call__ = __call__
    try:
        outputs = model(inputs, training=False)
        return tuple(found), outputs
    finally:
        owner.__call__ = original


def _looked_at(name: str, values: np.ndarray, places: tuple[int, ...]) -> Layer:
    finite = np.isfinite(values)
    of_examples = values.ndim > 0 and len(values) == len(places)
    bad = ~finite.reshape(len(values), -1).all(axis=1) if of_examples else np.zeros(0, bool)
    largest = float(np.abs(values, where=finite, out=np.zeros_like(values)).max(initial=0.0))
    return Layer(name, largest, int((~finite).sum()), tuple(places[at] for at in np.flatnonzero(bad)))


def _losses(model: Any, arrays: dict[str, np.ndarray], outputs: Any) -> tuple[float, ...] | None:
    """The loss of each example, of a model with one output that has a Keras loss."""
    try:
        loss = keras.losses.get(model.loss)
        call = getattr(loss, "call", loss)  # a function gives each example's, an object's `call` as well
        each = np.asarray(call(tf.constant(arrays[examples.TARGETS]), outputs), np.float64)
        return tuple(each.reshape(len(each), -1).mean(axis=1).tolist())
    except Exception:  # whatever the user's loss is: the replay is there without it
        return None


def _places(places: tuple[int, ...]) -> str:
    named = ", ".join(map(str, places[:5])) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
    return f"example{'s' if len(places) != 1 else ''} {named}" if places else "the batch"
