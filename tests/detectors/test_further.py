"""Tests of further fits: facts about a training may change with them, and each problem is reported once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mlflow_tfmon.detectors import Gatherer, History, judge
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.problems.current import Standing
from tests.detectors.histories import KERNELS, STEPS, history, premises

_T = np.arange(STEPS)


def _two_fits(first: Premises, second: Premises, losses: tuple[Any, Any], total: int = 200) -> History:
    """Two fits of a model, of as many steps each."""
    gatherer, step = Gatherer(), 0
    gatherer.opened([(name, 100, True) for name in KERNELS])
    for known, loss in zip((first, second), losses, strict=True):
        gatherer.know(known)
        gatherer.total_steps = step + total
        number = np.arange(step + 1, step + total + 1)
        values = np.column_stack([number, np.broadcast_to(loss, total), np.full(total, 0.1)])
        gatherer.steps(("step", "loss", "grad_norm"), values, np.full((total, 3), 0.1))
        step += total
    return gatherer.history()


def test_a_fit_with_another_loss_is_a_training_of_its_own() -> None:
    """Its loss may have any scale: what was minimized before is no measure of it."""
    one = premises(loss="", goal="mine")
    falling = np.linspace(1.0, 0.1, 200)
    other = dataclasses.replace(one, goal="another")
    assert judge(_two_fits(one, other, (falling, 80 + falling))) == []
    # by the same loss it has diverged
    assert judge(_two_fits(one, dataclasses.replace(one), (falling, 80 + falling))) != []


def test_a_fit_with_another_loss_is_still_measured_by_a_constant_prediction() -> None:
    one = premises(loss="", goal="mine", targets=None)
    found = _two_fits(one, premises(goal="cross-entropy"), (np.linspace(1.0, 0.1, 200), np.log(4)))
    assert learning(found).known
    assert [problem.kind for problem in judge(found)] == ["underfitting"]


def test_the_initial_weights_are_those_before_the_first_fit() -> None:
    trained = tuple(dataclasses.replace(layer, std=30 * layer.std) for layer in premises().layers)
    found = _two_fits(premises(), premises(layers=trained), (0.9, 0.9))
    assert found.premises is not None
    assert [layer.std for layer in found.premises.layers] == [layer.std for layer in premises().layers]


def test_an_output_that_begins_near_zero_begins_well() -> None:
    def begun(at: int) -> set[str]:
        layers = list(premises().layers)
        layers[at] = dataclasses.replace(layers[at], std=1e-4)
        return {one.kind for one in judge(history(0.9 * np.log(4), known=premises(layers=tuple(layers))))}

    assert "poor_initialization" in begun(1)
    assert "poor_initialization" not in begun(2)


def test_a_rare_indicator_is_not_a_feature_of_another_scale() -> None:
    random = np.random.default_rng(0)
    usual, rare = random.normal(0, 1.01, 4000), (np.arange(4000) == 7).astype(float)
    assert Sample.of(np.column_stack([usual, rare, 1 - rare])).feature_std[0] > 1.0
    small = Sample.of(np.column_stack([usual, usual / 1000]))
    assert small.feature_std == pytest.approx((usual.std() / 1000, usual.std()))


def test_of_one_kind_that_which_matters_most_is_kept() -> None:
    """Three linear layers are worth a warning; an output that can't reach the targets ends all learning."""
    linear = tuple(
        dataclasses.replace(one, activation="relu" if one.is_output else "linear")
        for one in premises().layers
    )
    known = premises(loss="mean_squared_error", layers=linear, targets=Sample.of(np.linspace(-2, 2, 40)))
    standing = Standing()
    standing.judge({"": history(1.0, known=known, done=1)})
    assert [(one.kind, one.severity) for one in standing.problems] == [("improper_activation", "critical")]


