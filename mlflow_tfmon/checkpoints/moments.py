"""What a training needs at a moment, beside its model, to go on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from mlflow_tfmon.checkpoints.state import Callbacks, State, chance
from mlflow_tfmon.facts import order
from mlflow_tfmon.probes import graph
from mlflow_tfmon.stream.recording import Recording
from mlflow_tfmon.stream.ring import Ring


def others(model: Any, given: Sequence[Any], rings: Sequence[Ring]) -> tuple[Any, ...]:
    """The Keras 3 optimizers of a training that its model was not compiled with: those given, else those seen."""
    found = given or [ring.optimizer() for ring in rings]
    own = getattr(model, "optimizer", None)
    inner = (own, getattr(own, "inner_optimizer", None))
    keep = [one for one in found if isinstance(one, keras.optimizers.Optimizer) and one.built]
    return tuple({id(one): one for one in keep if not any(one is mine for mine in inner)}.values())


def around(
    model: Any, recording: Recording, callbacks: Callbacks | None, **counts: Any
) -> Callable[[], State]:
    """What gives the state of a training beside its variables.

    Args:
        model: the model.
        recording: of the training.
        callbacks: of fit, or None.
        **counts: "epoch", "step", "first_epoch", "fits", "place" and "within", as in `State`.
    """

    def state() -> State:
        numbers, keys = chance()
        about, arrays = callbacks.state() if callbacks is not None else ([], {})
        at = {graph.key(variable): at for at, variable in enumerate(model.trainable_variables)}
        streams = {
            number: [at[key] for key in keys if key in at] for number, keys in recording.trained().items()
        }
        told = {
            **counts, "process": order.PROCESS, "past": recording.past().as_dict(), "streams": streams,
            "callbacks": about, "random": numbers,
        }  # fmt: skip
        return State(told, {**arrays, **keys})

    return state
