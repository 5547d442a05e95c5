"""A moment of a training that may become a checkpoint, with all that resuming from it needs besides the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_tfmon import kerases
from mlflow_tfmon.checkpoints.state import Callbacks, State, chance
from mlflow_tfmon.facts import model_order
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.probes import graph
from mlflow_tfmon.stream.recording import Recording
from mlflow_tfmon.stream.ring import Ring


@dataclass(frozen=True)
class Moment:
    """A moment of a training that may become a checkpoint.

    Attributes:
        model: the model.
        epoch: number of the epoch within the run.
        step: optimizer steps done.
        metrics: by name.
        arguments: the call of fit, or None.
        within: whether the epoch is not over.
        around: returns what resuming from here needs besides the model, if that is possible.
        others: optimizers that the model was not compiled with.
        datasets: as in `ModelSaved`.
    """

    model: Any
    epoch: int
    step: int
    metrics: Mapping[str, float]
    arguments: FitArguments | None = None
    within: bool = False
    around: Callable[[], State] | None = None
    others: tuple[Any, ...] = ()
    datasets: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def validated(self) -> bool:
        """Whether the fit has validation data."""
        given = self.arguments
        return given is not None and (given.validation_data is not None or bool(given.validation_split))


def others(model: Any, given: Sequence[Any], rings: Sequence[Ring]) -> tuple[Any, ...]:
    """Returns the optimizers of a training besides the compiled one: those passed, else those seen."""
    found = given or [ring.optimizer() for ring in rings]
    own = getattr(model, "optimizer", None)
    # Keras's LossScaleOptimizer wraps one, its MultiOptimizer several.
    mine = (own, getattr(own, "inner_optimizer", None), *getattr(own, "optimizers", ()))
    of_keras = kerases.every("optimizers.Optimizer")
    keep = [one for one in found if isinstance(one, of_keras) and getattr(one, "built", True)]
    return tuple({id(one): one for one in keep if not any(one is other for other in mine)}.values())


def around(
    model: Any, recording: Recording, callbacks: Callbacks | None, **counts: Any
) -> Callable[[], State]:
    """Returns a function that returns the state of a training besides its variables.

    Args:
        model: the model.
        recording: of the training.
        callbacks: of fit, or None.
        **counts: "epoch", "step", "first_epoch", "began_with", "fits", "place" and "within", as in `State`.
    """

    def state() -> State:
        numbers, keys = chance()
        about, arrays = callbacks.state() if callbacks is not None else ([], {})
        at = {graph.key(variable): at for at, variable in enumerate(model.trainable_variables)}
        streams = {
            number: [at[key] for key in keys if key in at] for number, keys in recording.trained().items()
        }
        told = {
            **counts, "process": model_order.PROCESS, "past": recording.past().as_dict(), "streams": streams,
            "callbacks": about, "random": numbers,
        }  # fmt: skip
        return State(told, {**arrays, **keys})

    return state
