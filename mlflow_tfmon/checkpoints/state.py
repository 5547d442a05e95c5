"""What a training needs to go on beside its model: counts, other optimizers, callbacks, and the state of chance."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_tfmon.chance import python_and_numpy, restore
from mlflow_tfmon.checkpoints.snapshot import Snapshot
from mlflow_tfmon.internals import internal

FOLDER, FORMAT = "tfmon", 1  # of the checkpoint's files
_FILE, _ARRAYS = "resume.json", "resume.npz"
_NO_SEEDS = "Keras's own random numbers are not part of checkpoints"
_Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class State:
    """A training's state at a checkpoint.

    Attributes:
        about: what JSON can hold: "epoch" (its number in the run), "step", "first_epoch" (the run's number of the
            training's epoch 0), "began_with" (the number that the training gave its first one), "fits" (how many the
            model had had before), "place" (how many other models had been trained before) in which "process",
            "within" (whether the epoch goes on), "past" (`stream.past.Past`), "streams" (which of the model's
            trainable variables each trains), "prefix", "best", "callbacks", "random", and the shapes of "weights",
            "optimizer" and "optimizers".
        arrays: the rest, by name: NumPy's arrays, and of variables the tensors, which only `write` copies, for the
            training waits for what is done before.
    """

    about: dict[str, Any]
    arrays: dict[str, Any] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Writes it into a model's folder."""
        (folder / FOLDER).mkdir()
        (folder / FOLDER / _FILE).write_text(json.dumps({"format": FORMAT, **self.about}), "utf-8")
        arrays: dict[str, Any] = {
            name: _bytes(one) if tf.is_tensor(one) else one for name, one in self.arrays.items()
        }
        np.savez(folder / FOLDER / _ARRAYS, **arrays)

    @classmethod
    def read(cls, folder: Path) -> State:
        """Reads what `write` wrote.

        Raises:
            OSError: the checkpoint has none (it was made by an earlier version).
        """
        about = json.loads((folder / FOLDER / _FILE).read_text("utf-8"))
        with np.load(folder / FOLDER / _ARRAYS, allow_pickle=False) as arrays:
            return cls(about, dict(arrays))


def of_snapshot(snapshot: Snapshot) -> State:
    """The part of the state that is in variables, which the model's own file does not hold.

    That is the counters of its layers of chance (dropout), and the optimizers that it was not compiled with.
    """
    values = {
        id(variable): value for variable, value in zip(snapshot.variables, snapshot.values, strict=True)
    }
    model, optimizer = snapshot.model, getattr(snapshot.model, "optimizer", None)
    trained = {id(variable): at for at, variable in enumerate(model.trainable_variables)}
    arrays = {f"seed/{at}": values[id(one)] for at, one in enumerate(seeds(model)) if id(one) in values}
    others = []
    for number, other in enumerate(snapshot.others):
        of = [trained[id(one)] for one in other._trainable_variables if id(one) in trained]
        name = next((name for name, one in vars(model).items() if one is other), None)
        others.append({"of": of, "shapes": shapes(other.variables), "name": name})
        arrays |= {f"optimizer/{number}/{at}": values[id(one)] for at, one in enumerate(other.variables)}
    about = {
        "weights": shapes(model.weights),
        "optimizer": shapes(optimizer.variables) if optimizer is not None else [],
        "optimizers": others,
    }
    return State(about, arrays)


def shapes(variables: Sequence[Any]) -> _Shapes:
    """The names and shapes of variables, for saying in which they differ."""
    return [(str(one.path), tuple(int(size) for size in one.shape)) for one in variables]


def seeds(model: Any) -> list[Any]:
    """The counters of a model's layers of chance, in order: Keras saves them with no model (3.7 to 3.15)."""
    weights = {id(one) for one in model.weights}
    return [one for one in model.variables if id(one) not in weights]


def assign(variable: Any, array: np.ndarray) -> None:
    """Gives a variable the value that `of_snapshot` kept."""
    variable.assign(tf.io.parse_tensor(array.tobytes(), tf.as_dtype(variable.dtype)))


