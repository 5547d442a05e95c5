"""Detector of gradients, or values, that grow without bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import diverged, learning
from mlflow_tfmon.detectors.nan_or_inf import BY_HAND
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import lower

_BEGIN = (
    "Use ReLU (initialized with he_normal), GELU or tanh in the hidden layers, and inputs of about unit scale; in deep "
    "nets add BatchNormalization or residual connections."
)


def detect(history: History, *, min_growth: float = 1e3) -> Iterator[Problem]:
    """Finds gradient norms that grew a thousandfold, or are a thousand times larger in early layers than in late ones.

    Only if the loss diverged or nothing was learned: a spike that a training recovers from is not reported. A loss that
    is not finite at the very first step, with finite data, is an overflow in the forward pass: no step could have
    spoilt the weights yet. Sources: Pascanu et al., 2013; AutoTrainer (ICSE 2021) has a ratio of 70 between layers.

    Args:
        history: the training up to some step.
        min_growth: least growth of the gradient norm, or ratio of a kernel's to the last kernel's, a factor.
    """
    state = learning(history)
    bad = history.nonfinite.get("loss")
    if bad is not None and bad.first == 1:
        data = history.premises
        unseen = data is None or data.inputs is None
        if data is None or not any(s is not None and s.nonfinite for s in (data.inputs, data.targets)):
            yield Problem(
                "exploding_gradient", "critical", 1, (),
                "The loss is not finite at the first step, before any update: values overflow in the forward pass"
                + (", or the data are not finite (they were not examined)." if unseen else "."),
                _BEGIN if data is None or data.loss else f"Check {BY_HAND}, and the scale of the inputs.",
                bad.last, 0.7,
            )  # fmt: skip
        return
    norms = history.steps.column("grad_norm")
    if not len(norms) or not (diverged(history) or state.nothing(0.1)):
        return
    usual = float(np.median(norms.mean[: max(1, len(norms) // 4), 0]))
    peak = int(norms.most[:, 0].argmax())
    if norms.most[peak, 0] >= min_growth * usual > 0:
        began = int(np.argmax(norms.most[:, 0] >= min_growth * usual))
        yield Problem(
            "exploding_gradient", "critical", int(norms.first[began]), _largest(history),
            f"The gradient norm rose from {norms.mean[0, 0]:.3g} at step {norms.first[0]:.0f} to "
            f"{norms.most[peak, 0]:.3g} at step {norms.last[peak]:.0f} (threshold: a factor of {min_growth:.0f}).",
            f"{_clip(history)}. If "
            f"that does not help: {_BEGIN}",
            int(norms.last[-1]), 0.9,
        )  # fmt: skip
        return
    layers = history.over_kernels(history.gradients)
    if len(layers.names) < 3 or not len(layers):
        return
    each = layers.medians()
    top = int(np.nanargmax(each)) if np.isfinite(each).any() else 0
    if top < len(each) - 1 and each[top] >= min_growth * each[-1] > 0 and each[top] > 1.0:
        yield Problem(
            "exploding_gradient", "critical", 1, (layers.names[top],),
            f"The gradient norm of {layers.names[top]} is {each[top]:.3g}, that of the last kernel {each[-1]:.3g} "
            f"(threshold: a factor of {min_growth:.0f}), and nothing has been learned.",
            _BEGIN, history.step, 0.8,
        )  # fmt: skip


def _clip(history: History) -> str:
    text, clip = lower(history), "Clip gradients (clipnorm=1.0 in the optimizer)"
    return text if text.startswith(clip) else f"{clip} and {text[0].lower()}{text[1:]}"


def _largest(history: History) -> tuple[str, ...]:
    table = history.gradients
    if not len(table) or not np.isfinite(table.most).any():
        return ()
    most = np.nan_to_num(np.nanmax(np.where(np.isfinite(table.most), table.most, 0.0), axis=0))
    return tuple(table.names[at] for at in np.argsort(-most)[:3])
