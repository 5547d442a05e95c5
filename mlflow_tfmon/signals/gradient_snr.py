"""The signal-to-noise ratio of a variable's gradient: how much of it is the same from step to step.

Liu et al. 2020, "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters": of a parameter, the
square of its gradient's mean over its variance. Here mean and variance are taken over deep steps, the last some ten of
them by exponential weights, and of a variable the sums over (a sample of) its elements are divided.
"""

from __future__ import annotations

from typing import Any

from mlflow_tfmon.signals.signal import SAMPLE, Ingredient, Of, Signal

DECAY = 0.9  # of what was seen, from one deep step to the next


def _ratio(v: Any, state: Any) -> tuple[Any, Any]:
    import tensorflow as tf

    gradient = v.gradient  # of fewer elements than SAMPLE zeros follow, which add nothing to either sum
    first, second, (weight, squares) = (
        state[:SAMPLE],
        state[SAMPLE : 2 * SAMPLE],
        tf.unstack(state[2 * SAMPLE :]),
    )
    first, second = (
        DECAY * old + (1 - DECAY) * new for old, new in ((first, gradient), (second, tf.square(gradient)))
    )
    weight, squares = DECAY * weight + (1 - DECAY), DECAY**2 * squares + (1 - DECAY) ** 2
    mean = first / weight
    # Unbiased, as a variance of n values is divided by n - 1; at the first deep step there is none.
    variance = (second / weight - tf.square(mean)) / (1 - squares / weight**2)
    noise = tf.reduce_sum(variance)
    ratio = tf.where(noise > 0, tf.reduce_sum(tf.square(mean)) / noise, tf.constant(float("nan"), tf.float64))
    return ratio, tf.concat([first, second, tf.stack([weight, squares])], axis=0)


GRADIENT_SNR = Ingredient("gradient_snr", _ratio, Of.GRADIENT, state=2 * SAMPLE + 2)

SIGNALS = (
    Signal(
        name="gradient_snr",
        finish=lambda a: a["gradient_snr"],
        needs=(GRADIENT_SNR,),
        formula="Σ mean(g)² / Σ variance(g), over the last deep steps (exponential weights, decay 0.9), of up to "
        "128 elements",
        label="gradient signal-to-noise ratio",
        healthy="falls as training goes on; far below 1, steps are mostly noise",
        undefined="at the first deep step, for gradients that do not change, and for sparse ones",
        curve=False,
        panel=True,
    ),
)
