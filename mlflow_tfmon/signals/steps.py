"""The signals of a step as a whole: its loss, its learning rate, the norm of all its gradients, its times.

Those of `SIGNALS` are recorded by the trainer. Those of `MEASURES` are computed of them where they are delivered, since
a step's time is the time since the step before, without the pauses in between.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from mlflow_tfmon.signals.signal import Arrays, Signal, When

SECONDS = "seconds"  # that a step took, in the arrays of which a measure is made
_Of = partial(Signal, per_variable=False, when=When.STEP)


def _skipped(a: Arrays) -> np.ndarray:
    skipped: np.ndarray = 1.0 - np.isfinite(a["grad_norm/square"])  # Keras's rule for leaving a step out
    return skipped


SIGNALS = (
    _Of(
        name="time",
        finish=lambda a: a["time"],
        needs=("time",),
        formula="when the step's update had been done, Unix seconds",
        curve=False,
    ),
    _Of(
        name="input_time",
        finish=lambda a: a["input_time"],
        needs=("input_time", "input_start"),
        formula="when the step's batch was there, Unix seconds",
        curve=False,
    ),
    _Of(
        name="input_wait",
        finish=lambda a: a["input_time"] - a["input_start"],
        needs=("input_time", "input_start"),
        formula="time that the step waited for its batch, s",
        curve=False,
    ),
    _Of(
        name="examples",
        finish=lambda a: a["examples"],
        needs=("examples", "input_start"),
        formula="rows of the batch",
        curve=False,
    ),
    _Of(
        name="loss",
        finish=lambda a: a["loss"] / a["losses"],
        needs=("loss", "losses"),
        formula="the loss of that step's batch, as differentiated, including regularization "
        "(not Keras's running mean)",
        label="loss",
        healthy="falls, with noise",
        expected=True,
    ),
    _Of(
        name="learning_rate",
        finish=lambda a: a["learning_rate"],
        needs=("learning_rate",),
        formula="the rate used in the update",
        label="learning rate",
        healthy="follows your schedule",
    ),
    _Of(
        name="grad_norm",
        finish=lambda a: np.sqrt(a["grad_norm/square"]),
        needs=("grad_norm/square",),
        formula="√Σ‖g‖², before clipping, unscaled",
        label="gradient norm",
        healthy="stays within an order of magnitude; falls slowly",
        expected=True,
    ),
    _Of(
        name="grad_norm_clipped",
        finish=lambda a: np.sqrt(a["grad_norm_clipped/square"]),
        needs=("grad_norm_clipped/square",),
        formula="the same after clipping",
        label="clipped gradient norm",
        healthy="below `grad_norm` now and then, not always",
    ),
    _Of(
        name="applied",
        finish=lambda a: a["applied"],
        needs=("applied",),
        formula="0 where a step did not update the weights, else 1",
        curve=False,
    ),
    _Of(
        name="loss_scale",
        finish=lambda a: a["loss_scale"],
        needs=("loss_scale",),
        formula="with loss scaling: the scale",
        label="loss scale",
        healthy="halved now and then",
    ),
    _Of(
        name="skipped",
        finish=_skipped,
        needs=("grad_norm/square", "loss_scale"),
        formula="with loss scaling: 1 for a skipped step, else 0",
        label="skipped step",
        healthy="few skipped steps, each halves the scale",
    ),
    _Of(
        name="traces",
        finish=lambda a: a["traces"],
        needs=("traces",),
        formula="how often the step had been traced by then",
        curve=False,
    ),
)

MEASURES = (
    _Of(
        name="step_time_ms",
        finish=lambda a: a[SECONDS] * 1e3,
        needs=(SECONDS,),
        formula="from the end of one optimizer step to the next, ms; without pauses (validation), "
        "with tracing in step 1",
        label="step time",
        healthy="constant after the first steps",
        expected=True,
    ),
    _Of(
        name="examples_per_second",
        finish=lambda a: a["examples"] / a[SECONDS],
        needs=("examples", SECONDS),
        formula="rows of the batch / step time",
        label="number of examples a second",
        healthy="constant",
        expected=True,
    ),
    _Of(
        name="input_wait_share",
        finish=lambda a: np.clip(a["input_wait"] / a[SECONDS], 0.0, 1.0),
        needs=("input_wait", SECONDS),
        formula="time that the step waited for its batch / step time, 0 to 1",
        label="share of the time that is spent waiting for input",
        healthy="below 0.1; from 0.5 on, the input limits the speed",
        expected=True,
    ),
)
