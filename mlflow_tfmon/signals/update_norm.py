"""The norm of what a step does to a variable."""

from __future__ import annotations

import numpy as np

from mlflow_tfmon.signals.signal import Signal
from mlflow_tfmon.signals.weights import CHANGE

SIGNALS = (
    Signal(
        name="update_norm",
        finish=lambda a: np.sqrt(2 * a["change"]),
        needs=(CHANGE,),
        formula="‖Δw‖",
        label="update norm",
        healthy="falls as the learning rate does",
        undefined="the weights were not updated",
        curve=False,
        panel=True,
    ),
)
