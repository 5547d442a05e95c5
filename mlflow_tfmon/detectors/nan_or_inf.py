"""NaN or infinity, traced to the first step and to the variables whose gradient had it there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, broken, learning
from mlflow_tfmon.detectors.premises import UNKNOWN
from mlflow_tfmon.detectors.problem import Problem


def detect(history: History) -> Iterator[Problem]:
    """Sees losses, validation losses, gradient norms and data that are not finite.

    A step that loss scaling left out is none: there an overflow is looked for. Critical once the loss stays so, or
    weights are so afterwards (a ReLU makes 0 of NaN: the loss may be finite all the same). Can't see weights that are
    not finite and get no gradient. Counterpart of SageMaker Debugger's "tensor is nan or inf".
    """
    data = history.premises
    if data is not None:
        for name, sample in (("inputs", data.inputs), ("targets", data.targets)):
            if sample is not None and sample.nonfinite:
                # A loss, or a layer, of the user's own may leave them out.
                own = not data.graph or any(layer.activation == UNKNOWN for layer in data.layers)
                bears = own if name == "inputs" else not data.loss
                if bears and not history.nonfinite and learning(history).learned >= LITTLE:
                    continue
                at = (
                    f", the first in example {sample.nonfinite_at} (from 0)"
                    if sample.nonfinite_at >= 0
                    else ""
                )
                yield Problem(
                    "nan_or_inf", "warning" if bears and not broken(history) else "critical", min(1, history.step),
                    (), f"The {name} hold NaN or infinity: {sample.nonfinite} numbers{at}.",
                    f"Clean the {name} before the training: drop or fill those rows (numpy.isfinite finds them).",
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
        where = (
            f" Of {len(history.sizes)} gradients {len(variables)} were not finite there: it began in these."
        )
    before = history.steps.column("grad_norm")
    before = before.rows(before.last < first)
    norm = f" The largest gradient norm before was {before.most.max():.3g}." if len(before) else ""
    loss = found.get("loss")
    if loss is not None and loss.first > first:
        where += f" The loss followed at step {loss.first}."
    spoilt = _spoilt(history, first)
    if spoilt:
        where += f" The weights of {spoilt[0]} are not finite any more."
    unseen = data is None or data.inputs is None
    yield Problem(
        "nan_or_inf", "critical" if broken(history) or spoilt else "warning", first, variables,
        f"{what[0].upper()}{what[1:]} not finite at step {first} for the first time.{where}{norm}",
        "Lower the learning rate or clip gradients (clipnorm=1.0 in the optimizer); look for log, sqrt or "
        "division of 0 "
        "in your own loss and layers (keep them away from 0 with keras.ops.clip or an epsilon)."
        + (" See that the data are finite, which was not looked at." if unseen else ""),
        last, 1.0,
    )  # fmt: skip


def _spoilt(history: History, since: int) -> list[str]:
    """The variables whose gradient was not finite, and whose weights are not either since then."""
    norms = history.deep.get("weight_norm")
    if norms is None:
        return []
    names = [name for name in history.nonfinite if name in norms.names]
    after = norms.only(names).since(since)
    return [name for at, name in enumerate(names) if len(after) and not np.isfinite(after.mean[-1, at])]
