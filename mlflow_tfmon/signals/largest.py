"""The largest absolute weight and gradient of a variable: what a norm over millions of elements hides."""

from __future__ import annotations

from mlflow_tfmon.signals.signal import Ingredient, Of, Signal

LARGEST_WEIGHT = Ingredient("largest_weight", lambda v: v.largest(v.new), join="max")
LARGEST_GRADIENT = Ingredient("largest_gradient", lambda v: v.largest(v.gradient), Of.GRADIENT, join="max")

SIGNALS = (
    Signal(
        name="largest_weight",
        finish=lambda a: a["largest_weight"],
        needs=(LARGEST_WEIGHT,),
        formula="max |w| after the step",
        label="largest weight",
        healthy="below 10; float16 ends at 65,504",
        curve=False,
        panel=True,
    ),
    Signal(
        name="largest_gradient",
        finish=lambda a: a["largest_gradient"],
        needs=(LARGEST_GRADIENT,),
        formula="max |g|, before clipping",
        label="largest gradient",
        healthy="within a factor of 1,000 of the gradient's root mean square",
        curve=False,
        panel=True,
    ),
)
