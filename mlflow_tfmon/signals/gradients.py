"""The signals of a variable's gradient."""

from __future__ import annotations

import numpy as np

from mlflow_tfmon.signals.signal import Arrays, Ingredient, Of, Signal, When

HALF_SQUARE = "half_square"  # of the gradient, which is computed at every step
NONZERO = Ingredient("nonzero", lambda v: v.count(v.gradient != 0), Of.GRADIENT)


def _norm(a: Arrays) -> np.ndarray:
    norms: np.ndarray = np.sqrt(2 * a[HALF_SQUARE])
    return norms


SIGNALS = (
    Signal(
        name="grad_norm",
        finish=_norm,
        needs=(HALF_SQUARE,),
        formula="‖g‖",
        label="gradient norm",
        healthy="early and late layers within a factor of 1,000",
        when=When.STEP,
        panel=True,
    ),
    Signal(
        name="grad_norm_clipped",
        finish=_norm,
        needs=(HALF_SQUARE,),
        formula="the same after clipping, where gradients are clipped",
        label="clipped gradient norm",
        healthy="below `grad_norm` now and then, not always",
        when=When.STEP,
        curve=False,
    ),
    Signal(
        name="grad_zero_fraction",
        # A sparse gradient leaves out elements, which are zeros as well.
        finish=lambda a: (a["size"] - a["nonzero"]) / a["size"],
        needs=(NONZERO,),
        formula="elements of g that are exactly 0 / all",
        label="share of zeros in the gradient",
        healthy="near 0; high for embeddings and for dead units",
        curve=False,
    ),
)
