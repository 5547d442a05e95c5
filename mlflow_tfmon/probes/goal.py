"""Plain fields of a Keras loss: neither it nor what it refers to is held."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mlflow_tfmon import kerases

KERAS = ("keras", "tf_keras")
# How a loss is made one number, if that does not depend on how large a batch is.
_MEANS = ("sum_over_batch_size", "mean", "auto")


@dataclass(frozen=True)
class Goal:
    """What a training makes small.

    Attributes:
        name: the loss's name in snake case; "" for one of the user's own, or several.
        about: what tells it from others.
        from_logits: whether it takes logits.
        plain: whether it is a mean over the examples, so that it can be compared with a constant prediction's.
        ignores: whether a label stands for "none".
    """

    name: str
    about: str
    from_logits: bool
    plain: bool
    ignores: bool


def goal_of(model: Any) -> Goal:
    """What a compiled model, or anything with a `loss`, makes small."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    if isinstance(loss, str):
        loss = kerases.of(model).losses.get(loss)  # of its many names the one that it has
    weights = getattr(getattr(model, "_compile_config", None), "config", {}).get("loss_weights")
    known = {"from_logits": getattr(loss, "from_logits", False), **getattr(loss, "_fn_kwargs", {})}
    reduction = getattr(loss, "reduction", _MEANS[0])
    values = sorted(
        f"{name}={value}" for name, value in known.items() if isinstance(value, (str, int, float))
    )
    about = f"{_name(loss)} {values} {reduction} {weights}"
    name = _name(loss) if getattr(loss, "__module__", "").split(".")[0] in KERAS else ""
    if name == "huber" and known.get("delta", 1.0) != 1.0:
        name = ""  # the constant prediction's loss is another
    plain = weights is None and reduction in _MEANS
    return Goal(name, about, bool(known["from_logits"]), plain, known.get("ignore_class") is not None)


def _name(loss: Any) -> str:
    """A loss's name in snake case."""
    if isinstance(loss, (list, tuple, dict)):
        each = loss.values() if isinstance(loss, dict) else loss
        return "+".join(_name(one) for one in each)
    if hasattr(loss, "__name__"):
        return str(loss.__name__)
    return loss if isinstance(loss, str) else re.sub(r"(?<!^)(?=[A-Z])", "_", type(loss).__name__).lower()
