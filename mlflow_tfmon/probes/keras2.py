"""The optimizer probe's way into Keras 2 (`tf_keras`), whose optimizers take pairs of gradient and variable.

Here they are only translated into what the probe expects, which is how Keras 3 passes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import optimizer, tape
from mlflow_tfmon.stream.ring import Ring

_PART, _NOT_RECORDED = "the optimizer probe", "this training's steps are not recorded"


def watch_apply(original: Callable[..., Any], on_ring: Callable[[Ring, Any], None]) -> Callable[..., Any]:
    """Wraps `apply_gradients`, which is given the unscaled gradients, before clipping; some may be None."""

    def apply_gradients(self: Any, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        given: list[Any] = []
        with contained(_PART, _NOT_RECORDED):
            given = [pair for pair in pairs if pair[0] is not None]

        def apply(*_: Any) -> Any:
            return original(self, pairs, *args, **kwargs)

        if not given:
            return apply()
        return optimizer.watch_gradients(apply, on_ring)(self, *zip(*given, strict=True))

    return apply_gradients


def watch_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer._internal_apply_gradients`, which is given the clipped gradients."""

    def _internal_apply_gradients(self: Any, grads_and_vars: Any) -> Any:
        def update(*_: Any) -> Any:
            return original(self, grads_and_vars)

        return _update(self, grads_and_vars, lambda: self.learning_rate, update)

    return _internal_apply_gradients


def watch_legacy_clipping(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `legacy.Optimizer._transform_gradients`, which clips; a strategy updates in another thread than that."""

    def _transform_gradients(self: Any, grads_and_vars: Any) -> Any:
        clipped = list(original(self, grads_and_vars))
        # Its attribute `learning_rate` may be a schedule, and leaves its `decay` out.
        return _update(self, clipped, lambda: self._decayed_lr(tf.float32), lambda *_: clipped)

    return _transform_gradients


def _update(self: Any, pairs: Any, rate: Callable[[], Any], update: Callable[..., Any]) -> Any:
    gradients = variables = learning_rate = None
    with contained(_PART, _NOT_RECORDED):
        (gradients, variables), learning_rate = zip(*pairs, strict=True), rate()
    return optimizer.watch_update(update)(self, gradients, variables, learning_rate)


def watch_scaling(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `LossScaleOptimizer.get_scaled_loss`; a loss that is a function is scaled when it is called."""
    scale = tape.watch_scaling(original)

    def get_scaled_loss(self: Any, loss: Any) -> Any:
        return (lambda: scale(self, loss())) if callable(loss) else scale(self, loss)

    return get_scaled_loss
