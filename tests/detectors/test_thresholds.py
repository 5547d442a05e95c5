"""Tests of the setting `detectors`: what is turned off, and thresholds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_tfmon.detectors import CAUSES, KINDS, OUTCOMES, judge
from mlflow_tfmon.detectors.thresholds import kind_of, thresholds
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.problems import plugins
from mlflow_tfmon.problems.current import Standing
from mlflow_tfmon.settings import Settings
from tests.detectors.histories import STEPS, history

_T = np.arange(STEPS)


def _kinds(chosen: dict[str, Any], loss: Any = 1.4) -> set[str]:
    return {problem.kind for problem in judge(history(loss, gradients=(1e-9, 1e-7, 0.1)), chosen=chosen)}


def test_a_detector_that_is_turned_off_finds_nothing() -> None:
    found = _kinds({})
    assert found
    for kind in found:
        assert kind not in _kinds({kind: False})
    assert not _kinds(dict.fromkeys(KINDS, False))
    assert _kinds(dict.fromkeys(KINDS, True)) == found


def test_a_threshold_decides() -> None:
    exploded = history(np.where(_T < 100, 1.0, 50.0), norm=np.where(_T < 100, 0.1, 20.0))
    for factor, expected in ((1e3, False), (100.0, True)):
        kinds = {one.kind for one in judge(exploded, chosen={"exploding_gradient": {"min_growth": factor}})}
        assert ("exploding_gradient" in kinds) is expected


def test_a_kind_may_be_limited_to_layers() -> None:
    still = history(np.log(4) * 0.5, gradients=(0.0, 0.1, 0.0))
    for layers, expected in (
        ("a, b", ("a.kernel",)),
        ("*", ("a.kernel", "c.kernel")),
        ("b", None),
        ("enc*", None),
    ):
        found = {one.kind: one for one in judge(still, chosen={"stagnant_weights": {"layers": layers}})}
        assert (found["stagnant_weights"].variables if expected else None) == expected
        assert ("stagnant_weights" in found) is bool(expected)
    dead = judge(history(1.4, dead=0.9), chosen={"dead_relu": {"layers": "b", "min_share": 0.8}})
    assert [one.variables for one in dead if one.kind == "dead_relu"] == [("b",)]
    with pytest.raises(SettingError, match=r"patterns of names for layers of dead_relu"):
        Settings.make(detectors={"dead_relu": {"layers": 3}})


def test_a_custom_detector_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow_tfmon

    monkeypatch.setattr(plugins, "_defined", [])

    class Always(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> list[Any]:
            return [mlflow_tfmon.Problem("always", "warning", 1, (), "It is.", "Nothing.")]

    falling = {"": history(np.linspace(1.4, 0.01, STEPS))}
    for chosen, expected in (({}, ["always"]), ({"always": False}, [])):
        standing = Standing(plugins.others(), chosen)
        standing.judge(falling)
        assert [one.kind for one in standing.problems] == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"overfit": False}, "did you mean 'overfitting'"),
        ({"my_kind": True}, f"kinds: {KINDS[0]}, {KINDS[1]}"),
        ({"dead_relu": {"share": 0.9}}, "its thresholds: min_share, min_share_if_little"),
        ({"dead_relu": {"min_share": "0.9"}}, "needs a number from 0 for min_share of dead_relu, not '0.9'"),
        ({"overfitting": {"min_epochs": -3}}, "needs a number from 0 for min_epochs of overfitting, not -3"),
        ({"dead_relu": {"min_share": True}}, "needs a number from 0 for min_share of dead_relu, not True"),
        (
            {"dead_relu": {"min_share": float("nan")}},
            "needs a number from 0 for min_share of dead_relu, not nan",
        ),
        ({"dead_relu": 0.9}, "needs True, False or a dictionary of thresholds for dead_relu, not 0.9"),
        ("overfitting", "must be a dictionary"),
    ],
)
def test_a_wrong_choice_says_what_there_is(given: Any, told: str) -> None:
    with pytest.raises(SettingError, match=told) as raised:
        Settings.make(detectors=given)
    assert "\n" not in str(raised.value)


def test_the_environment_and_the_project_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.mlflow_tfmon.detectors]\noverfitting = false\ndead_relu = {min_share = 0.9}\n"
    )
    wanted = {"overfitting": False, "dead_relu": {"min_share": 0.9}}
    assert Settings.make().detectors == wanted
    monkeypatch.setenv("MLFLOW_TFMON_DETECTORS", '{"plateau": false}')
    assert Settings.make().detectors == {"plateau": False}


@pytest.mark.parametrize("detect", [*CAUSES, *OUTCOMES], ids=kind_of)
def test_each_threshold_is_described(detect: Any) -> None:
    text = inspect.getdoc(detect) or ""
    assert all(f"    {name}: " in text for name in thresholds(detect))


def test_a_detector_that_fails_silences_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_tfmon import detectors, errors

    def failing(history: Any) -> Any:
        raise IndexError("of ours")

    failing.__module__ = "mlflow_tfmon.detectors.failing"
    monkeypatch.setattr(detectors, "CAUSES", (failing, *CAUSES))
    monkeypatch.delenv("MLFLOW_TFMON_RAISE_ERRORS")
    monkeypatch.setattr(errors, "_said", set(errors._said))
    assert (
        _kinds({}) == {problem.kind for problem in judge(history(1.4, gradients=(1e-9, 1e-7, 0.1)))} != set()
    )


def test_overfitting_is_looked_for_where_averages_that_lag_are_not() -> None:
    from tests.detectors.histories import EPOCHS, premises

    val_loss = np.concatenate([np.linspace(1.3, 0.6, 5), np.linspace(0.6, 2.0, EPOCHS - 5)])
    lagging = history(known=premises(norm_momentum=0.999), val_loss=val_loss)
    both = {"normalization_mismatch": {"min_left": 0.01}}
    assert [one.kind for one in judge(lagging, chosen=both)] == ["normalization_mismatch"]
    assert [one.kind for one in judge(lagging, chosen={"normalization_mismatch": False})] == ["overfitting"]