def _bytes(value: tf.Tensor) -> np.ndarray:
    # As TensorFlow writes it: NumPy's files do not know bfloat16.
    return np.frombuffer(tf.io.serialize_tensor(value).numpy(), np.uint8)


def chance() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state of Python's, NumPy's and Keras's own random numbers, of which none is taken."""
    python, (kind, keys, position, has_gauss, gauss) = python_and_numpy()
    about = {"python": python, "numpy": [kind, position, has_gauss, gauss]}
    arrays = {"random/numpy": np.asarray(keys)}
    generator = _keras_generator()
    if generator is not None:
        arrays["random/keras"] = np.asarray(generator.state)
    return about, arrays


def set_chance(state: State) -> None:
    """Puts the random numbers back to where they were."""
    version, inner, gauss_next = state.about["random"]["python"]
    kind, *rest = state.about["random"]["numpy"]
    restore((version, tuple(inner), gauss_next), (kind, state.arrays["random/numpy"], *rest))
    if "random/keras" in state.arrays:
        generator = internal("keras.src.random.seed_generator.global_seed_generator", None, _NO_SEEDS)
        if generator is not None:
            generator().state.assign(state.arrays["random/keras"])


def _keras_generator() -> Any:
    """Keras's generator for random numbers without a seed, if it has been made (3.7 to 3.15)."""
    attribute = internal(
        "keras.src.backend.common.global_state.get_global_attribute", lambda _: None, _NO_SEEDS
    )
    return attribute("global_seed_generator")


class Callbacks:
    """What a training changes in its callbacks: how long `EarlyStopping` has waited, what was best, and so on.

    What is a number or a list of arrays, and is no longer what it was when the training began, is part of its state;
    what the user has set, by an argument of that name, is not.

    Args:
        callbacks: the user's, at the training's begin.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = [one for one in callbacks if isinstance(one, keras.callbacks.Callback)]
        self._begin = [dict(vars(one)) for one in self._callbacks]

    def state(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """What has changed: for each callback its class and its numbers; and the arrays."""
        about: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        for at, (callback, begin) in enumerate(zip(self._callbacks, self._begin, strict=True)):
            set_ = inspect.signature(type(callback).__init__).parameters
            changed = {
                name: value for name, value in vars(callback).items()
                if value is not begin.get(name) and name not in set_
            }  # fmt: skip
            numbers = {name: _number(value) for name, value in changed.items() if _is_number(value)}
            about.append({"class": type(callback).__name__, "numbers": numbers})
            for name, value in changed.items():
                if isinstance(value, list) and value and all(isinstance(one, np.ndarray) for one in value):
                    arrays |= {f"callback/{at}/{name}/{n}": one for n, one in enumerate(value)}
        return about, arrays

    def restore(self, state: State) -> None:
        """Puts back what had changed: into the first callback of a class what the first of it had, and so on."""
        waiting = {id(one): one for one in self._callbacks}
        for at, told in enumerate(state.about["callbacks"]):
            callback = next((one for one in waiting.values() if type(one).__name__ == told["class"]), None)
            if callback is None:  # it is not among them any more; others may be
                continue
            del waiting[id(callback)]
            vars(callback).update(told["numbers"])
            lists: dict[str, dict[int, np.ndarray]] = {}
            for key, array in state.arrays.items():
                kind, _, rest = key.partition("/")
                if kind == "callback" and rest.split("/")[0] == str(at):
                    _, name, number = rest.split("/")
                    lists.setdefault(name, {})[int(number)] = array
            for name, found in lists.items():
                setattr(callback, name, [found[number] for number in sorted(found)])

    @property
    def ended(self) -> bool:
        """Whether one of them had ended the training, and would again: it was interrupted after its last epoch."""
        stopping = [one for one in self._callbacks if isinstance(one, keras.callbacks.EarlyStopping)]
        return any(one.stopped_epoch > 0 and one.wait >= one.patience for one in stopping)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, np.bool_, np.number))


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, (np.bool_, np.number)) else value


def joined(*parts: tuple[Mapping[str, Any], Mapping[str, Any]]) -> State:
    """A state made of parts."""
    about: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for some, more in parts:
        about |= some
        arrays |= more
    return State(about, arrays)
