"""A loss that fell a little and then stopped."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import NOTHING, fell, learning
from mlflow_tfmon.detectors.problem import Problem

_FEW = 0.15


def detect(history: History) -> Iterator[Problem]:
    """Sees a loss that made 5% to 15% of the way from a constant prediction to zero and has not fallen for half of it.

    Looked at once half of the training is over. Where more was learned, it may well be all that there is. Can't tell
    targets that are mostly noise from a model that learns too little of them. Counterpart of SageMaker Debugger's "loss
    not decreasing".
    """
    state = learning(history)
    if state.known and state.share >= 0.5 and NOTHING <= state.learned < _FEW and not fell(history, 0.5):
        yield Problem(
            "plateau", "warning", int(history.at(0.5)), (),
            f"Since step {history.at(0.5):.0f} the loss stands at {state.now:.3g}, {state.learned:.0%} of the way "
            f"from a "
            f"constant prediction ({state.reference:.3g}) to zero (less than {_FEW:.0%} counts).",
            "Try another learning rate (ten times larger and smaller) or keras.callbacks.ReduceLROnPlateau, a larger "
            "model, and look at whether inputs and targets belong together.",
            history.step, 0.6,
        )  # fmt: skip
