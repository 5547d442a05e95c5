"""Snapshot of a model's variables, and saving of the model with them while it continues to train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from mlflow_tfmon.probes import graph


class ChangedError(Exception):
    """The model no longer has the variables that it had at the snapshot."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Values of a model's variables at one moment.

    Keras 2 can only save a model with its current values: a snapshot of such a model is empty, and stands for the live
    model.

    Attributes:
        model: the model.
        variables: the model's, its optimizer's and its metrics' variables, and those of other optimizers.
        values: their values, as tensors in host memory.
        others: optimizers that the model was not compiled with.
    """

    model: Any = field(repr=False)
    variables: tuple[Any, ...] = field(repr=False)
    values: tuple[tf.Tensor, ...] = field(repr=False)
    others: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def live(self) -> bool:
        """Whether it stands for the live model."""
        return not isinstance(self.model, keras.Model)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Lets only this thread see the variables as they were.

        Raises:
            ChangedError: the model has changed meanwhile; whatever was saved within is worthless.
        """
        if self.live:
            yield
            return
        self._check()
        with tf.device("CPU:0"):
            _look_up_optimizer()
            scope = keras.StatelessScope(
                zip(self.variables, self.values, strict=True), initialize_variables=False
            )
            with scope:
                yield
                # `keras.utils.clear_session()` ends every thread's scope.
                ended = any(v.value is not scope.get_current_value(v) for v in self.variables[:1])
        self._check(ended)

    def _check(self, ended: bool = False) -> None:
        now = variables_of(self.model, self.others)
        if ended or [id(one) for one in now] != [id(one) for one in self.variables]:
            raise ChangedError(
                f"the model {self.model.name!r} was changed while it was being saved (layers added or removed, "
                "compiled anew, or Keras's session cleared)"
            )


def variables_of(model: Any, others: Sequence[Any] = ()) -> tuple[Any, ...]:
    """Returns all variables read when saving a model and other optimizers, each once; none for a Keras 2 model."""
    if not isinstance(model, keras.Model):
        return ()
    optimizer = getattr(model, "optimizer", None)
    of_optimizer = [] if optimizer is None else optimizer.variables
    of_others = [variable for other in others for variable in other.variables]
    found = [*model.variables, *of_optimizer, *model.metrics_variables, *of_others]
    return tuple({id(variable): variable for variable in found}.values())


class Camera:
    """Camera that takes snapshots of a model, on the training thread.

    Example:
        >>> snapshot = Camera().take(model)
    """

    def __init__(self) -> None:
        self._reader = graph.Reader()

    def take(self, model: Any, others: Sequence[Any] = ()) -> Snapshot:
        """Takes a snapshot of a built Keras model, and of optimizers that it was not compiled with."""
        variables = variables_of(model, others)
        values = self._reader.read([variable.value for variable in variables])
        return Snapshot(model, variables, values, tuple(others))


def _look_up_optimizer() -> None:
    """Makes Keras inspect an optimizer before a scope forbids that.

    To see which attributes to leave out when saving, Keras creates an optimizer, and so a variable, each time, since it
    caches the answer under a name other than the one it looks up (3.7 to 3.15).
    """
    with contextlib.suppress(ImportError, AttributeError):
        from keras.src.backend.common import global_state
        from keras.src.saving import saving_lib

        answer = saving_lib.get_attr_skipset("Optimizer")
        global_state.set_global_attribute("saving_attr_skiplist_Optimizer", answer)
