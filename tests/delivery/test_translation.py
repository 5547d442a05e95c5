"""Tests of curves, telemetry files and load_run, against NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import BEGUN, COLUMNS, VARIABLES, blocks, deep, layout, started, values

from mlflow_tfmon.problems.rediagnosis import replayed
from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.reading.recorded import RecordedRun
from mlflow_tfmon.report.training import training
from mlflow_tfmon.stream.records import EpochEnded, Facts, Logged, Lost, Record, Steps
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.translation.curves import MAX_NONFINITE
from mlflow_tfmon.translation.progress import Progress
from mlflow_tfmon.translation.state import State
from mlflow_tfmon.translation.translation import Translation


def translate(
    folder: Path, *records: Record, **changes: object
) -> tuple[dict[str, list[Point]], Translation]:
    """All points by key, and the translation, flushed."""
    translation = Translation(started("", **changes), folder)
    found = [point for record in records for point in translation.take(record)]
    found += translation.flush(final=True)
    for part in translation.telemetry.finished():
        part.save()
    curves: dict[str, list[Point]] = {}
    for point in found:
        curves.setdefault(point.key, []).append(point)
    return curves, translation


def loaded(folder: Path) -> RecordedRun:
    return RecordedRun("a run", True, folder, [])


def test_points_are_rows_with_their_times(tmp_path: Path) -> None:
    rows = values(3000)
    curves, _ = translate(tmp_path, layout(3000), *blocks(rows), deep(np.arange(100, 3001, 100)))
    for key, column in (("batch/loss", 4), ("batch/learning_rate", 5), ("grad_norm/head.kernel", 9)):
        points = curves[key]
        steps = np.array([point.step for point in points])
        assert len(points) <= 320
        np.testing.assert_array_equal([point.value for point in points], rows[steps - 1, column])
        np.testing.assert_array_equal(
            [point.time for point in points], (rows[steps - 1, 1] * 1e3).astype(int)
        )
        assert {1, 3000, int(rows[:, column].argmax()) + 1, int(rows[:, column].argmin()) + 1} <= set(
            steps.tolist()
        )
    assert [point.step for point in curves["weight_norm/head.kernel"]] == list(range(100, 3001, 100))


def test_what_is_not_finite_never_gets_into_its_series(tmp_path: Path) -> None:
    rows = values(500)
    rows[9, 4], rows[19, 4], rows[29, 7] = np.nan, np.inf, -np.inf
    rows[200:, 5] = np.nan
    curves, _ = translate(
        tmp_path, layout(500), *blocks(rows),
        EpochEnded(0, 500, BEGUN, {"loss": float("nan"), "accuracy": 0.5}),
        Facts(metrics=(("best/val_loss", float("inf"), 3),)),
    )  # fmt: skip
    assert all(np.isfinite(point.value) for points in curves.values() for point in points)
    assert [(point.step, point.value) for point in curves["nonfinite/batch/loss"]] == [(10, 10.0), (20, 20.0)]
    assert [point.step for point in curves["nonfinite/grad_norm/dense.kernel"]] == [30]
    assert [point.step for point in curves["nonfinite/batch/learning_rate"]] == list(
        range(201, 201 + MAX_NONFINITE)
    )
    assert [point.step for point in curves["nonfinite/loss"]] == [0]
    assert [point.step for point in curves["nonfinite/best/val_loss"]] == [3]
    assert "loss" not in curves
    assert curves["accuracy"] == [Point("accuracy", 0.5, 0, int(BEGUN * 1e3))]
    frame = loaded(tmp_path).steps  # the files have them as they were
    np.testing.assert_array_equal(frame["loss"], rows[:, 4])


def test_every_step_is_in_the_files_once_and_in_order(tmp_path: Path) -> None:
    rows = values(2000)
    wide = deep(np.arange(100, 2001, 100))
    translate(tmp_path, layout(2000), *blocks(rows, 37), wide)
    run = loaded(tmp_path)
    assert run.streams == [""]
    assert run.steps.index.tolist() == list(range(1, 2001))
    for at, name in enumerate(COLUMNS):
        if name != "step":
            np.testing.assert_array_equal(run.steps[name], rows[:, at])
    np.testing.assert_allclose(run.steps["step_time_ms"].iloc[1:], np.diff(rows[:, 1]) * 1e3)
    for at, variable in enumerate(VARIABLES):
        one = run.layers[run.layers["variable"] == variable.name].set_index("step")
        assert one.index.tolist() == list(range(1, 2001))
        np.testing.assert_array_equal(one["grad_norm"], rows[:, len(COLUMNS) + at])
        np.testing.assert_array_equal(one["weight_norm"].dropna(), wide.values[:, 1 + at])
        np.testing.assert_array_equal(one["update_ratio"].dropna(), wide.values[:, 1 + len(VARIABLES) + at])
        assert one["weight_norm"].dropna().index.tolist() == list(range(100, 2001, 100))


@pytest.mark.parametrize("told", ["never", "before it is shown", "after it was shown"])
def test_a_stream_whose_name_comes_after_its_first_steps(told: str, tmp_path: Path) -> None:
    """Its curves and files are whole under the last name; a trainer that was killed before left it without one."""
    rows, other = values(60), values(60, seed=3)
    begins, goes_on = blocks(rows[:4]), blocks(rows[4:])
    named = [layout(prefix="critic."), layout(stream=1, prefix="generator."), *blocks(other, stream=1)]
    records: dict[str, list[Record]] = {
        "never": [layout(named=False), *begins],
        "before it is shown": [layout(named=False), *begins, *named, *goes_on],
        "after it was shown": [layout(named=False), *begins, layout(), *named, *goes_on],
    }
    curves, _ = translate(tmp_path, *records[told])
    prefix, count = ("", 4) if told == "never" else ("critic.", 60)
    points = curves[f"{prefix}batch/loss"]
    assert [(point.step, point.value) for point in points] == list(enumerate(rows[:count, 4], 1))
    assert set(curves) & {"batch/loss", "critic.batch/loss"} == {f"{prefix}batch/loss"} | (
        {"batch/loss"} if told == "after it was shown" else set()
    )
    run = loaded(tmp_path)
    assert run.streams == ([""] if told == "never" else ["critic.", "generator."])
    np.testing.assert_array_equal(run.steps[f"{prefix}loss"].dropna(), rows[:count, 4])


def test_files_are_cut_into_bounded_parts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mlflow_tfmon.translation.parts._PART_BYTES", 60_000)
    rows = values(5000)
    translate(tmp_path, layout(), *blocks(rows))
    parts = sorted(tmp_path.glob("steps-0-*.parquet"))
    assert len(parts) > 5
    assert all(pq.read_metadata(part).num_rows * (rows.shape[1] + 3) * 8 < 100_000 for part in parts)
    about = json.loads(pq.read_schema(parts[0]).metadata[b"tfmon"])
    assert about["variables"][0] == ["dense.kernel", [4, 3], True]
    np.testing.assert_array_equal(loaded(tmp_path).steps["loss"], rows[:, 4])


def test_layouts_that_take_turns_make_one_curve_and_one_file(tmp_path: Path) -> None:
    rows, records = values(4000), []
    narrow = layout(columns=COLUMNS[:5], variable_columns=("grad_norm",))
    keep = [0, 1, 2, 3, 4, 7, 8, 9]
    for at in range(0, 4000, 50):
        one = rows[at : at + 50]
        records += [layout(), Steps(0, BEGUN, one)] if at % 100 else [narrow, Steps(0, BEGUN, one[:, keep])]
    curves, _ = translate(tmp_path, *records)
    assert len(curves["batch/loss"]) <= 320
    assert len(list(tmp_path.glob("steps-0-*.parquet"))) == 2
    run = loaded(tmp_path)
    np.testing.assert_array_equal(run.steps["loss"], rows[:, 4])
    measured = (np.arange(4000) // 50) % 2 == 1
    np.testing.assert_array_equal(run.steps["grad_norm"], np.where(measured, rows[:, 6], np.nan))
    one = run.layers[run.layers["variable"] == "dense.kernel"]
    np.testing.assert_array_equal(one["grad_norm"], rows[:, 7])
    points = curves["batch/grad_norm"]
    np.testing.assert_array_equal([p.value for p in points], [rows[p.step - 1, 6] for p in points])


def test_what_was_not_measured_is_not_taken_for_what_is_not_finite(tmp_path: Path) -> None:
    """Steps whose loss, or gradients, cannot be told are among others; one loss is NaN."""
    rows, lacking = values(1200), np.arange(1200) // 40 % 3
    rows[700, 4] = np.nan
    assert lacking[700] == 2
    without_loss = layout(columns=tuple(name for name in COLUMNS if name != "loss"))
    without_norms = layout(columns=COLUMNS[:6], variable_columns=())
    records: list[Record] = []
    for at in range(0, 1200, 40):
        one = rows[at : at + 40]
        records += [
            [without_loss, Steps(0, BEGUN, np.delete(one, 4, axis=1))],
            [without_norms, Steps(0, BEGUN, one[:, :6])],
            [layout(), Steps(0, BEGUN, one)],
        ][lacking[at]]
    live = Replay()
    for record in records:
        live.take(record)
    translate(tmp_path, *records)
    run = loaded(tmp_path)
    again = replayed(run)[0].histories()[""]
    assert set(again.nonfinite) == {"loss"} and again.nonfinite == live.histories()[""].nonfinite
    np.testing.assert_array_equal(run.measured_at("loss"), np.flatnonzero(lacking != 0) + 1)
    np.testing.assert_array_equal(run.measured_at("grad_norm"), np.flatnonzero(lacking != 1) + 1)
    np.testing.assert_array_equal(
        run.steps["loss"], np.where(lacking != 0, rows[:, 4], np.nan)
    )  # as pandas has it
    found = {panel.key: panel.marks for section in training(run) for panel in section.panels}
    assert (found["loss"], found["gradient"]) == ((701,), ())


def test_the_users_own_figures_and_epochs(tmp_path: Path) -> None:
    rows = values(300)
    own = [Logged(0, step, BEGUN + step, {"temperature": step / 7, "loss": 5.0}) for step in range(3, 301, 3)]
    ends = [
        EpochEnded(n, 100 * (n + 1), BEGUN + n, {"loss": 1.0 / (n + 1), "val_loss": n / 3}) for n in range(3)
    ]
    curves, _ = translate(tmp_path, layout(300), *blocks(rows), *own, *ends)
    own_points = curves["batch/temperature"]
    assert all(point.value == point.step / 7 for point in own_points)
    assert {3, 300} <= {point.step for point in own_points}
    assert {point.value for point in curves["batch/logged.loss"]} == {5.0}
    np.testing.assert_array_equal(
        [p.value for p in curves["batch/loss"]], [rows[p.step - 1, 4] for p in curves["batch/loss"]]
    )
    assert [(point.step, point.value) for point in curves["val_loss"]] == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]
    run = loaded(tmp_path)
    assert run.steps.loc[3, "temperature"] == 3 / 7
    assert np.isnan(run.steps.loc[4, "temperature"])
    assert run.steps.loc[3, "loss_logged"] == 5.0
    assert run.epochs.index.tolist() == [0, 1, 2]
    assert run.epochs["loss"].tolist() == [1.0, 0.5, 1.0 / 3]
    assert run.histograms.empty and "counts" in run.histograms


def test_two_streams_keep_apart(tmp_path: Path) -> None:
    one, two = values(100, seed=1), values(60, seed=2)
    curves, translation = translate(
        tmp_path, layout(prefix="generator."), layout(stream=1, prefix="critic."),
        *blocks(one), *blocks(two, stream=1), Lost(1, 61, 64),
    )  # fmt: skip
    assert {"generator.batch/loss", "critic.batch/loss"} <= set(curves)
    assert (translation.last_step, translation.lost["steps"]) == (100, 4)
    run = loaded(tmp_path)
    assert run.streams == ["generator.", "critic."]
    np.testing.assert_array_equal(run.steps["generator.loss"], one[:, 4])
    np.testing.assert_array_equal(run.steps["critic.loss"].dropna(), two[:, 4])
    found = run.layers[run.layers["variable"] == "critic.dense.bias"]
    np.testing.assert_array_equal(found["grad_norm"], two[:, 8])


def test_an_empty_recording_has_empty_tables(tmp_path: Path) -> None:
    run = loaded(tmp_path)
    assert run.steps.empty and run.steps.index.name == "step"
    assert run.layers.empty and run.epochs.empty and run.streams == []


def test_progress_is_the_last_row_of_each_stream_in_a_line(tmp_path: Path) -> None:
    def line(*more: Record) -> str:
        for record in more:
            translation.take(record)
        return translation.progress.text()

    translation = Translation(started(""), tmp_path)
    rows = values(200)
    rows[99, 4:7] = 0.123456, 1e-3, 12345.678
    rows[149, 4], rows[149, 6] = np.nan, np.inf
    assert line(layout()) == ""
    whole = "step 100, loss 0.1235, learning_rate 0.001, grad_norm 1.235e+04, 10 ms a step"
    assert line(*blocks(rows[:100]), deep(np.array([100])), Logged(0, 100, BEGUN, {"loss": 3.0})) == whole
    assert line(EpochEnded(0, 100, BEGUN, {"loss": 1.0})).startswith("step 100, 1 epoch done, loss 0.1235, ")
    assert (
        line(*blocks(rows[100:150]))
        == f"step 150, 1 epoch done, learning_rate {rows[149, 5]:.4g}, 10 ms a step"
    )
    assert "2 epochs done" in line(EpochEnded(1, 150, BEGUN, {"loss": 1.0}))

    translation = Translation(started(""), tmp_path)
    rows = values(100, seconds=0.5)
    assert line(layout(1000), *blocks(rows)).startswith("step 100 of 1000, ")
    assert translation.progress.text().endswith(" a step, 8 min left")  # 900 steps of half a second
    later = values(50, first=101, seconds=0.01)
    later[:, 1] += 3600.0  # a further fit, an hour later
    assert line(layout(1150), *blocks(later, 25)).endswith(" a step, 10 s left")
    state = State(json.loads(json.dumps(translation.progress.state())), "progress")
    restored = Progress()
    restored.restore(state)
    assert restored.text() == translation.progress.text()
    assert "left" not in line(*blocks(values(1000, seconds=0.5)))

    translation = Translation(started(""), tmp_path)
    bare = {"columns": ("step", "learning_rate"), "variable_columns": (), "deep_columns": (), "variables": ()}
    table = np.array([[1.0, 0.5], [2.0, 0.25]])
    for stream in range(6):
        line(layout(stream=stream, prefix=f"net_{stream}.", **bare))
    assert line(Steps(1, BEGUN, table), Steps(0, BEGUN, table[:1])) == (
        "net_0: step 1, learning_rate 0.5; net_1: step 2, learning_rate 0.25"
    )
    ended = EpochEnded(2, 2, BEGUN, {}, "net_5.")
    assert line(ended, *(Steps(stream, BEGUN, table) for stream in (3, 2, 5, 0))) == (
        "net_0: step 2, learning_rate 0.25; net_2: step 2, learning_rate 0.25; "
        "net_3: step 2, learning_rate 0.25; net_5: step 2, 3 epochs done, learning_rate 0.25"
    )
