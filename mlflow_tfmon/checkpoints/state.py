"""State of a training besides its model: counts, other optimizers, callbacks, and the random state."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.checkpoints import reading
from mlflow_tfmon.checkpoints.snapshot import Snapshot
from mlflow_tfmon.errors import logger
from mlflow_tfmon.internals import internal
from mlflow_tfmon.random_state import python_and_numpy, restore
from mlflow_tfmon.reading.arrays import read_arrays

FOLDER, FORMAT = "tfmon", 1  # of the checkpoint's files
_FILE, _ARRAYS = "resume.json", "resume.npz"
_TENSOR_PROTO = "tensorflow.core.framework.tensor_pb2.TensorProto"
# State of Keras's own callbacks (3.7 to 3.15, 2.16 to 2.21): none of it is a path or an option.
_OF_KERAS = frozenset(
    ("wait", "stopped_epoch", "best", "best_epoch", "best_weights", "cooldown_counter", "_current_epoch",
     "_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen",
     "epochs_since_last_save", "_global_train_batch", "_global_test_batch", "_ema_weights_in_model")
)  # fmt: skip
_NO_SEEDS = "Keras's own random numbers are not part of checkpoints"
_Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class State:
    """A training's state at a checkpoint.

    Attributes:
        about: what JSON can hold: "epoch" (its number in the run), "step", "first_epoch" (the run's number of the
            training's epoch 0), "began_with" (the number that the training gave its first one), "fits" (how many the
            model had had before), "place" (how many other models had been trained before) in which "process",
            "keras" (the name of its Keras; lacking in older checkpoints, which are all of Keras 3),
            "within" (whether the epoch goes on), "past" (`stream.continuation.Past`), "streams" (which of the model's
            trainable variables each trains), "prefix", "best", "callbacks", "random", and the shapes of "weights",
            "optimizer" and "optimizers".
        arrays: the rest, by name: NumPy arrays, and tensors of variables, which are copied only by `write`, since the
            training waits for everything before.
    """

    about: dict[str, Any]
    arrays: dict[str, Any] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Writes the state to a model's folder."""
        (folder / FOLDER).mkdir()
        (folder / FOLDER / _FILE).write_text(json.dumps({"format": FORMAT, **self.about}), "utf-8")
        arrays: dict[str, Any] = {
            name: _bytes(one) if tf.is_tensor(one) else one for name, one in self.arrays.items()
        }
        np.savez(folder / FOLDER / _ARRAYS, **arrays)

    @classmethod
    def read(cls, folder: Path) -> State:
        """Returns the state that `write` wrote.

        Raises:
            OSError: the checkpoint has none (it was made by an earlier version).
            ValueError: the file is not as `write` writes it.
        """
        about = reading.read_json(folder / FOLDER / _FILE)
        reading.check(about)
        arrays = read_arrays(folder / FOLDER / _ARRAYS)
        reading.check_numpy(arrays["random/numpy"])
        return cls(about, arrays)


def of_snapshot(snapshot: Snapshot) -> State:
    """Returns the part of the state in variables that the model's own file lacks.

    These are what Keras does not save (`unsaved`), and the optimizers that it was not compiled with.
    """
    values = {
        id(variable): value for variable, value in zip(snapshot.variables, snapshot.values, strict=True)
    }
    model, optimizer = snapshot.model, getattr(snapshot.model, "optimizer", None)
    trained = {id(variable): at for at, variable in enumerate(model.trainable_variables)}
    arrays = {
        f"seed/{at}": values[id(one)] if id(one) in values else tf.convert_to_tensor(one)
        for at, one in enumerate(unsaved(model))
        if id(one) in values or snapshot.live
    }
    others = []
    for number, other in enumerate(snapshot.others):
        of = [trained[id(one)] for one in other._trainable_variables if id(one) in trained]
        name = next((name for name, one in vars(model).items() if one is other), None)
        others.append({"of": of, "shapes": shapes(other.variables), "name": name})
        arrays |= {f"optimizer/{number}/{at}": values[id(one)] for at, one in enumerate(other.variables)}
    about = {
        "keras": kerases.of(model).__name__,
        "weights": shapes(model.weights),
        "optimizer": shapes(optimizer.variables) if optimizer is not None else [],
        "optimizers": others,
    }
    return State(about, arrays)


