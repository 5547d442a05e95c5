"""Tests of the order of problems: the cause first, what follows from it named as such."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_tfmon.detectors import CAUSES, OUTCOMES, Gatherer, History, Problem, judge
from mlflow_tfmon.detectors.causes import explained
from mlflow_tfmon.detectors.history import Witness
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.problems.current import Standing
from tests.detectors.histories import EPOCHS, STEPS, history, premises

KINDS = sorted(detect.__module__.rpartition(".")[2] for detect in (*CAUSES, *OUTCOMES))
PROBLEMS = st.builds(
    Problem,
    kind=st.sampled_from([*KINDS, "of_another_package"]),
    severity=st.sampled_from(["warning", "critical"]),
    first_step=st.integers(0, 1000),
    variables=st.just(()),
    evidence=st.just("evidence"),
    advice=st.just("advice"),
    last_step=st.integers(0, 1000),
)


def found(*, loss: np.ndarray, **about: object) -> list[Problem]:
    return explained(judge(history(loss=loss, **about)))  # type: ignore[arg-type]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PROBLEMS, max_size=8, unique_by=lambda one: one.kind))
def test_no_problem_is_lost_and_each_consequence_has_a_cause_above_it(problems: list[Problem]) -> None:
    ordered = explained(problems)
    assert sorted(one.kind for one in ordered) == sorted(one.kind for one in problems)
    causes = [one for one in ordered if not one.consequence_of]
    assert ordered[: len(causes)] == causes
    for one in ordered:
        assert bool(one.advice) == (not one.consequence_of)
        assert not one.consequence_of or one.consequence_of in {cause.kind for cause in causes}
    assert bool(causes) == bool(problems)
    assert [one.kind for one in explained(ordered)] == [one.kind for one in ordered]


def test_a_learning_rate_that_is_too_high_explains_what_it_does() -> None:
    first, *others = found(
        loss=np.geomspace(1, 1e6, STEPS), norm=np.geomspace(1, 1e7, STEPS), update=3.0, dead=0.95
    )
    assert (first.kind, first.consequence_of) == ("learning_rate_too_high", "")
    assert "from 0.001 to 1e-06" in first.advice  # a step of 0.3 % in place of one of 300 %
    assert "at step 1 to" in first.evidence
    assert {one.kind for one in others} >= {"exploding_gradient", "dead_relu"}
    assert {(one.consequence_of, one.advice) for one in others} == {("learning_rate_too_high", "")}
    assert all(one.line().endswith("A consequence of learning_rate_too_high.") for one in others)


def test_data_that_are_not_finite_explain_all_that_follows() -> None:
    x = np.random.default_rng(0).normal(size=(400, 8))
    x[37, 2] = np.nan
    loss = np.where(np.arange(1, STEPS + 1) < 151, 1.0, np.nan)
    first, *others = found(loss=loss, known=premises(inputs=Sample.of(x)), dead=0.95)
    assert (first.kind, first.first_step, first.consequence_of) == ("nan_or_inf", 0, "")
    assert "x[37]" in first.evidence and "step 151" in first.evidence
    assert "from the start" in first.line()
    assert {one.consequence_of for one in others} == {"nan_or_inf"}


def test_a_bad_example_is_named_by_what_it_brought_about() -> None:
    gatherer = Gatherer()
    columns, rows = ("step", "loss", "grad_norm"), np.arange(1.0, 151)
    loss = np.where(rows < 151, 1.0, np.nan)
    gatherer.steps(columns, np.column_stack([rows, loss, loss]), None)
    gatherer.steps(columns, np.array([[151, np.nan, np.nan]]), None)
    odd = "Example 7 of the batch of step 151: feature 3 is NaN; kept in tfmon/evidence/step-151."
    gatherer.witness(Witness(160, "spike", "Example 1 of the batch of step 160."))
    gatherer.witness(Witness(151, "not_finite", odd))
    (first,) = [one for one in judge(gatherer.history()) if one.kind == "nan_or_inf"]
    assert first.evidence.endswith(odd)


def test_what_began_much_later_explains_nothing() -> None:
    late = Problem("learning_rate_too_high", "critical", 900, (), "", "lower it", 1000)
    early = Problem("dead_relu", "critical", 10, (), "", "another activation", 1000)
    assert [one.consequence_of for one in explained([late, early])] == ["", ""]


def test_what_is_said_while_training_has_the_cause() -> None:
    standing = Standing()
    loss, norm = np.geomspace(1, 1e6, STEPS), np.geomspace(1, 1e7, STEPS)
    new = standing.judge({"": history(loss=loss, norm=norm, update=3.0, dead=0.95)})
    assert new[0].kind == "learning_rate_too_high"
    assert new == standing.problems
    assert standing.judge({"": history(loss=loss, norm=norm, update=3.0, dead=0.95)}) == []


@pytest.mark.parametrize(("momentum", "reported"), [(0.99, True), (0.95, False), (float("nan"), False)])
def test_averages_that_lag_are_no_overfitting(momentum: float, reported: bool) -> None:
    """Of 100 steps a momentum of 0.99 leaves 37 % of the initial averages, one of 0.95 half a percent."""
    steps = 100
    loss = 0.05 + 1.4 * np.exp(-np.arange(steps) / 15)
    kinds = [
        one.kind
        for one in found(
            loss=loss, steps=steps, known=premises(norm_momentum=momentum), accuracy=(0.97, 0.3),
            val_loss=np.full(EPOCHS, 1.6),
        )
    ]  # fmt: skip
    assert kinds == (["normalization_mismatch"] if reported else ["overfitting"])


def test_averages_that_lag_do_no_harm_where_validation_keeps_up() -> None:
    loss = 0.05 + 1.4 * np.exp(-np.arange(100) / 15)
    val_loss = loss.reshape(EPOCHS, -1).mean(axis=1) + 0.02
    known = premises(norm_momentum=0.99)
    assert judge(history(loss=loss, steps=100, known=known, val_loss=val_loss, accuracy=(0.97, 0.96))) == []
    assert judge(History()) == []


@pytest.mark.parametrize(
    ("noise", "known_steps", "reported"),
    [
        (0.002, 25, True),
        (0.15, 25, False),
        (0.002, 300, False),
    ],  # of a sum; of batches; of a loop over all data
)
def test_a_norm_that_grows_like_a_sum(noise: float, known_steps: int, reported: bool) -> None:
    number = np.arange(1, 301)
    norm = np.sqrt(number) * np.exp(noise * np.random.default_rng(2).normal(size=300))
    loss = np.where(number <= known_steps, 2.3, np.nan)
    found = judge(history(loss=loss, norm=norm, steps=300))
    assert ("accumulation_not_zeroed" in {one.kind for one in found}) == reported
