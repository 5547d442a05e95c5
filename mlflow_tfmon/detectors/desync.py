"""Detector of workers that do not train the same model any more."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import Apart, History
from mlflow_tfmon.detectors.problem import Problem


def detect(history: History, *, max_part: float = 1e-3) -> Iterator[Problem]:
    """Finds workers whose weights are not the chief's bit for bit, or whose summed gradient is another.

    All workers add the same sum of gradients to the same weights, so nothing else brings them together again. Weights
    are compared at deep steps, at most 16 apart, gradients at each step.

    Args:
        history: the training up to some step.
        max_part: part of the gradient norm up to which another one, by itself, is a matter of rounding: a warning.
    """
    weights, gradients = (
        {name.split("/")[0].replace("_", " "): one for name, one in history.apart.items()
         if one.count and name.endswith(of)}
        for of in ("/weights_apart", "/gradient_apart")
    )  # fmt: skip
    found = [*weights.values(), *gradients.values()]
    if not found:
        return
    first = min(found, key=lambda one: one.first)
    evidence = []
    if weights:
        told = ", ".join(
            f"{worker} from step {one.first} on{_weights(one)}" for worker, one in weights.items()
        )
        evidence.append(f"Weights differ from the chief's: {told}.")
    if gradients:
        told = ", ".join(
            f"{worker} at {one.count} steps from step {one.first} on (the norm by up to {one.part:.2g} of it)"
            for worker, one in gradients.items()
        )
        evidence.append(
            f"Gradients, once summed, are not those of the chief: {told}; the loss of such steps is not recorded."
        )
    serious = bool(weights) or any(one.part > max_part for one in gradients.values())
    yield Problem(
        "desync", "critical" if serious else "warning", first.first,
        tuple(dict.fromkeys(one.variable for one in weights.values() if one.variable)), " ".join(evidence),
        (f"Go on from a checkpoint of step {first.before} or before. " if first.before else "")
        + "Look for what one worker does alone: weights that it loads or assigns, a layer or an optimizer made "
        "outside strategy.scope(), a step more or less than the others, other versions or another processor; "
        "mlflow_tfmon.autolog() at another place of its script. If it is none of these, test that machine's memory.",
        max(one.last for one in found), 0.95,
    )  # fmt: skip


def _weights(one: Apart) -> str:
    told = [f"{one.variable} first"] if one.variable else []
    told += [f"the same at step {one.before}"] if one.before else []
    return f" ({'; '.join(told)})" if told else ""
