"""Detector of attention networks whose first steps are too large, for want of a warm-up."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import BANDS, band, first_update_ratio, rate

_GROWS = 2.0  # times the first learning rate: a warm-up goes further
_FEWEST, _SHARE = 100, 0.1  # steps of a warm-up, and its share of the training


def detect(history: History, *, min_update_ratio: float = 0.03) -> Iterator[Problem]:
    """Finds networks with attention that learn nothing, or diverge, after first steps of 3% of the weights.

    The first steps of Adam and its like change each weight by the learning rate, whatever the gradient: their averages
    are not settled. Attention that is sharp after a few such steps has little gradient left. Reported for learning
    rates that are usual and do not grow from small ones, if nothing is learned in 15% of the training, or less than 30%
    in half of it. Source: Xiong et al., 2020. Whether there is attention goes by the layers, or the kernels' names.

    Args:
        history: the training up to some step.
        min_update_ratio: least change of a kernel by the first measured step, as a share of its norm (median over the
            kernels).
    """
    known, state, lr = history.premises, learning(history), rate(history)
    if known is None or not known.optimizer or known.optimizer.lower() in BANDS or not _attends(history):
        return
    if not (state.nothing(0.15) or state.little(0.5) or diverged(history)) or lr > band(known.optimizer)[1]:
        return
    rates, first = history.steps.column("learning_rate"), first_update_ratio(history)
    if not len(rates) or not first >= min_update_ratio:
        return
    begun, most = float(rates.least[0, 0]), float(rates.most[:, 0].max())
    if most > _GROWS * begun:
        return
    total = history.total_steps or history.step
    warm = max(_FEWEST, int(_SHARE * total))
    yield Problem(
        "no_warmup", "critical", 1, (),
        f"The first steps of {known.optimizer} changed the weights by {first:.1%} of their norm (threshold: "
        f"{min_update_ratio:.0%}) in a network with attention, without a warm-up of the learning rate ({begun:.3g} "
        f"from the first step on); the loss has {state.progress}.",
        f"Warm up: learning_rate=keras.optimizers.schedules.CosineDecay(0.0, {max(total - warm, warm)}, "
        f"warmup_target={most:.3g}, warmup_steps={warm}). If that does not help, a tenth of the learning rate.",
        history.step, 0.75,
    )  # fmt: skip


def _attends(history: History) -> bool:
    layers = history.premises.layers if history.premises is not None else ()
    kernels = " ".join(history.kernels)
    return any("Attention" in one.kind for one in layers) or "attention" in kernels or ".query." in kernels
