"""The signals of a variable's weights and of what a step does to them."""

from __future__ import annotations

import numpy as np

from mlflow_tfmon.signals.signal import Ingredient, Signal

AFTER = Ingredient("after", lambda v: v.half_square(v.new))
BEFORE = Ingredient("before", lambda v: v.half_square(v.old))
CHANGE = Ingredient("change", lambda v: v.half_square(v.new - v.old), of_update=True)


SIGNALS = (
    Signal(
        name="weight_norm",
        finish=lambda a: np.sqrt(2 * a["after"]),
        needs=(AFTER,),
        formula="‖w‖ after the step",
        label="weight norm",
        healthy="changes slowly",
        panel=True,
    ),
    Signal(
        name="update_ratio",
        finish=lambda a: np.where(a["before"] > 0, np.sqrt(a["change"] / a["before"]), np.nan),
        needs=(CHANGE, BEFORE),
        formula="‖Δw‖ / ‖w before‖",
        label="update ratio",
        healthy="1e-4 to 1e-2",
        undefined="the weights were all zero before the step, or were not updated",
        band=(1e-4, 1e-2),  # updates of about a thousandth of the weights (Karpathy, CS231n, "Babysitting")
        panel=True,
    ),
)
