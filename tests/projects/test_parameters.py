"""Tests of the entry points' parameters: defined once, rejected in one line, and smaller in a quick run."""

from __future__ import annotations

import argparse
import re
from functools import partial
from importlib import import_module

import pytest
import yaml

from projects.shared.parameters import Parameters, count, flag, rate, share
from tests.projects.conftest import ROOT

ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_the_defaults_are_said_once(name, monkeypatch):
    """MLproject's defaults are those of the script, and its command passes them all."""
    defaults = {}

    class Read(Exception):
        pass

    def read(parser: Parameters) -> argparse.Namespace:
        defaults.update(vars(parser.parse_args([])))
        raise Read

    monkeypatch.setattr(Parameters, "read", read)
    module = re.match(r"python -m ([\w.]+) ", ENTRY_POINTS[name]["command"])[1]
    script = import_module(f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module)
    with pytest.raises(Read):
        script.main()
    declared = {key: about["default"] for key, about in ENTRY_POINTS[name]["parameters"].items()}
    assert declared == defaults
    assert "quick" in declared
    passed = re.findall(r"--([\w-]+)={(\w+)}", ENTRY_POINTS[name]["command"])
    assert {option.replace("-", "_"): value for option, value in passed} == {key: key for key in declared}


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (count, {"1": 1, "20": 20}, ["0", "-1", "2.5", "x", ""]),
        (partial(count, least=2), {"2": 2}, ["1", "x"]),
        (rate, {"0.5": 0.5, "1e3": 1000.0}, ["0", "-1e-3", "nan", "inf", "x"]),
        (share, {"0.5": 0.5}, ["0", "1", "-0.1", "nan", "x"]),
        (flag, {"true": True, "False": False}, ["1", "yes", ""]),
    ],
)
def test_values(read, good, bad):
    assert {text: read(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"not '{text}'")):
            read(text)


def test_what_a_demo_shows_is_in_its_own_file():
    """To be copied: no model, loss, optimizer, callback or step comes from a shared module."""
    for path in (ROOT / "projects" / "shared").glob("*.py"):
        assert not re.search(
            r"keras\.(layers|losses|optimizers|callbacks|Model|Sequential)|GradientTape", path.read_text()
        )
    for path in (ROOT / "projects").rglob("*.py"):
        others = re.findall(r"^from projects\.(\S+) import", path.read_text(), re.MULTILINE)
        inside = ("shared.", "main.") if path.parent.name == "main" else ("shared.",)
        assert all(one.startswith(inside) for one in others), path


def test_quick_changes_what_is_left_at_its_default():
    parameters = Parameters("demo")
    parameters.add("epochs", count, 60, quick=4)
    parameters.add("batch_size", count, 32)
    assert vars(parameters.read([])) == {"quick": False, "epochs": 60, "batch_size": 32}
    assert vars(parameters.read(["--quick=true"])) == {"quick": True, "epochs": 4, "batch_size": 32}
    assert parameters.read(["--quick=true", "--epochs=9"]).epochs == 9
    assert parameters.read(["--epochs=9"]).epochs == 9


def test_an_error_is_one_line(capsys):
    parameters = Parameters("projects.demo")
    parameters.add("epochs", count, 60)
    with pytest.raises(SystemExit) as ended:
        parameters.read(["--epochs=-1"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "projects.demo: error: argument --epochs: must be a whole number of at least 1, not '-1'"