def shapes(variables: Sequence[Any]) -> _Shapes:
    """Returns the names and shapes of variables, to report differences."""
    return [(named(one), tuple(int(size) for size in one.shape)) for one in variables]


def named(variable: Any) -> str:
    """Returns the path of a variable, or in Keras 2 its name."""
    return str(getattr(variable, "path", variable.name))


def unsaved(model: Any) -> list[Any]:
    """Returns the variables that Keras does not save with a model, in order.

    These are the seed counters of random layers (Keras 3.7 to 3.15), and Keras 2's learning rate (2.16 to 2.21).
    """
    if isinstance(model, keras.Model):
        weights = {id(one) for one in model.weights}
        return [one for one in model.variables if id(one) not in weights]
    rate = getattr(getattr(model, "optimizer", None), "learning_rate", None)
    return [rate] if isinstance(rate, tf.Variable) else []


def assign(variable: Any, array: np.ndarray) -> None:
    """Assigns a variable the value that `of_snapshot` kept.

    Raises:
        ValueError: the value does not fit the variable: a few bytes may claim to be any number of values.
    """
    tensor_proto = internal(_TENSOR_PROTO, None, "a checkpoint with other optimizers cannot be resumed from")
    if tensor_proto is None:
        raise ValueError(f"the size of the value of {named(variable)} cannot be determined")
    told = tensor_proto.FromString(array.tobytes())
    if [one.size for one in told.tensor_shape.dim] != [int(size) for size in variable.shape]:
        raise ValueError(f"the checkpoint has no value for {named(variable)}")
    variable.assign(tf.io.parse_tensor(array.tobytes(), tf.as_dtype(variable.dtype)))


def _bytes(value: tf.Tensor) -> np.ndarray:
    # In TensorFlow's format, since NumPy files do not support bfloat16.
    return np.frombuffer(tf.io.serialize_tensor(value).numpy(), np.uint8)


def chance() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the random state of Python, NumPy and Keras, without drawing a number."""
    python, (kind, keys, position, has_gauss, gauss) = python_and_numpy()
    about = {"python": python, "numpy": [kind, position, has_gauss, gauss]}
    arrays = {"random/numpy": np.asarray(keys)}
    generator = _keras_generator()
    if generator is not None:
        arrays["random/keras"] = np.asarray(generator.state)
    return about, arrays


def set_chance(state: State) -> None:
    """Restores the random state."""
    version, inner, gauss_next = state.about["random"]["python"]
    kind, *rest = state.about["random"]["numpy"]
    restore((version, tuple(inner), gauss_next), (kind, state.arrays["random/numpy"], *rest))
    if "random/keras" in state.arrays:
        generator = internal("keras.src.random.seed_generator.global_seed_generator", None, _NO_SEEDS)
        if generator is not None:
            generator().state.assign(state.arrays["random/keras"])


def _keras_generator() -> Any:
    """Returns Keras's generator for random numbers without a seed, if it has been created (3.7 to 3.15)."""
    attribute = internal(
        "keras.src.backend.common.global_state.get_global_attribute", lambda _: None, _NO_SEEDS
    )
    return attribute("global_seed_generator")


