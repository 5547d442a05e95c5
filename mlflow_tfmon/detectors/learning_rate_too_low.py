"""Detector of steps that are too small to get anywhere within the training, or have become so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, Learning, fell_by, learning, losses
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import USUAL, higher, rate, suited_rate, update_ratio, way
from mlflow_tfmon.detectors.vanishing_gradient import instead_of_sigmoid

_DEEP = 3  # layers
_FEWEST_ROWS = 16  # of the curve, before the rate fell


def detect(
    history: History,
    *,
    max_path: float = 0.1,
    min_gradient_left: float = 0.3,
    max_rate_left: float = 0.01,
    min_share_of_steps: float = 0.5,
) -> Iterator[Problem]:
    """Finds weights that all steps of the training together could not move by a tenth, while little is learned.

    Future steps are assumed to be as large as recent ones (those of a warm-up grow). No single step may have moved the
    weights that far: the others would then be small because there is nothing left to move. The gradient must have kept
    a third of its initial norm: if it is gone, larger steps would not help. Applied once a quarter of the training is
    over. A custom loop, whose length is unknown, is assumed to run for as long again as it has run, and for at least
    2,000 steps: the problem may therefore be reported too early or too late.

    Also a learning rate that fell to a hundredth of its largest value while the loss was still falling, and has stayed
    there for half of the steps so far, with less than 70% learned: a schedule that ends too early (its steps taken for
    epochs), or is lowered at each small plateau.

    Args:
        history: the training up to some step.
        max_path: largest change of the weights by all steps together, as a share of their norm.
        min_gradient_left: least share of its initial norm that the gradient still has.
        max_rate_left: largest share of its largest value that a learning rate has which has fallen.
        min_share_of_steps: least share of the steps so far since it has.
    """
    state = learning(history)
    if fallen := _fallen(history, state, max_rate_left, min_share_of_steps):
        yield fallen
        return
    usual, most = update_ratio(history)
    norms = history.steps.column("grad_norm")
    if not state.little(0.25) or not len(norms) or not np.isfinite(usual):
        return
    path = way(history, state.share)
    begun = float(np.median(norms.mean[: max(1, len(norms) // 20), 0]))
    now = float(np.median(norms.mean[-max(1, len(norms) // 10) :, 0]))
    if 0 < path < max_path and most < max_path and now >= min_gradient_left * begun > 0:
        yield Problem(
            "learning_rate_too_low", "critical", 1, (),
            f"A step changes the weights by {usual:.1g} of their norm, so the whole training changes them by at most "
            f"{path:.1%} (threshold: {max_path:.0%}); the loss has {state.progress}, and its gradient has not shrunk.",
            _advice(history, usual),
            history.step, 0.85,
        )  # fmt: skip


def _fallen(history: History, state: Learning, max_left: float, min_share: float) -> Problem | None:
    """The problem that the learning rate fell while there was more to learn, or None."""
    rates = history.steps.column("learning_rate").since(max(history.start, history.premises_step))
    if not state.known or state.learned >= MUCH or not state.share >= 0.25 or not len(rates):
        return None
    level = rates.mean[:, 0]
    peak, high = float(level.max()), np.flatnonzero(level > max_left * level.max())
    if not len(high) or high[-1] + 1 >= len(level):
        return None
    since = float(rates.first[high[-1] + 1])
    curve = losses(history)
    before = curve.rows(curve.last < since)
    if len(before) < _FEWEST_ROWS:  # too few to tell whether the loss was still falling
        return None
    if since > history.at(1 - min_share) or not fell_by(history, before.rows(slice(len(before) // 2, None))):
        return None
    total = f"{history.total_steps} steps" if history.total_steps else "steps"
    return Problem(
        "learning_rate_too_low", "critical" if state.little(0.25) else "warning", int(since), (),
        f"The learning rate fell from {peak:.3g} to {level[-1]:.3g} while the loss was still falling, and has been "
        f"below {max_left:.0%} of that since step {since:.0f} (of {history.step} so far); the loss has "
        f"{state.progress}.",
        f"Keep the learning rate at {peak:.3g}, or have it fall over all {total} of the training: Keras's schedules "
        "count steps, not epochs; ReduceLROnPlateau takes a larger patience.",
        history.step, 0.85,
    )  # fmt: skip


def _advice(history: History, moved: float) -> str:
    layers = history.premises.layers if history.premises is not None else ()
    squashed = [one for one in layers if one.activation == "sigmoid" and not one.is_output]
    if (
        len(squashed) >= _DEEP
    ):  # each of which leaves at most a quarter of a gradient: no rate makes up for that
        return instead_of_sigmoid(history)
    suited, lr = suited_rate(history, USUAL), rate(history)
    factor = suited / lr if suited > 0 and lr > 0 else USUAL / max(moved, 1e-12)
    so = f"so that a step changes the weights by about {USUAL:.1%} of their norm"
    return f"{higher(history, max(factor, 10.0))}, {so}."