def test_a_few_targets_out_of_reach_are_no_fault_of_the_output() -> None:
    layers = (*premises().layers[:2], dataclasses.replace(premises().layers[2], activation="tanh", units=1))
    for outliers, expected in ((1, []), (40, ["improper_activation"])):
        targets = np.linspace(-0.9, 0.9, 400)
        targets[:outliers] = -1.5
        known = premises(loss="mean_squared_error", layers=layers, targets=Sample.of(targets))
        assert [one.kind for one in judge(history(1.0, known=known, done=1))] == expected


def test_kernels_left_out_of_the_loss_are_critical_where_little_is_learned() -> None:
    layers = (*premises().layers, dataclasses.replace(premises().layers[0], name="d", kernel="d.kernel"))
    known = premises(layers=layers)
    for loss, severity in ((None, "warning"), (np.log(4), "critical")):
        found = {one.kind: one for one in judge(history(loss, known=known))}
        assert found["stagnant_weights"].severity == severity
        assert found["stagnant_weights"].variables == ("d.kernel",)


def test_a_loop_whose_length_is_not_known_has_time_to_get_somewhere() -> None:
    """By 7% in 500 steps is by 30% in the 2,000 that it may make."""
    falling = np.log(4) * (1 - 0.2 * np.arange(500) / 500)
    for moved, expected in ((1.5e-4, False), (1e-6, True)):
        looped = dataclasses.replace(history(falling, update=moved, steps=500), total_steps=None)
        assert ("learning_rate_too_low" in {one.kind for one in judge(looped)}) == expected


def test_steps_that_grow_may_get_somewhere_yet() -> None:
    """A warm-up over half of the training: of 30% no more than 3% of the weights, of the whole 24%."""
    warming = np.minimum(np.arange(400) / 200, 1.0) * 8e-4
    kinds = {one.kind for one in judge(history(np.log(4), update=warming, done=120))}
    assert "learning_rate_too_low" not in kinds
    kinds = {one.kind for one in judge(history(np.log(4), update=warming / 100, done=120))}
    assert "learning_rate_too_low" in kinds


@pytest.mark.parametrize("seed", range(8))
def test_single_batches_that_differ_are_no_swings(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=120)
    found = judge(history(0.6 + 0.5 * noise, steps=120))
    assert "oscillating_loss" not in {one.kind for one in found}


def test_rows_of_an_embedding_that_wait_for_their_index_are_not_dead() -> None:
    names = ("words.embeddings", "b.kernel", "c.kernel", "d.kernel")
    for zeros, expected in (((0.98, 0.1, 0.1, 0.1), set()), ((0.98, 0.95, 0.1, 0.1), {"dead_relu"})):
        gatherer = Gatherer()
        gatherer.total_steps = 200
        gatherer.opened([(name, 100, True) for name in names])
        number = np.arange(1, 101.0)
        values = np.column_stack([number, np.full(100, 9.0), np.full(100, 0.1)])
        gatherer.steps(("step", "loss", "grad_norm"), values, np.tile([1e-6, 0.1, 0.1, 0.1], (100, 1)))
        gatherer.deep(number[::10], {"grad_zero_fraction": np.tile(zeros, (10, 1))})
        found = {one.kind: one for one in judge(gatherer.history())}
        assert found.keys() & {"dead_relu", "vanishing_gradient"} == expected
        assert "words.embeddings" not in {name for one in found.values() for name in one.variables}


def test_weights_that_are_not_finite_are_critical_though_the_loss_is() -> None:
    """A ReLU of TensorFlow's makes 0 of NaN."""
    for weight, severity in ((np.nan, "critical"), (1.0, "warning")):
        gatherer = Gatherer()
        gatherer.opened([("a.kernel", 10, True), ("b.kernel", 10, True)])
        norms = np.ones((50, 2))
        norms[36, 0] = np.nan
        number = np.arange(1, 51.0)
        values = np.column_stack([number, np.linspace(1, 0.1, 50), norms.sum(1)])
        gatherer.steps(("step", "loss", "grad_norm"), values, norms)
        gatherer.deep(np.array([1.0, 50.0]), {"weight_norm": np.array([[1.0, 1.0], [weight, 1.0]])})
        problem = next(one for one in judge(gatherer.history()) if one.kind == "nan_or_inf")
        assert (problem.severity, problem.first_step, problem.variables) == (severity, 37, ("a.kernel",))


