"""Tests of the sources of settings: arguments, else the environment, else pyproject.toml, else the default."""

import os
from pathlib import Path

import pytest

from mlflow_tfmon import errors
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.settings import Settings

DEFAULTS = Settings.make()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes [tool.mlflow_tfmon] of a project, in whose folder `a/b` one works."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")

    def write(lines: str, folder: str = ".") -> Path:
        path = tmp_path / folder / "pyproject.toml"
        path.write_text(f"[project]\nname = 'x'\n[tool.mlflow_tfmon]\n{lines}\n")
        return path

    return write


def test_the_order_of_precedence(project, monkeypatch):
    project("deep_every = 11\nmax_points = 111\nmonitor = 'loss'\nextra_tags = {team = 'a'}\nreport = false")
    monkeypatch.setenv("MLFLOW_TFMON_MAX_POINTS", "222")
    monkeypatch.setenv("MLFLOW_TFMON_MONITOR", "accuracy")
    found = Settings.make(monitor="auc")
    assert (found.deep_every, found.max_points, found.monitor) == (11, 222, "auc")
    assert found.extra_tags == {"team": "a"} and found.report is False
    assert found.mode == DEFAULTS.mode and found.max_variables == DEFAULTS.max_variables


def test_a_default_that_is_given_goes_before_the_environment_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_TFMON_DEEP_EVERY", "7")
    assert Settings.make(deep_every=DEFAULTS.deep_every).deep_every == DEFAULTS.deep_every != 7


def test_the_nearest_project_that_has_the_table_is_the_one(project, tmp_path):
    project("deep_every = 3")
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.other]\nx = 1")
    assert Settings.make().deep_every == 3
    project("deep_every = 4", "a")
    assert Settings.make().deep_every == 4


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("deep_every", "7", 7), ("min_delta", "1e-3", 1e-3), ("silent", "Yes", True), ("report", "0", False),
        ("checkpoint_save_freq", "5 epochs", "5 epochs"), ("checkpoint_save_freq", "20", 20),
        ("registered_model_name", "digits", "digits"), ("registered_model_name", "none", None),
        ("extra_tags", '{"team": "a"}', {"team": "a"}), ("on_problem", "stop", "stop"),
    ],
)  # fmt: skip
def test_values_of_the_environment(name, text, value, monkeypatch):
    monkeypatch.setenv(f"MLFLOW_TFMON_{name.upper()}", text)
    assert getattr(Settings.make(), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep_every", "0"),
        ("deep_every", "often"),
        ("silent", "perhaps"),
        ("extra_tags", "[1]"),
        ("mode", "up"),
    ],
)
def test_a_wrong_value_names_where_it_comes_from_the_setting_the_value_and_the_remedy(
    name, text, project, monkeypatch
):
    variable = f"MLFLOW_TFMON_{name.upper()}"
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingError, match=rf"^environment variable {variable}: {name}=.*: {name} must be"):
        Settings.make()
    monkeypatch.delenv(variable)
    path = project(f"{name} = '{text}'")
    with pytest.raises(SettingError) as error:
        Settings.make()
    assert str(error.value).startswith(f"{path}, [tool.mlflow_tfmon]: {name}='{text}': {name} must be")
    with pytest.raises(SettingError, match=r"^deep_every=-1: "):  # what is given is the caller's
        Settings.make(**{name: getattr(DEFAULTS, name), "deep_every": -1})


def test_settings_at_odds(monkeypatch):
    monkeypatch.setenv("MLFLOW_TFMON_REGISTERED_MODEL_NAME", "digits")
    with pytest.raises(
        SettingError, match=r"^environment variable .*conflicts with log_models=False; remove one"
    ):
        Settings.make(log_models=False)


def test_a_setting_that_there_is_not(project, monkeypatch, caplog):
    errors._said.clear()
    monkeypatch.setattr(errors.logger, "propagate", True)
    monkeypatch.setenv("MLFLOW_TFMON_DEEP_EVRY", "3")
    assert Settings.make().deep_every == DEFAULTS.deep_every
    assert "MLFLOW_TFMON_DEEP_EVRY: unknown setting 'deep_evry'; did you mean 'deep_every'?" in caplog.text
    path = project("deep_evry = 3")
    with pytest.raises(SettingError, match="did you mean 'deep_every'") as error:
        Settings.make()
    assert str(path) in str(error.value)
    with pytest.raises(SettingError, match=r"^nothing_like_it=1: unknown setting .*known settings: \["):
        Settings.make(nothing_like_it=1)


def test_a_project_that_is_no_toml_is_said_and_left(project, tmp_path, monkeypatch, caplog):
    errors._said.clear()
    monkeypatch.setattr(errors.logger, "propagate", True)
    (tmp_path / "pyproject.toml").write_text("[tool.mlflow_tfmon\ndeep_every = 3")
    assert Settings.make().deep_every == DEFAULTS.deep_every
    assert f"{tmp_path / 'pyproject.toml'} is not read" in caplog.text


def test_autolog_and_its_own_names_at_odds(monkeypatch):
    from mlflow_tfmon import autolog, settings
    from mlflow_tfmon.settings import autolog_settings

    for name in ("monitor", "mode"):
        with pytest.raises(SettingError, match=f"checkpoint_{name}='max': conflicts with {name}='min'"):
            autolog(**{name: "min", f"checkpoint_{name}": "max"})
    monkeypatch.setenv("MLFLOW_TFMON_MONITOR", "loss")
    monkeypatch.setenv("MLFLOW_TFMON_DEEP_EVERY", "9")
    assert autolog_settings().deep_every == 9
    try:
        autolog(True, checkpoint_monitor="val_auc", checkpoint_mode="max")
        assert settings.autolog_settings() == Settings.make(monitor="val_auc", mode="max", log_models=True)
        assert autolog_settings().deep_every == 9
    finally:
        autolog(disable=True)


def test_a_setting_that_is_a_function_can_only_be_given(monkeypatch, caplog):
    errors._said.clear()
    monkeypatch.setattr(errors.logger, "propagate", True)
    monkeypatch.setenv("MLFLOW_TFMON_EPOCH_METRICS", "{}")
    assert Settings.make().epoch_metrics is None
    assert "MLFLOW_TFMON_EPOCH_METRICS: unknown setting" in caplog.text
    assert "epoch_metrics" in Settings.types() and "epoch_metrics" not in Settings.written()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser gives files away"
)
def test_a_project_that_somebody_else_has_put_above_is_said_and_left(project, tmp_path, monkeypatch, caplog):
    errors._said.clear()
    monkeypatch.setattr(errors.logger, "propagate", True)
    path = project("deep_every = 3")
    os.chown(path, 4711, 4711)
    assert Settings.make().deep_every == DEFAULTS.deep_every
    assert f"{path} is not read, since it belongs to user 4711" in caplog.text
    os.chown(Path.cwd(), 4711, 4711)  # who works in their folder trusts them
    assert Settings.make().deep_every == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
@pytest.mark.parametrize("text", [None, "a = " + "[" * 100_000, "tool = 3"])
def test_a_project_that_is_made_to_do_harm_is_left(project, tmp_path, text):
    path = project("deep_every = 3")
    path.unlink()
    if text is None:
        os.mkfifo(path)
    else:
        path.write_text(text)
    assert Settings.make().deep_every == DEFAULTS.deep_every