class Callbacks:
    """State that a training changes in its callbacks: how long `EarlyStopping` has waited, the best value, and so on.

    For Keras's own callbacks these are the attributes in `_OF_KERAS`; for the user's, the numbers and lists of arrays
    that have changed since the training began, except those set by an argument of the same name.

    Args:
        callbacks: the user's, at the beginning of the training.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = [one for one in callbacks if isinstance(one, kerases.every("callbacks.Callback"))]
        self._begin = [dict(vars(one)) for one in self._callbacks]

    def state(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Returns the changes: class and numbers of each callback; and the arrays."""
        about: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for at, (callback, begin) in enumerate(zip(self._callbacks, self._begin, strict=True)):
            changed = {
                name: _number(value) for name, value in vars(callback).items()
                if value is not begin.get(name) and _may_change(callback, name)
            }  # fmt: skip
            numbers = {name: value for name, value in changed.items() if reading.is_number(value)}
            about.append({"class": type(callback).__name__, "numbers": numbers})
            for name, value in changed.items():
                if isinstance(value, list) and value and _is_arrays(value):
                    arrays |= {f"callback/{at}/{name}/{n}": one for n, one in enumerate(value)}
        return about, arrays

    def restore(self, state: State) -> None:
        """Restores the changes: those of the first callback of a class go to the first of that class, and so on.

        Only numbers replace numbers, and only arrays replace arrays: data from a store change nothing else.
        """
        waiting = {id(one): one for one in self._callbacks}
        for at, told in enumerate(state.about["callbacks"]):
            callback = next((one for one in waiting.values() if type(one).__name__ == told["class"]), None)
            if callback is None:  # this callback was removed; others may follow
                continue
            del waiting[id(callback)]
            left = []
            for name, value in told["numbers"].items():
                if _may_change(callback, name) and _is_alike(_now(callback, name), value):
                    vars(callback)[name] = value
                else:
                    left.append(name)
            for name, arrays in _lists(state.arrays, at).items():
                now = _now(callback, name)
                if _may_change(callback, name) and (now is None or _is_arrays(now)):
                    vars(callback)[name] = arrays
                else:
                    left.append(name)
            if left:
                logger.warning(
                    "mlflow_tfmon: callback %s: the checkpoint's value of %s is ignored, since it does not match the "
                    "callback's attribute.",
                    type(callback).__name__, ", ".join(map(repr, left))[:200],
                )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether a callback had ended the training, and would again: it was interrupted after its last epoch."""
        stopping = [
            one for one in self._callbacks if isinstance(one, kerases.every("callbacks.EarlyStopping"))
        ]
        return any(one.stopped_epoch > 0 and one.wait >= one.patience for one in stopping)


def _may_change(callback: Any, name: str) -> bool:
    """Whether a training may change an attribute, judging by its name and its class."""
    if type(callback).__module__.split(".")[0] in ("keras", "tf_keras"):
        return name in _OF_KERAS
    known = name in vars(callback) or hasattr(type(callback), name)
    own = next(one for one in kerases.imported() if isinstance(callback, one.callbacks.Callback))
    known &= name not in vars(own.callbacks.Callback())
    return known and name not in inspect.signature(type(callback).__init__).parameters


def _now(callback: Any, name: str) -> object:
    """Returns an attribute of the callback or its class without calling user code."""
    return vars(callback).get(name, inspect.getattr_static(type(callback), name, None))


def _is_alike(now: object, then: object) -> bool:
    """Whether a value may replace another: a number a number, a bool a bool."""
    now = _number(now)
    if now is None or then is None:
        return reading.is_number(now)
    return reading.is_number(now) and isinstance(now, bool) == isinstance(then, bool)


def _is_arrays(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, np.ndarray) for one in value)


def _lists(arrays: Mapping[str, np.ndarray], at: int) -> dict[str, list[np.ndarray]]:
    """Returns the lists of arrays of a callback, by attribute."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for key, array in arrays.items():
        match = re.fullmatch(rf"callback/{at}/(\w+)/(\d{{1,9}})", key)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = array
    return {name: [numbered[number] for number in sorted(numbered)] for name, numbered in found.items()}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, (np.bool_, np.number)) else value


def joined(*parts: tuple[Mapping[str, Any], Mapping[str, Any]]) -> State:
    """Returns a state assembled from parts."""
    about: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for some, more in parts:
        about |= some
        arrays |= more
    return State(about, arrays)
