"""Hooks into Keras 3 (3.7 to 3.15)."""

from __future__ import annotations

from functools import partial

from mlflow_tfmon.probes import batches, compiled, losses, objective, optimizer, tape
from mlflow_tfmon.probes.hooks import Hook
from mlflow_tfmon.probes.step import OnRing

_OPTIMIZER = "keras.src.optimizers.base_optimizer.BaseOptimizer"
_SCALED = "keras.src.optimizers.loss_scale_optimizer.LossScaleOptimizer"
_TF_OPTIMIZER = "keras.src.backend.tensorflow.optimizer.TFOptimizer"
_TRAINER = "keras.src.trainers.trainer.Trainer"
_COMPILE_LOSS = "keras.src.trainers.compile_utils.CompileLoss"
_LAYER = "keras.src.layers.layer.Layer"

_NO_STEP = "no step is recorded"
_NO_CLIPPED = "clipped gradients are not recorded"
_SCALED_LOSS = "the loss of each step is the scaled one"
_NO_LOSSES = "the losses of a bad step's examples are not kept"
_NO_PARTS = "what the loss is made of is not recorded"


def hooks(on_ring: OnRing) -> list[Hook]:
    """The table; `on_ring` is told of each new ring and its optimizer."""
    return [
        Hook(f"{_OPTIMIZER}.apply", "weights are measured before their constraints", optimizer.watch_apply),
        Hook(
            f"{_OPTIMIZER}._backend_apply_gradients",
            _NO_STEP,
            partial(optimizer.watch_gradients, on_ring=on_ring),
        ),
        Hook(
            f"{_SCALED}._common_apply",
            "no step with loss scaling is recorded",
            partial(optimizer.watch_scaled, on_ring=on_ring),
        ),
        Hook(
            f"{_SCALED}._tf_apply",
            "losses on several replicas may be wrong with loss scaling",
            optimizer.watch_left_out,
        ),
        Hook(f"{_TF_OPTIMIZER}._backend_update_step", _NO_CLIPPED, optimizer.watch_update),
        Hook(f"{_TF_OPTIMIZER}._all_reduce_sum_gradients", _NO_CLIPPED, optimizer.watch_reduction),
        Hook(f"{_OPTIMIZER}.scale_loss", _SCALED_LOSS, tape.watch_scaling),
        Hook(f"{_SCALED}.scale_loss", _SCALED_LOSS, tape.watch_scaling),
        Hook(
            "keras.src.backend.tensorflow.trainer.TensorFlowTrainer.make_train_function",
            "a model that was fitted before is not recorded",
            compiled.watch_making,
        ),
        Hook(
            "keras.src.losses.loss.Loss.__call__",
            "some problems of loops may not be found",
            objective.watch_call,
        ),
        Hook("keras.src.losses.loss.reduce_weighted_values", _NO_LOSSES, batches.watch_losses),
        Hook(f"{_TRAINER}._compute_loss", _NO_PARTS, losses.watch_total),
        Hook(f"{_TRAINER}.compute_loss", _NO_PARTS, losses.watch_sum),
        Hook(f"{_COMPILE_LOSS}.build", _NO_PARTS, losses.watch_build),
        Hook(f"{_COMPILE_LOSS}.call", _NO_PARTS, losses.watch_compiled),
        Hook(f"{_LAYER}._get_own_losses", _NO_PARTS, losses.watch_additional),
        Hook(f"{_LAYER}._get_regularization_losses", _NO_PARTS, losses.watch_additional),
    ]
