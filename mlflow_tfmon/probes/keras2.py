"""The optimizer probe's way into Keras 2 (`tf_keras`), whose optimizers take pairs of gradient and variable.

Here they are only translated into what the probe expects, which is how Keras 3 passes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import optimizer, tape
from mlflow_tfmon.stream.ring import Ring

_SCALED = "the loss of each step is the scaled one"


def methods(on_ring: Callable[[Ring, Any], None]) -> Iterator[tuple[Any, str, Callable[..., Any], str]]:
    """The methods to wrap (class, name, what wraps it, what is lost without it), as of tf_keras 2.16 to 2.21."""
    from tf_keras.optimizers import Optimizer, legacy
    from tf_keras.src.mixed_precision.loss_scale_optimizer import LossScaleOptimizer, LossScaleOptimizerV3
    from tf_keras.src.optimizers.optimizer import _BaseOptimizer

    applied = functools.partial(watch_apply, on_ring=on_ring)
    for base, updates, wrap in (
        (_BaseOptimizer, (Optimizer, "_internal_apply_gradients"), watch_update),
        (legacy.Optimizer, (legacy.Optimizer, "_distributed_apply"), watch_legacy_update),
    ):
        yield base, "apply_gradients", applied, "no step is recorded"
        yield *updates, wrap, "clipped gradients are not recorded"
    for scales in (LossScaleOptimizer, LossScaleOptimizerV3):
        yield scales, "get_scaled_loss", tape.watch_scaling, _SCALED


def watch_apply(original: Callable[..., Any], on_ring: Callable[[Ring, Any], None]) -> Callable[..., Any]:
    """Wraps `apply_gradients`, which is given the unscaled gradients, before clipping; some may be None."""

    def apply_gradients(self: Any, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        given: list[Any] = []
        with contained("the optimizer probe", "this training's steps are not recorded"):
            given = [pair for pair in pairs if pair[0] is not None]

        def apply(*_: Any) -> Any:
            return original(self, pairs, *args, **kwargs)

        if not given:
            return apply()
        gradients, variables = zip(*given, strict=True)
        return optimizer.watch_apply(apply, on_ring)(self, gradients, variables)

    return apply_gradients


def watch_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Optimizer._internal_apply_gradients`, which is given the clipped gradients."""

    def _internal_apply_gradients(self: Any, grads_and_vars: Any) -> Any:
        def update(*_: Any) -> Any:
            return original(self, grads_and_vars)

        gradients, variables = zip(*grads_and_vars, strict=True)
        return optimizer.watch_update(update)(self, gradients, variables, self.learning_rate)

    return _internal_apply_gradients


def watch_legacy_update(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `legacy.Optimizer._distributed_apply`, which is given the clipped gradients."""

    def _distributed_apply(self: Any, distribution: Any, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        def update(*_: Any) -> Any:
            return original(self, distribution, grads_and_vars, *args, **kwargs)

        rate = tf.constant(float("nan"))
        if "learning_rate" in self._hyper:  # an optimizer of the user's own need not have one
            rate = self._decayed_lr(tf.float32)
        gradients, variables = zip(*grads_and_vars, strict=True)
        return optimizer.watch_update(update)(self, gradients, variables, rate)

    return _distributed_apply
