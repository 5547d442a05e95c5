"""Steps that are too large: the loss rises, or never settles."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import broken, diverged, learning, losses, supervised
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import band, rate, update_ratio

_LARGE = 0.1
_HUGE = 2.0
_ROSE = 3.0


def detect(history: History) -> Iterator[Problem]:
    """Sees a loss that diverged, or learned nothing, under steps that change the weights by a tenth.

    About a thousandth a step is usual. A single step counts where it changed them by twice their norm (Ftrl's first one
    makes them anew, and does no harm). A loss that diverged counts as well where it had risen threefold over several
    steps (not in a loop whose targets nobody knows: what is learned from its own predictions may rise), or where the
    rate is above the optimizer's usual band; such a rate counts as well where little was learned by half. Source: LeCun
    et al., 1998 (steps beyond the curvature's limit grow geometrically). Can't see a rate that is only somewhat too
    high.
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
    if usual >= _LARGE or (gone and most >= _LARGE):
        reasons.append(
            f"steps change the weights by {max(usual, most):.2g} of their norm ({_LARGE:g} counts)"
        )
    elif most >= _HUGE:  # and what it left does not move any more
        reasons.append(f"a step changed the weights by {most:.2g} of their norm ({_HUGE:g} counts)")
    if gone and rose >= _ROSE and (supervised(history) or broken(history)):
        reasons.append(f"the loss rose {rose:.3g}-fold ({_ROSE:.0f}-fold counts)")
    if unusual:
        reasons.append(f"a learning rate of {lr:.3g} is far above what {optimizer} is used with")
    if not reasons:
        return
    little = f"has made {max(state.learned, 0):.0%} of the way from a constant prediction to zero"
    became = "is not finite any more" if broken(history) else "has diverged" if gone else little
    high = curve.first[curve.most[:, 0] >= _ROSE * state.begun] if gone and len(curve) else curve.first[:0]
    yield Problem(
        "learning_rate_too_high", "critical", int(high[0]) if len(high) else 1, (),
        f"The loss {became}, and {', '.join(reasons)}.",
        f"Lower the learning rate{f' ({lr:.3g})' if lr == lr else ''} by a factor of 10, begin with a warm-up, or clip "
        "gradients (clipnorm=1.0).",
        history.step, 0.9 if len(reasons) > 1 or gone else 0.8,
    )  # fmt: skip
