"""Detector of one of several outputs that learns nothing while the others do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table

_FIRST_ROWS = 5
_OF_NO_OUTPUT = ("regularization_loss", "data_loss")
_SMALLER = 5.0  # times the largest initial loss: a loss so much smaller has little weight


def detect(
    history: History, *, max_learned: float = 0.05, min_others: float = 0.3, min_done: float = 0.5
) -> Iterator[Problem]:
    """Finds outputs whose own loss is less than 5% below its first steps' while another's has fallen by 30%.

    Applied once half of the training is over, to models with several outputs and a loss each (`fit` of Keras 3, and
    steps of loops in graphs), since their sum hides it. An output that is right from the start looks the same: whether
    there is something to learn is not known.

    Args:
        history: the training up to some step.
        max_learned: share of its initial loss by which that of a stuck output has fallen, at most.
        min_others: share by which that of the best output has fallen, at least.
        min_done: share of the training before which nothing is reported.
    """
    names = [n for n in history.steps.names if n.endswith("_loss") and n not in _OF_NO_OUTPUT]
    if len(names) < 2 or not history.alone or learning(history).share < min_done:
        return
    fallen, begun = {}, {}
    for name in names:
        first, now = _levels(history.steps.column(name))
        if first > 0 and now >= 0:
            begun[name], fallen[name] = first, 1 - now / first
    stuck = [name for name, share in fallen.items() if share < max_learned]
    best = max(fallen, key=lambda name: fallen[name], default="")
    if not stuck or fallen[best] < min_others:
        return
    worst = min(stuck, key=lambda name: fallen[name])
    output = worst.removesuffix("_loss")
    factor = max(begun.values()) / begun[worst]
    weight = f"{10 * max(1.0, factor):.1g}" if factor >= _SMALLER else "10"
    yield Problem(
        "output_not_learning", "warning", 1, tuple(name.removesuffix("_loss") for name in stuck),
        f"The loss of the output {output} is {begun[worst] * (1 - fallen[worst]):.3g} after {begun[worst]:.3g} in the "
        f"first steps (threshold: {max_learned:.0%} less), while that of {best.removesuffix('_loss')} fell by "
        f"{fallen[best]:.0%}.",
        f"{_more_weight(history, output, float(weight))}. If that does not help, check "
        f"that the targets of {output} belong to the inputs, and give it layers of its own before the last one.",
        history.step, 0.7,
    )  # fmt: skip


def _more_weight(history: History, output: str, weight: float) -> str:
    """Advice on the weight of an output."""
    if history.premises is not None and history.premises.more:  # a loop
        return f"Multiply the loss of {output} by {weight:g} before the losses are added up"
    return f'Give it more weight: compile(loss_weights={{"{output}": {weight:g}}})'


def _levels(curve: Table) -> tuple[float, float]:
    """The loss of the first steps (the largest, since batches differ) and of the last tenth."""
    if len(curve) < 2 * _FIRST_ROWS:
        return float("nan"), float("nan")
    first = float(curve.most[:_FIRST_ROWS, 0].max())
    return first, float(np.mean(curve.mean[-max(1, len(curve) // 10) :, 0]))
