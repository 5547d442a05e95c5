"""Detector of NaN and infinity: the first step with them, and the variables whose gradients had them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, broken, learning
from mlflow_tfmon.detectors.premises import UNKNOWN
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.detectors.table import Table
from mlflow_tfmon.detectors.updates import lower

BY_HAND = (
    "your own loss and layers for log(0), sqrt(0) and division by 0 (keep arguments away from 0 with "
    "keras.ops.clip or an epsilon)"
)
_MANY = 0.01  # of the examples: so many values are filled in rather than left out
_GROWN = 10.0  # times its usual norm: such a gradient comes from steps that are too large


def detect(history: History) -> Iterator[Problem]:
    """Finds losses, validation losses, gradient norms and data that are not finite.

    A step that loss scaling skipped is ignored: an overflow is expected there. Critical once the loss stays non-finite,
    or weights are so afterwards (a ReLU turns NaN into 0: the loss may be finite nevertheless). Does not find
    non-finite weights that get no gradient. Counterpart of SageMaker Debugger's "tensor is nan or inf".
    """
    data = history.premises
    if data is not None:
        samples = {
            "inputs": data.inputs,
            "targets": data.targets,
            "validation inputs": data.val_inputs,
            "validation targets": data.val_targets,
        }
        for name, sample in samples.items():
            held_out = name.startswith("validation")
            trained = [series for series in history.nonfinite if series != "epoch val_loss"]
            if held_out and trained:  # validation data cannot be the cause
                continue
            if sample is not None and sample.nonfinite:
                # A custom loss or layer may mask them.
                own = not data.graph or any(layer.activation == UNKNOWN for layer in data.layers)
                bears = own if name.endswith("inputs") else not data.loss
                if bears and not history.nonfinite and learning(history).learned >= LITTLE:
                    continue
                at = (
                    f"; first: {'x' if name.endswith('inputs') else 'y'}[{sample.nonfinite_at}]"
                    + " of the validation data" * held_out
                    if sample.nonfinite_at >= 0
                    else ""
                )
                values = "value" if sample.nonfinite == 1 else "values"
                struck = ""
                if history.nonfinite:
                    name_bad, first_bad = min(history.nonfinite.items(), key=lambda one: one[1].first)
                    of = "gradient" if name_bad in history.sizes else name_bad
                    struck = f" The {of} became NaN or infinite at step {first_bad.first}."
                yield Problem(
                    "nan_or_inf", "warning" if (bears or held_out) and not broken(history) else "critical",
                    int(held_out), (),  # data of the training are there before the first step
                    f"The {name} contain {sample.nonfinite} non-finite {values} (NaN or infinity){at}.{struck}",
                    _cleaning(name, sample),
                    history.step, 1.0,
                )  # fmt: skip
                return
    of_steps = "loss" in history.steps
    found = {
        name: at
        for name, at in history.nonfinite.items()
        if not name.startswith("epoch ")
        or name == "epoch val_loss"
        or (name == "epoch loss" and not of_steps)
    }
    if not found:
        return
    first = min(at.first for at in found.values())
    last = max(at.last for at in found.values())
    there = [name for name, at in found.items() if at.first == first]
    variables = tuple(name for name in there if name in history.sizes)
    series = [name for name in there if name not in history.sizes]
    what = " and ".join(series) or "a gradient"
    where = ""
    if variables and len(variables) < len(history.sizes):
        where = f" It started in {len(variables)} of {len(history.sizes)} gradients."
    before = history.steps.column("grad_norm")
    before = before.rows(before.last < first)
    norm = f" The largest gradient norm before that was {before.most.max():.3g}." if len(before) else ""
    loss = found.get("loss")
    if loss is not None and loss.first > first:
        where += f" The loss followed at step {loss.first}."
    spoilt = _spoilt(history, first)
    if spoilt:
        where += f" The weights of {spoilt[0]} are no longer finite."
    unseen = data is None or data.inputs is None
    yield Problem(
        "nan_or_inf", "critical" if broken(history) or spoilt else "warning", first, variables,
        f"{what[0].upper()}{what[1:]} became NaN or infinite at step {first}.{where}{norm}",
        _advice(history, before)
        + (" Check that the data are finite: they were not examined." if unseen else ""),
        last, 1.0,
    )  # fmt: skip


def _cleaning(name: str, sample: Sample) -> str:
    """How to clean data; where many examples of numbers are concerned, they are too many to be dropped."""
    if name.endswith("inputs") and sample.axes == 2 and sample.nonfinite > _MANY * sample.count:
        return (
            f"Clean the {name} before training: fill in each feature's median, x = numpy.where(numpy.isfinite(x), x, "
            "numpy.nanmedian(numpy.where(numpy.isfinite(x), x, numpy.nan), axis=0)); all inputs likewise, with the "
            "medians of the training data."
        )
    return f"Clean the {name} before training: drop or fill those rows (numpy.isfinite finds them)."


def _advice(history: History, before: Table) -> str:
    """What to look at first: the steps if gradients had grown before, else what computes the loss."""
    usual = float(np.median(before.mean[: max(1, len(before) // 4), 0])) if len(before) else float("nan")
    if len(before) and before.most.max() >= _GROWN * usual:
        return f"{lower(history)}; then check {BY_HAND}."
    return f"Check {BY_HAND}. If there are none, lower the learning rate or clip gradients (clipnorm=1.0)."


def _spoilt(history: History, since: int) -> list[str]:
    """The variables whose gradient was not finite, and whose weights are not finite since then either."""
    norms = history.deep.get("weight_norm")
    if norms is None:
        return []
    names = [name for name in history.nonfinite if name in norms.names]
    after = norms.only(names).since(since)
    return [name for at, name in enumerate(names) if len(after) and not np.isfinite(after.mean[-1, at])]
