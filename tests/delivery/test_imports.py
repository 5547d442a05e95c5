"""Tests of the delivery process's imports: the trainer's packages, and nothing that merely lies in its folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.daemon import search_path

TRAINER = """
import sys
sys.path.insert(0, {vendored!r})
from mlflow_tfmon.delivery.daemon import Daemon
import os
{then}
daemon = Daemon(os.environ)
daemon.close()
assert daemon.wait(120)
"""
INSTEAD = """
import os, sys
import types, enum, json, select, http.client, requests, psutil
with open(os.environ["SEEN"], "w") as file:
    file.write("\\n".join(sys.modules[name].__file__ for name in {names}))
os._exit(0)
"""
NAMES = ("types", "enum", "json", "http", "requests", "psutil", "mlflow_tfmon.delivery.main")


@pytest.mark.parametrize(
    ("flags", "environment", "then"),
    [
        (["-I"], {"PYTHONPATH": "."}, ""),
        (
            [],
            {"PYTHONPATH": ""},
            "sys.path.insert(0, '')",
        ),  # as an interactive interpreter and a notebook have it
        ([], {}, "sys.path.insert(0, os.getcwd()); os.environ['PYTHONPATH'] = os.pathsep + os.getcwd()"),
    ],
    ids=["isolated", "interactive", "by name"],
)
def test_nothing_of_the_working_directory_takes_a_place(
    flags: list[str], environment: dict[str, str], then: str, tmp_path: Path
) -> None:
    """And the package is found where only the trainer's `sys.path` leads, in a folder of whatever name."""
    vendored, here = tmp_path / "vendored" / "site-packages", tmp_path / "here"
    package = Path(mlflow_tfmon.__file__).parent
    shutil.copytree(package, vendored / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (vendored / "mlflow_tfmon" / "delivery" / "main.py").write_text(INSTEAD.format(names=NAMES))
    here.mkdir()
    for name in ("types", "enum", "json", "http", "requests", "psutil", "select", "site", "os"):
        (here / f"{name}.py").write_text("raise ImportError('the wrong one')")
    script = tmp_path / "train.py"
    script.write_text(TRAINER.format(vendored=str(vendored), then=then))
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, *flags, script], cwd=here, env={**own, **environment, "SEEN": str(tmp_path / "seen")},
        check=True,
    )  # fmt: skip
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(seen) == len(NAMES) and not any(str(here) in one for one in seen)
    assert seen[-1].startswith(str(vendored))


def test_the_order_in_which_modules_are_looked_for(tmp_path: Path) -> None:
    standard = sysconfig.get_path("stdlib")
    link = tmp_path / "link"
    (tmp_path / "here").mkdir()
    link.symlink_to(tmp_path / "here")
    here = str(tmp_path / "here")
    given = [
        "",
        "lib",
        "/opt/app.pyz",
        "/opt/site-packages",
        standard,
        str(link),
        Path("/no/text"),
        "/opt/app.pyz",
    ]
    found = search_path(given, here)
    package = str(Path(mlflow_tfmon.__file__).parents[1])
    assert found == [standard, "/opt/app.pyz", "/opt/site-packages", package, here, f"{here}/lib"]
    assert here not in search_path(["/opt/app.pyz", standard], here)  # an isolated trainer has it not
