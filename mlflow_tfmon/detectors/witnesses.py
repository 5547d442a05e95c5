"""Examples as witnesses: a problem that a batch may have brought about names the batch of its step, and the example."""

from __future__ import annotations

import dataclasses

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem

# What a bad example can bring about, by why its batch was kept.
_BY = {
    "nan_or_inf": ("not_finite", "spike"),
    "exploding_gradient": ("spike", "not_finite"),
    "learning_rate_too_high": ("spike", "not_finite"),
    "oscillating_loss": ("spike",),
    "unnormalized_input": ("spike", "not_finite"),
}


def witnessed(problem: Problem, history: History) -> Problem:
    """Returns a problem whose evidence names the kept batch of its first bad step.

    Where no example stands out, only what is not finite says so: all else has other causes more often.
    """
    for kind in _BY.get(problem.kind, ()):
        found = [
            one for one in history.witnesses
            if one.kind == kind and (problem.kind == "nan_or_inf" or one.text.startswith("Example"))
        ]  # fmt: skip
        if found:
            return dataclasses.replace(problem, evidence=f"{problem.evidence} {found[0].text}")
    return problem
