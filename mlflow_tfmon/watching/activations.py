"""Activations of a model's layers at epoch ends, for a batch that the training used."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained, say_once
from mlflow_tfmon.probes import batches
from mlflow_tfmon.stream.records import Activations
from mlflow_tfmon.stream.ring import Ring


class ActivationWatch:
    """Measures one model's activations.

    Args:
        model: the Keras model, or None: then there is nothing to look at.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._probe: Any = None
        self._given_up = model is None or not callable(model)
        self._compiled = _compiled(model)

    def is_of(self, model: Any) -> bool:
        """Whether it looks at this model, as it is compiled now: what Keras has traced stays as it was too."""
        return self._model is model and self._compiled == _compiled(model)

    def look(self, epoch: int, step: int, prefix: str, rings: Sequence[Ring]) -> tuple[Activations, ...]:
        """Returns the current activations, or nothing if they are not available.

        Args:
            epoch: number of the epoch that ended.
            step: optimizer steps done by then.
            prefix: what precedes the names of the model's layers.
            rings: of the training.
        """
        with contained("measuring the activations", "they are not recorded"):
            rows, inputs = max((batches.kept(ring) for ring in rings), key=lambda k: k[0], default=(0, None))
            if inputs is None or self._given_up:
                return ()
            probe = self._probe_for(inputs)
            if probe is not None:
                return (Activations(epoch, step, time.time(), rows, probe.look(inputs), prefix),)
        return ()

    def _probe_for(self, inputs: Any) -> Any:
        from mlflow_tfmon.probes.activations import ActivationProbe
        from mlflow_tfmon.probes.unchanging import NotPossibleError

        spec = [(tuple(t.shape), t.dtype) for t in tf.nest.flatten(inputs)]
        if self._probe is None or self._probe.spec != spec:
            try:
                self._probe = ActivationProbe(self._model, inputs)
            except NotPossibleError as reason:
                self._given_up, self._probe = True, None
                say_once(
                    f"activations {self._model.name}",
                    f"mlflow_tfmon: activations of {self._model.name} are not recorded: {reason}.",
                    logging.INFO,
                )
        return self._probe


def _compiled(model: Any) -> tuple[int, ...]:
    """What tells a model from what it was before it was changed, or compiled anew."""
    optimizer, layers = getattr(model, "optimizer", None), getattr(model, "layers", None) or ()
    return tuple(id(one) for one in (optimizer, *layers))
