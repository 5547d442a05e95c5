"""Hooks into Keras 2, `tf_keras` (2.16 to 2.21)."""

from __future__ import annotations

from functools import partial

from mlflow_tfmon.probes import compiled, keras2
from mlflow_tfmon.probes.hooks import Hook
from mlflow_tfmon.probes.step import OnRing

_NO_STEP = "no step is recorded of trainings with Keras 2"
_NO_CLIPPED = "clipped gradients are not recorded of trainings with Keras 2"
_SCALED_LOSS = "the loss of each step with Keras 2 is the scaled one"
_SCALED = "tf_keras.src.mixed_precision.loss_scale_optimizer"


def hooks(on_ring: OnRing) -> list[Hook]:
    """The table; `on_ring` is told of each new ring and its optimizer."""
    apply = partial(keras2.watch_apply, on_ring=on_ring)
    return [
        Hook(
            "tf_keras.Model.make_train_function",
            "a model of Keras 2 that was fitted before is not recorded",
            compiled.watch_making,
        ),
        Hook(
            "tf_keras.Model._maybe_load_initial_counters_from_ckpt",
            "a fit of Keras 2 that is resumed begins with its first epoch again",
            compiled.watch_beginning,
        ),
        Hook("tf_keras.src.optimizers.optimizer._BaseOptimizer.apply_gradients", _NO_STEP, apply),
        Hook("tf_keras.optimizers.legacy.Optimizer.apply_gradients", _NO_STEP, apply),
        Hook("tf_keras.optimizers.Optimizer._internal_apply_gradients", _NO_CLIPPED, keras2.watch_update),
        Hook(
            "tf_keras.optimizers.legacy.Optimizer._transform_gradients",
            _NO_CLIPPED,
            keras2.watch_legacy_clipping,
        ),
        Hook(f"{_SCALED}.LossScaleOptimizer.get_scaled_loss", _SCALED_LOSS, keras2.watch_scaling),
        Hook(f"{_SCALED}.LossScaleOptimizerV3.get_scaled_loss", _SCALED_LOSS, keras2.watch_scaling),
    ]
