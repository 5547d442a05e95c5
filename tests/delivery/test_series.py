from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from recordings import BEGUN, VARIABLES, layout, values

from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import DeepSteps, Paused, Steps, Variable
from mlflow_tfmon.translation.series import StepClock, StreamSeries, charted


def variable(name: str, size: int, is_kernel: bool = True) -> Variable:
    return Variable(name, (size,), is_kernel)


def test_of_many_variables_the_largest_kernels_are_charted() -> None:
    many = [variable("a", 5), variable("b", 900, False), variable("c", 7), variable("d", 6)]
    assert charted(many, 2) == [2, 3]
    assert charted([*many[:2], variable("e", 1, False)], 2) == [
        0
    ]  # fewer kernels than that: the kernels only
    assert charted([variable("a", 1, False), variable("b", 3, False), variable("c", 2, False)], 1) == [1]


def test_step_times_are_the_differences_of_the_rows() -> None:
    times = BEGUN + np.array([0.0, 0.5, 0.75, 2.0, 2.0, 1.5, 3.0])
    clock, steps = StepClock(), np.arange(1, 8)
    found = np.concatenate([clock.durations(steps[:3], times[:3]), clock.durations(steps[3:], times[3:])])
    expected = [np.nan, 0.5, 0.25, 1.25, np.nan, np.nan, 1.5]  # a clock that stands or goes back says nothing
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("told_early", [True, False])
def test_no_step_time_spans_a_pause(told_early: bool) -> None:
    clock = StepClock()
    pauses = [
        Paused(BEGUN - 5.0, BEGUN - 1.0),
        Paused(BEGUN + 1.5, BEGUN + 9.0),
        Paused(BEGUN + 9.2, BEGUN + 9.5),
    ]
    clock.paused(pauses[0])
    if told_early:
        for pause in pauses[1:]:
            clock.paused(pause)
    first = clock.durations(np.array([1, 2]), BEGUN + np.array([0.0, 1.0]))
    if not told_early:
        for pause in pauses[1:]:
            clock.paused(pause)
    second = clock.durations(np.array([3, 4]), BEGUN + np.array([10.0, 11.0]))
    np.testing.assert_allclose(
        [*first, *second], [np.nan, 1.0, 0.5, 1.0]
    )  # before the first row, a fit may have ended long ago


def test_lost_steps_and_another_clock_have_no_step_time() -> None:
    clock = StepClock()
    assert np.isnan(clock.durations(np.array([1]), np.array([1.0])))
    assert np.isnan(clock.durations(np.array([5]), np.array([2.0])))
    np.testing.assert_allclose(clock.durations(np.array([6]), np.array([2.5])), [0.5])
    assert np.isnan(clock.durations(np.array([7]), np.array([3.0]), "input_time"))


def test_keys_and_values_are_those_of_the_contract() -> None:
    opened = layout(prefix="generator.")
    series = StreamSeries(opened, StepClock(), most=50)
    rows = values(100, seconds=0.02)
    block = Block.of(opened, Steps(0, BEGUN, rows))
    found = series.steps(block, series.measured(block))
    column = dict(zip(series.step_keys, found.values.T, strict=True))
    assert set(column) == {
        "generator.batch/loss", "generator.batch/learning_rate", "generator.batch/grad_norm",
        "generator.batch/step_time_ms", "generator.batch/examples_per_second", "generator.batch/input_wait_share",
        "generator.grad_norm/dense.kernel", "generator.grad_norm/head.kernel",
    }  # fmt: skip
    np.testing.assert_array_equal(column["generator.batch/loss"], rows[:, 4])
    np.testing.assert_array_equal(column["generator.grad_norm/head.kernel"], rows[:, 9])
    np.testing.assert_allclose(column["generator.batch/step_time_ms"][1:], 20.0, rtol=1e-4)
    np.testing.assert_allclose(column["generator.batch/examples_per_second"][1:], 32 / 0.02, rtol=1e-4)
    np.testing.assert_allclose(column["generator.batch/input_wait_share"][1:], 0.25, rtol=1e-4)
    np.testing.assert_array_equal(found.steps, np.arange(1, 101))
    np.testing.assert_array_equal(found.times, rows[:, 1])


@pytest.mark.parametrize(
    ("patterns", "most", "names"),
    [
        ((), 50, ["dense.kernel", "head.kernel"]),
        ((), 1, ["dense.kernel"]),  # the larger one
        (("*.bias",), 50, ["dense.bias"]),
        (("dense.*", "*.kernel"), 50, ["dense.kernel", "dense.bias", "head.kernel"]),
        (("[h]ead.kerne?",), 50, ["head.kernel"]),
        (("encoder.*",), 50, []),
        (("*",), 0, []),
    ],
)
def test_the_variables_that_have_series(patterns: tuple[str, ...], most: int, names: list[str]) -> None:
    series = StreamSeries(layout(), StepClock(), most=most, patterns=patterns)
    assert [key for key in series.step_keys if "grad_norm/" in key] == [f"grad_norm/{name}" for name in names]


def test_without_kernels_all_variables_have_series() -> None:
    variables = tuple(dataclasses.replace(one, is_kernel=False) for one in VARIABLES)
    series = StreamSeries(layout(variables=variables), StepClock(), most=50)
    assert sum("grad_norm/" in key for key in series.step_keys) == len(variables)


def test_without_a_clock_there_are_no_step_times_and_rows_have_the_time_of_the_block() -> None:
    opened = layout(columns=("step", "loss"), variable_columns=())
    series = StreamSeries(opened, StepClock(), most=50)
    block = Steps(0, BEGUN + 3.0, np.array([[1.0, 0.5], [2.0, 0.4]]))
    rows = Block.of(opened, block)
    found = series.steps(rows, series.measured(rows))
    assert series.step_keys == ("batch/loss",)
    np.testing.assert_array_equal(found.times, [BEGUN + 3.0] * 2)


def test_input_times_stand_in_for_times() -> None:
    opened = layout(columns=("step", "input_time"), variable_columns=())
    series = StreamSeries(opened, StepClock(), most=50)
    block = Steps(0, BEGUN, np.array([[1.0, 10.0], [2.0, 10.5]]))
    np.testing.assert_allclose(series.measured(Block.of(opened, block))[:, 0], [np.nan, 500.0])


def test_an_undefined_update_ratio_is_absent_and_any_other_nan_is_not_finite() -> None:
    opened = layout()
    series = StreamSeries(opened, StepClock(), most=1)
    assert series.deep_keys == ("weight_norm/dense.kernel", "update_ratio/dense.kernel")
    rows = np.full((1, 7), np.nan)
    rows[0, 0] = 10
    found = series.deep(Block.of(opened, DeepSteps(0, BEGUN, rows)))
    assert found.measured.tolist() == [[True, False]]
