"""Tests of the documentation: its examples run, its tables of names match the code, and the site builds."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlflow_tfmon import cli
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.sources import _INTERNAL, PREFIX

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))

# What a page's examples take for granted: data, a compiled model, a loop's parts, and a run that was watched.
RUN_PAGES = """
import runpy, sys
import keras, mlflow, mlflow_tfmon
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x = x / 16
mlflow_tfmon.autolog()
for path in [None, *sys.argv[1:]]:
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    if path is None:
        model.fit(x, y, validation_split=0.2, verbose=0)
        run_id = mlflow.last_active_run().info.run_id
    else:
        print("page", path)
        given = {"x": x, "y": y, "model": model, "run_id": run_id, "mlflow_tfmon": mlflow_tfmon}
        given |= {"epochs": 2, "train_ds": [(x[:32], y[:32])] * 3, "train_step": model.train_on_batch}
        given |= {"validate": lambda model: 1.0}
        runpy.run_path(path, given, "__main__")
    mlflow_tfmon.autolog(disable=True)  # each page for itself
"""


@pytest.mark.thorough
def test_the_examples_of_every_page(store, home, tmp_path):
    paths = []
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        if page.stem == "machines":  # whose examples need several
            assert all(compile(block, page, "exec") for block in blocks)
        elif blocks:
            paths.append(tmp_path / f"{page.stem}.py")
            paths[-1].write_text("\n".join(blocks))
    assert len(paths) >= 8
    own = {"MLFLOW_TRACKING_URI": store, "MLFLOW_TFMON_HOME": str(home), "PYTHONPATH": str(ROOT)}
    own["MLFLOW_AUTOLOGGING_TESTING"] = "false"  # which wants callbacks to be added after the user's alone
    done = subprocess.run(
        [sys.executable, "-c", RUN_PAGES, *map(str, paths)],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_settings_that_a_page_names_are_there(page):
    text = page.read_text()
    commands = set(re.findall(r"`?mlflow-tfmon ([a-z][a-z-]*)", text))
    assert commands <= set(cli.group.list_commands(None))
    variables = set(re.findall(rf"{PREFIX}([A-Z_]+)", text))
    assert variables <= {name.upper() for name in Settings.types()} | _INTERNAL
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (page.parent / image).is_file(), image
    for link in re.findall(r"\]\((\.\./[^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_llms_txt_lists_every_page():
    listed = re.findall(r"^- \[[^\]]+\]\(([\w.]+)\)", (ROOT / "docs" / "llms.txt").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES]


def test_the_reference_has_every_command_with_its_options():
    text = (ROOT / "docs" / "reference.md").read_text()
    for name in cli.group.list_commands(None):
        (row,) = re.findall(rf"^\| `mlflow-tfmon {name}(?: (.*?))?` \|", text, re.MULTILINE)
        command = cli.group.get_command(None, name)
        options = {opt for param in command.params for opt in param.opts if opt.startswith("-")}
        written = set(re.findall(r"(?<![\w-])--?[\w-]+", row))
        assert written <= options
        if name != "run":
            assert options - {"--tracking-uri"} <= written


def test_every_message_is_in_the_code():
    """What the page of messages quotes, up to what differs from case to case, is said somewhere."""
    code = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (ROOT / "mlflow_tfmon").rglob("*.py")
    )
    cells = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "messages.md").read_text(), re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", " ".join(cells)):
        for part in re.split(r"…|<\w+>|\(|\)|^mlflow-tfmon:", message):
            words = part.strip(" .,:;")
            assert words in code.replace("{name}=", "monitor=") or words in code, (message, words)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
@pytest.mark.thorough
def test_the_site_builds_strictly(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    for name in ("autolog", "Monitor", "load_run", "settings.Settings"):
        assert f'id="mlflow_tfmon.{name}"' in reference


def test_contributing_names_files_and_lists_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    made = set(re.findall(r"^# (mlflow_tfmon/\S+)$", text, re.MULTILINE))  # by its recipes
    named = set(re.findall(r"`((?:mlflow_tfmon|tests|docs|benchmarks)/[\w./]+)`", text)) - made
    assert len(named) > 20 and not [one for one in named if not (ROOT / one).exists()]
    code = "".join((ROOT / one).read_text() for one in named if one.endswith(".py"))
    for name in re.findall(r"`(_?[A-Z]{3,})`", text):
        assert re.search(rf"^{name}\b.*= [({{]", code, re.MULTILINE), name


def test_shell_examples_name_files_that_make_can_build():
    """`make` targets that the documents name are there."""
    makefile = (ROOT / "Makefile").read_text()
    for page in (*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^[\w -]*\b{target}\b[\w -]*:", makefile, re.MULTILINE), (page.name, target)
    assert shutil.which("make")
