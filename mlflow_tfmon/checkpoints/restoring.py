"""Restoring of a training from its checkpoint."""

from __future__ import annotations

import dataclasses
import math
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from mlflow_tfmon import kerases, temporary
from mlflow_tfmon.checkpoints import reading
from mlflow_tfmon.checkpoints import state as states
from mlflow_tfmon.checkpoints.folder import WEIGHTS
from mlflow_tfmon.checkpoints.retention import Before
from mlflow_tfmon.checkpoints.state import State
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.facts import fit_frames, model_order
from mlflow_tfmon.probes import graph
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.tags import RESUMED_TAG
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.uris import in_a_line

_WIDEST = 8  # bytes of a number
_ROOM = 64 * 2**20  # bytes for what such a file contains besides numbers


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint to resume from.

    Attributes:
        run_id: its run.
        state: of the training.
        folder: of the model's files.
        kept: the checkpoints of the run that MLflow has, oldest first.
        model_id: of the logged model that it is.
    """

    run_id: str
    state: State = field(repr=False)
    folder: Path
    kept: tuple[Before, ...] = ()
    model_id: str = ""

    @property
    def first_epoch(self) -> int:
        """The epoch at which the training resumes."""
        about = self.state.about
        return int(about["epoch"]) - int(about["first_epoch"]) + (not about["within"])

    @property
    def began_with(self) -> int:
        """The number that the training gave its first epoch, such as the `initial_epoch` of its fit."""
        return int(self.state.about.get("began_with", 0))

    @property
    def fits(self) -> int:
        """Number of earlier fits of the model in the process that made the checkpoint."""
        return int(self.state.about.get("fits", 0))

    @property
    def place(self) -> int:
        """Number of other models trained earlier in the process that made the checkpoint."""
        return int(self.state.about.get("place", 0))

    def is_placed(self, model: Any) -> bool:
        """Whether a model is trained in the saved one's turn; always true in the process that made the checkpoint."""
        made_in = self.state.about.get("process", model_order.PROCESS)
        return bool(made_in == model_order.PROCESS) or model_order.place(model) == self.place

    def is_of(self, model: Any) -> bool:
        """Whether a model looks like the saved one."""
        if not self._is_of_its_keras(model):
            return False
        if not model.built:
            return any(stream["model"] == model.name for stream in self.state.about["past"]["streams"])
        return [tuple(shape) for _, shape in self.state.about["weights"]] == [
            tuple(one.shape) for one in model.weights
        ]

    def _is_of_its_keras(self, model: Any) -> bool:
        made_with = self.state.about.get("keras", "keras")
        return isinstance(model, kerases.every("Model")) and kerases.of(model).__name__ == made_with

    def run(self, thread: int | None, stay_active: bool) -> runs.Run:
        """Reopens and returns the run; arguments and errors as in `runs.again`."""
        past = dataclasses.replace(Past.from_dict(self.state.about["past"]), resumed=True)
        return dataclasses.replace(runs.again(self.run_id, thread, stay_active), past=past)

    def trained(self, model: Any) -> dict[int, frozenset[str]]:
        """Returns what each stream of a recording trains, for `Recording.go_on`; empty for an unbuilt model."""
        keys = [graph.key(variable) for variable in model.trainable_variables]
        return {
            int(number): frozenset(keys[at] for at in of if at < len(keys))
            for number, of in self.state.about["streams"].items()
        }

    def told(self) -> dict[str, str]:
        """Returns the description of the checkpoint in the run's tags."""
        return {RESUMED_TAG: f"after step {self.state.about['step']}, with epoch {self.first_epoch}"}

    def restore(self, model: Any, optimizers: Sequence[Any]) -> None:
        """Assigns the checkpoint's values to a model, its optimizer and others.

        Args:
            model: the Keras model, built.
            optimizers: those that the model is not compiled with.

        Raises:
            SettingError: they differ from the saved ones.
        """
        about = self.state.about
        if not self._is_of_its_keras(model):
            raise self._error(
                "the model is not one of the Keras (3, or 2) that the checkpoint was made with; build it as before, "
                "or train from scratch without resume"
            )
        # Of one that is not built, Keras 2 does not say which weights it has.
        if not model.built and (
            not isinstance(model, keras.Model) or len(model.weights) != len(about["weights"])
        ):
            raise self._error("the model is not built; give it an Input, or call it once")
        self._compare("model", about["weights"], model.weights)
        with model.distribute_strategy.scope():
            if about["optimizer"]:
                if not isinstance(getattr(model, "optimizer", None), kerases.every("optimizers.Optimizer")):
                    raise self._error(
                        "the model is not compiled, or with a legacy optimizer; call compile first, as in the original "
                        "training"
                    )
                _build(model.optimizer, model.trainable_variables, len(about["optimizer"]))
                self._compare("optimizer", about["optimizer"], model.optimizer.variables)
            optimizers = optimizers or _attributes(model, about["optimizers"])
            if len(optimizers) != len(about["optimizers"]):
                raise self._error(
                    f"the training had {len(about['optimizers'])} optimizers besides the model's, but "
                    f"{len(optimizers)} were passed; pass them to Monitor(model, optimizer=...), several as a list"
                )
            self._load_weights(model)
            for at, variable in enumerate(states.unsaved(model)):
                if f"seed/{at}" in self.state.arrays:
                    self._assign(variable, f"seed/{at}")
            for number, (optimizer, told) in enumerate(zip(optimizers, about["optimizers"], strict=True)):
                of = [model.trainable_variables[at] for at in told["of"]]
                _build(optimizer, of, len(told["shapes"]))
                self._compare("optimizer", told["shapes"], optimizer.variables)
                for at, variable in enumerate(optimizer.variables):
                    self._assign(variable, f"optimizer/{number}/{at}")
        states.set_chance(self.state)

    def check_fit(self, fits: int) -> None:
        """Checks that a fit is the interrupted one.

        Args:
            fits: how many the model has had before it.

        Raises:
            SettingError: it is another.
        """
        if fits != self.fits:
            raise self._error(
                f"the training was interrupted in fit {self.fits + 1} of the model, but this is fit {fits + 1}; use "
                "mlflow_tfmon.autolog(resume=...) instead of the Monitor, since it skips the fits before"
            )

    def restore_fit(self, model: Any, callbacks: states.Callbacks | None) -> None:
        """Restores epoch, callbacks and order of data of a fit that is just beginning."""
        ended = False
        if callbacks is not None:
            callbacks.restore(self.state)
            ended = callbacks.ended
        # As keras.callbacks.BackupAndRestore does.
        model._initial_epoch = sys.maxsize if ended else self.first_epoch
        fit_frames.pass_epochs(self.first_epoch - self.began_with)

    def _file(self) -> Path:
        found = [*self.folder.glob("data/model.keras"), *self.folder.glob(WEIGHTS)]
        if not found:
            raise self._error(
                "its checkpoint is not in the .keras format; do not set another one in keras_model_kwargs"
            )
        return found[0]

    def _load_weights(self, model: Any) -> None:
        file = self._file()
        optimizer = getattr(model, "optimizer", None)
        variables = [*model.variables, *(optimizer.variables if optimizer is not None else ())]
        room = _ROOM + 2 * sum(math.prod(one.shape) * _WIDEST for one in variables)
        with temporary.Folder() as holder:
            try:
                file = reading.weights_file(file, Path(holder), room)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise self._error(
                    f"its weights file is invalid ({in_a_line(error)}); train from scratch without resume"
                ) from error
            model.load_weights(str(file))

    def _assign(self, variable: Any, name: str) -> None:
        try:
            states.assign(variable, self.state.arrays[name])
        except Exception as error:  # TensorFlow's error for invalid contents
            raise self._error(
                f"it has no {name} for {states.named(variable)} ({in_a_line(error)}); train from scratch without resume"
            ) from error

    def _compare(self, what: str, saved: Sequence[Sequence[Any]], variables: Sequence[Any]) -> None:
        now = states.shapes(variables)
        for (name, shape), (path, size) in zip(saved, now, strict=False):
            if tuple(shape) != size:
                raise self._error(
                    f"the {what} differs: {path} has shape {size}, but in the checkpoint {name} has shape "
                    f"{tuple(shape)}; build it as before, or train from scratch without resume"
                )
        if len(saved) != len(now):
            raise self._error(
                f"the {what} differs: it has {len(now)} variables, but {len(saved)} in the checkpoint; build "
                "it as before, or train from scratch without resume"
            )

    def _error(self, text: str) -> SettingError:
        return SettingError(f"resume={self.run_id!r}: {text}.")


def _attributes(model: Any, told: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns the optimizers that are attributes of a model, as the saved ones were."""
    found = [vars(model).get(str(one.get("name"))) for one in told]
    return [one for one in found if isinstance(one, keras.optimizers.Optimizer)]


def _build(optimizer: Any, variables: Sequence[Any], count: int) -> None:
    if len(optimizer.variables) != count:
        optimizer.build(list(variables))