def _lost(steps: int) -> History:
    """A training whose last steps have no finite loss."""
    return history(np.where(STEPS - steps < _T + 1, np.nan, 0.05 + 1.4 * np.exp(-_T / 60)))


def test_what_becomes_critical_is_said_again_and_only_then() -> None:
    """One step without a finite loss is a warning; it may be looked at before the next one."""
    standing = Standing()
    said = [[one.severity for one in standing.judge({"": _lost(steps)})] for steps in (0, 1, 1, 20, 21)]
    assert said == [[], ["warning"], [], ["critical"], []]


def test_what_was_taken_back_and_is_found_again_was_said() -> None:
    standing = Standing()
    rising = np.r_[np.linspace(1.3, 0.8, 6), np.linspace(0.85, 1.6, 14)]
    over, well = history(val_loss=rising), history(val_loss=np.linspace(1.3, 0.8, 20))
    said = [[one.kind for one in standing.judge({"": now})] for now in (over, well, over)]
    assert said == [["overfitting"], [], []]
    assert [one.kind for one in standing.problems] == ["overfitting"]
    standing.restart("")
    assert [one.kind for one in standing.judge({"": over})] == ["overfitting"]


@pytest.mark.parametrize("stuck", [100, 300], ids=["a quarter of the training", "three quarters"])
@pytest.mark.parametrize("end", [0.2, 0.8], ids=["much learned", "a little"])
def test_what_took_most_of_the_training_stands_until_much_is_learned(stuck: int, end: float) -> None:
    """Of the 1.39 of a constant prediction, a loss of 0.8 is 42% on the way to zero."""
    loss = np.full(400, np.log(4))
    loss[stuck:] = end
    shrinking = (1e-7, 1e-4, 0.1)
    standing = Standing()
    for done in (60, 100, 200, 300, 400):
        standing.judge({"": history(loss, gradients=shrinking, done=done)})
        if done == 60:
            assert "vanishing_gradient" in [one.kind for one in standing.problems]
    stands = "vanishing_gradient" in [one.kind for one in standing.problems]
    assert stands == (stuck == 300 and end == 0.8)


@pytest.mark.parametrize("rises", [True, False])
def test_a_loop_that_logs_no_training_loss_is_judged_by_its_steps(rises: bool) -> None:
    gatherer, each = Gatherer(), 20
    gatherer.opened([(name, 100, True) for name in KERNELS])
    number = np.arange(1, 401)
    loss = 0.05 + 1.4 * np.exp(-number / 60)
    for epoch in range(20):
        rows = slice(epoch * each, (epoch + 1) * each)
        values = np.column_stack([number[rows], loss[rows], np.full(each, 0.1)])
        gatherer.steps(("step", "loss", "grad_norm"), values, np.full((each, 3), 0.1))
        held_out = 0.8 + 0.05 * epoch if rises and epoch > 4 else 1.2 - 0.05 * epoch
        gatherer.epoch(epoch, int(number[rows][-1]), {"val_loss": held_out})
    found = judge(gatherer.history(ended=True))
    assert [one.kind for one in found] == (["overfitting"] if rises else [])


def test_what_is_told_of_a_loop_later_only_adds_to_what_is_known() -> None:
    gatherer = Gatherer()
    gatherer.know(premises(loss="", targets=None))
    gatherer.steps(("step", "loss"), np.column_stack([np.arange(1, 51), np.full(50, 1.0)]), None)
    gatherer.know(premises(weighted=True, more=True))
    found = gatherer.history()
    assert len(found.steps) == 50 and found.premises_step == 0
    assert found.premises is not None and found.premises.weighted and not found.premises.trained_before
