"""Detector of steps that are too large: the loss rises, or never settles."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import broken, diverged, learning, losses, supervised
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import band, lower, rate, update_ratio


def detect(
    history: History,
    *,
    min_update_ratio: float = 0.1,
    min_single_update_ratio: float = 2.0,
    min_rise: float = 3.0,
) -> Iterator[Problem]:
    """Finds trainings that diverge, or learn nothing, with steps that change the weights by a tenth of their norm.

    About a thousandth per step is usual. A single step is enough if it changed them by twice their norm (Ftrl's first
    step rewrites them, and does no harm). Divergence is also reported if the loss had risen threefold over several
    steps (except in a loop whose targets are unknown: a loss on a model's own predictions may rise), or if the learning
    rate is above the optimizer's usual range; such a rate is also reported if little was learned by half of the
    training. Source: LeCun et al., 1998 (steps beyond the curvature's limit grow geometrically). Does not find a rate
    that is only somewhat too high.

    Args:
        history: the training up to some step.
        min_update_ratio: least median change of the weights by a step, as a share of their norm.
        min_single_update_ratio: the same of a single step.
        min_rise: least rise of the loss, a factor.
    """
    state = learning(history)
    gone = diverged(history)
    bad = history.nonfinite.get("loss")
    lr, optimizer = rate(history), history.premises.optimizer if history.premises is not None else ""
    unusual = bool(optimizer) and lr > band(optimizer)[1]
    if not gone and not state.nothing(0.15) and not (unusual and state.little(0.5)):
        return
    if bad is not None and bad.first == 1:
        return  # no step had been made
    usual, most = update_ratio(history)
    curve = losses(history)
    rose = float(curve.most.max() / state.begun) if len(curve) and state.begun > 0 else 0.0
    reasons = []
    if usual >= min_update_ratio or (gone and most >= min_update_ratio):
        reasons.append(
            f"steps change the weights by {_times(max(usual, most))} their norm (threshold: {min_update_ratio:g})"
        )
    elif most >= min_single_update_ratio:  # and the weights have not moved since
        reasons.append(
            f"one step changed the weights by {_times(most)} their norm (threshold: {min_single_update_ratio:g})"
        )
    if gone and rose >= min_rise and (supervised(history) or broken(history)):
        peak = int(curve.most[:, 0].argmax())
        reasons.append(
            f"the loss rose from {state.begun:.3g} at step {curve.first[0]:.0f} to {curve.most[peak, 0]:.3g} at step "
            f"{curve.last[peak]:.0f} (threshold: {min_rise:.0f}-fold)"
        )
    if unusual:
        reasons.append(f"a learning rate of {lr:.3g} is far above the usual range for {optimizer}")
    if not reasons:
        return
    became = "is no longer finite" if broken(history) else "has diverged" if gone else f"has {state.progress}"
    high = curve.first[curve.most[:, 0] >= min_rise * state.begun] if gone and len(curve) else curve.first[:0]
    yield Problem(
        "learning_rate_too_high", "critical", int(high[0]) if len(high) else 1, (),
        f"The loss {became}, and {', and '.join(reasons)}.",
        f"{lower(history)}.", history.step, 0.9 if len(reasons) > 1 or gone else 0.8,
    )  # fmt: skip


def _times(ratio: float) -> str:
    """A ratio in words, to two digits: "0.25 of", "250 times"."""
    return f"{ratio:.2g} of" if ratio < 1 else f"{float(f'{ratio:.2g}'):,g} times"
