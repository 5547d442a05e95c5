"""Relative size of weight updates: a measure of the learning rate that does not depend on the optimizer."""

from __future__ import annotations

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.table import Table

# Usual learning rates by optimizer: a rate outside is no error, but a hint (Bengio, 2012; Keras's defaults are inside).
BANDS = {"sgd": (1e-5, 1.0), "adagrad": (1e-4, 1.0), "adadelta": (1e-4, 10.0), "ftrl": (1e-5, 1.0)}
ADAPTIVE = (1e-6, 0.03)
_DEFAULTS = {"sgd": 1e-2}  # Keras's own learning rates; else 1e-3
RANGE_TEST = (
    "Find a learning rate: model.fit(..., epochs=0, callbacks=[mlflow_tfmon.LearningRateRangeTest()])"
)
TESTED = "which the range test before the training suggests"
USUAL = 3e-3  # of a kernel's norm, that a step changes where training goes well
_BURST = 1e-6  # of the learning rate: if it would have to be less, the gradient is out of all bounds


def band(optimizer: str) -> tuple[float, float]:
    """The usual learning rates of an optimizer."""
    return BANDS.get(optimizer.lower(), ADAPTIVE)


def update_ratio(history: History) -> tuple[float, float]:
    """Change of a kernel in a step, relative to its norm: the median over kernels and rows, and the largest.

    About 1e-3 is usual. NaN if it was not measured.
    """
    rows = _rows(history)
    if not len(rows):
        return float("nan"), float("nan")
    return float(np.median(_over_kernels(rows.mean))), float(_over_kernels(rows.most).max())


def way(history: History, share: float) -> float:
    """How far a whole training can move a kernel, relative to its norm, if future steps are like recent ones.

    Args:
        history: the steps so far.
        share: share of the training that is over, above 0.
    """
    rows = _rows(history)
    if not len(rows):
        return float("nan")
    late = rows.since(history.at(0.75))
    pace = np.median(_over_kernels((late if len(late) else rows).mean))
    done = history.step - history.start
    return float(done * (np.median(_over_kernels(rows.mean)) + (1 / share - 1) * pace))


def suited_rate(history: History, ratio: float) -> float:
    """The learning rate with which the first measured step would have changed a kernel by a share of its norm.

    An estimate, to one significant digit: a step is taken to be proportional to the rate. NaN if it was not measured.

    Args:
        history: the steps so far.
        ratio: the share.
    """
    rows, rates = _rows(history), history.steps.column("learning_rate")
    if not len(rows) or not len(rates):
        return float("nan")
    moved, used = float(_over_kernels(rows.mean)[0]), float(rates.mean[0, 0])
    return rounded(used * ratio / moved) if moved > 0 and used > 0 else float("nan")


def rounded(value: float) -> float:
    """A number to one significant digit."""
    return float(f"{value:.0e}")


def _rows(history: History) -> Table:
    table = history.over_kernels(history.deep.get("update_ratio", Table()))
    return table.rows(np.isfinite(table.mean).any(axis=1)) if len(table.names) else Table()


def _over_kernels(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.nanmedian(values, axis=1)
    return found


def rate(history: History) -> float:
    """The median learning rate of the current fit; NaN if unknown."""
    column = history.steps.column("learning_rate")
    now = column.since(history.premises_step) if history.step > history.premises_step else column
    return float(np.median(now.mean)) if len(now) else float("nan")


def lower_rate(history: History) -> tuple[float, str]:
    """The learning rate to go down to, and why as a clause ("" for a tenth); NaN if the present one is unknown.

    A tenth, or less where the steps measured say so, or, without those, a tenth of the usual range's end; or what a
    range test found. If
    the first gradient is so large that no rate would do, it is that for gradients clipped to a norm of 1.
    """
    lr, known = rate(history), history.premises
    if not lr > 0:
        return float("nan"), ""
    if known is not None and known.suggested_rate < lr:
        return known.suggested_rate, f", {TESTED}"
    suited = suited_rate(history, USUAL)
    # What is usual for an optimizer stands in for what was not measured: embeddings may well learn with a rate of 50.
    usual = suited > 0 or known is None or not known.optimizer
    lower = min(lr / 10, lr if usual else band(known.optimizer)[1] / 10)  # type: ignore[union-attr]
    if bursts(history):
        norms = history.over_kernels(history.deep["weight_norm"]).mean[:1]
        suited = rounded(USUAL * float(np.nanmedian(norms)))
        return min(lower, suited), ""
    if suited < lower:
        return suited, f", with which a step changes the weights by about {USUAL:.1%} of their norm"
    return rounded(lower), ""


def bursts(history: History) -> bool:
    """Whether the first measured step was so large that the gradient is to be clipped, whatever the learning rate."""
    norms = history.over_kernels(history.deep.get("weight_norm", Table()))
    known = len(norms) > 0 and bool(np.isfinite(norms.mean[0]).any())
    return known and suited_rate(history, USUAL) < _BURST * rate(history)


def lower(history: History) -> str:
    """Advice to lower the learning rate, and to what; with gradients to be clipped where that is needed."""
    to, why = lower_rate(history)
    if not to > 0:
        return "Lower the learning rate by a factor of 10"
    known = history.premises
    measured = known is None or known.suggested_rate > 0 or suited_rate(history, USUAL) > 0
    if known is not None and not measured and rate(history) / 10 > band(known.optimizer)[1]:
        return f"{RANGE_TEST}, which is far below {rate(history):.3g}"  # how far is not known
    change = f"ower the learning rate from {rate(history):.3g} to {to:.2g}{why}"
    return (
        f"Clip gradients (clipnorm=1.0 in the optimizer) and l{change}" if bursts(history) else f"L{change}"
    )


def higher(history: History, factor: float) -> str:
    """Advice to raise the learning rate by a factor, within the usual range, and to what."""
    lr, known = rate(history), history.premises
    if not lr > 0:
        return f"Raise the learning rate by a factor of {rounded(max(factor, 3)):g}"
    if known is not None and known.suggested_rate > lr:
        return f"Raise the learning rate from {lr:.3g} to {known.suggested_rate:.2g}, {TESTED}"
    most = band(known.optimizer)[1] / 3 if known is not None and known.optimizer else float("inf")
    return f"Raise the learning rate from {lr:.3g} to {rounded(max(min(factor * lr, most), 3 * lr)):g}"


def default_rate(history: History) -> str:
    """Advice to go up to Keras's own learning rate, where a lower one was chosen; "" where it was not."""
    lr, known = rate(history), history.premises
    usual = _DEFAULTS.get(known.optimizer.lower(), 1e-3) if known is not None and known.optimizer else 0.0
    return f"raise the learning rate from {lr:.3g} to {usual:g}, which is usual" if lr < usual / 3 else ""


def usual_norm(history: History, before: int) -> float:
    """The median gradient norm of the steps before one, or that of the first step; NaN if it is unknown."""
    norms = history.steps.column("grad_norm")
    early = norms.rows(norms.last < before)
    early = early if len(early) else norms.rows(slice(0, 1))
    return float(np.median(early.mean[:, 0])) if len(early) else float("nan")
