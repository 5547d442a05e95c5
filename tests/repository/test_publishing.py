"""What publishes the package: the workflows' commands, the recipe of conda, the package in an empty environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from mlflow_tfmon import __version__
from mlflow_tfmon.sources import tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Each job may do this alone.
PERMISSIONS = {
    "docs.deploy": {"contents": "write"},
    "publish.build": {"contents": "read"},
    "publish.publish": {"id-token": "write"},
    "tests.test": {"contents": "read"},
}


def jobs() -> dict[str, dict[str, Any]]:
    """The jobs of all workflows, each with the permissions that hold for it."""
    found = {}
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text("utf-8"))
        for name, job in workflow["jobs"].items():
            found[f"{path.stem}.{name}"] = {"permissions": workflow.get("permissions"), **job}
    return found


def run(command: str, folder: Path, check: bool = True, **own: str) -> subprocess.CompletedProcess[str]:
    """Runs a step as GitHub does, which ends it at its first failing line."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {
        name: one for name, one in os.environ.items() if not name.startswith("MLFLOW_")
    }  # as users have it
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
        cwd=folder, env={**clean, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path, **own},
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_each_job_may_do_what_it_needs_and_no_more() -> None:
    assert {name: job["permissions"] for name, job in jobs().items()} == PERMISSIONS
    assert jobs()["publish.publish"]["needs"] == "build"  # what was tested is what is published
    for name, job in jobs().items():
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(
            re.fullmatch(r"(actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1)", one) for one in used
        )
        writes = "write" in job["permissions"].values()
        for step in job["steps"]:
            assert "secrets." not in str(step) and "${{" not in step.get("run", ""), (name, step)
            if str(step.get("uses", "")).startswith("actions/checkout") and not writes:
                assert step["with"]["persist-credentials"] is False


def test_what_the_workflows_make_can_be_made() -> None:
    lines = [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]
    made = [line for line in lines if line.startswith("make ")]
    assert {line.split()[1] for line in made} == {"test", "package", "docs"}
    for line in made:
        assert line.endswith(" PYTHON=python")  # the one that setup-python has put first
        run(f"{line} --dry-run", ROOT)
    tested = set(jobs()["tests.test"]["strategy"]["matrix"]["python"])
    assert yaml.safe_load((WORKFLOWS[-1]).read_text("utf-8"))[True]["schedule"]  # with what is newest by then
    told = {one.rpartition(" :: ")[2] for one in PROJECT["classifiers"] if " :: Python :: 3." in one}
    assert tested <= told and max(told, key=lambda one: int(one[2:])) in tested


@pytest.mark.parametrize(
    ("tag", "fits"), [(f"v{__version__}", True), ("v9.9.9", False), (__version__, False)]
)
def test_a_tag_that_is_not_the_version_publishes_nothing(tag: str, fits: bool) -> None:
    (step,) = (one for one in jobs()["publish.build"]["steps"] if one.get("name") == "The tag is the version")
    assert (run(step["run"], ROOT, check=False, GITHUB_REF_NAME=tag).returncode == 0) == fits


@pytest.mark.slow
@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="needs check-jsonschema")
def test_workflows_action_and_the_examples_of_the_page_are_as_their_schemas_say(tmp_path: Path) -> None:
    github, gitlab = snippets()
    (tmp_path / "github.yml").write_text(f"name: x\non: [push]\n{github}")
    (tmp_path / "gitlab.yml").write_text(gitlab)
    for schema, *files in (
        ("github-workflows", *map(str, WORKFLOWS), "github.yml"),
        ("github-actions", str(ROOT / "action.yml")),
        ("gitlab-ci", "gitlab.yml"),
    ):
        run(f"python -m check_jsonschema --builtin-schema vendor.{schema} {' '.join(files)}", tmp_path)


# -- conda ------------------------------------------------------------------------------------------------------------


def test_the_recipe_of_conda_says_what_the_package_says() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text("utf-8"))
    assert str(recipe["context"]["version"]) == __version__
    oldest = str(recipe["context"]["python_min"])
    assert PROJECT["requires-python"] == f">={oldest}"
    ours = [Requirement(one) for one in PROJECT["dependencies"]]
    needs = {f"{one.name} {one.specifier}" for one in ours} | {"__linux", "python >=${{ python_min }}"}
    assert set(recipe["requirements"]["run"]) == needs
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    builds = {f"{one.name} {one.specifier}" for one in map(Requirement, build)}
    assert set(recipe["requirements"]["host"]) == builds | {"pip", "python ${{ python_min }}.*"}
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert (recipe["about"]["license"], recipe["about"]["summary"]) == (
        PROJECT["license"],
        PROJECT["description"],
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert str(citation["version"]) == __version__


# -- the examples of docs/ci.md, and the action -----------------------------------------------------------------------

TRAIN = """
import os
import keras
from sklearn.datasets import load_digits

keras.utils.set_random_seed(1)
x, y = load_digits(return_X_y=True)
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
rate = float(os.environ.get("RATE", "0.005"))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
model.fit(x / 16, y, epochs=20, validation_split=0.2, verbose=0)
"""
GH = '#!/bin/sh\necho "$@" >> gh.log\n'  # stands for GitHub's own program


def snippets() -> list[str]:
    """The examples for GitHub and for GitLab."""
    text = (ROOT / "docs" / "ci.md").read_text()
    return re.findall(r"^```yaml\n(\w.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Somebody's project, and the environment of a job."""
    (tmp_path / "requirements.txt").write_text("")  # the package is installed
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    own = {
        "PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT), "MLFLOW_TFMON_HOME": str(tmp_path / "home"), "CI": "true",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "RUNNER_TEMP": str(tmp_path),
    }  # fmt: skip
    return tmp_path, own


@pytest.mark.thorough
def test_the_examples_for_github_and_gitlab_and_the_action_do_what_they_say(
    project: tuple[Path, dict[str, str]],
) -> None:
    folder, own = project
    github, gitlab = map(yaml.safe_load, snippets())
    job = github["jobs"]["train"]
    own |= job["env"]
    *steps, check, told = [step for step in job["steps"] if "run" in step]
    for step in steps:
        run(step["run"], folder, **own)
    run(check["run"], folder, **own)
    assert "!cancelled()" in told["if"] and "hashFiles('check.md')" in told["if"]
    run(told["run"], folder, **own, PULL_REQUEST="7")
    summary = (folder / "summary.md").read_text()
    assert summary == (folder / "check.md").read_text() and summary.startswith("## Training check: passed")
    assert (folder / "gh.log").read_text() == "pr comment 7 --body-file check.md\n"

    script = [line for line in gitlab["train"]["script"] if "train.py" not in line]
    own |= gitlab["train"]["variables"]
    for line in script:
        run(line, folder, **own)
    report = folder / gitlab["train"]["artifacts"]["reports"]["junit"]
    assert "<testsuites" in report.read_text() and "<failure" not in report.read_text()

    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (acts,) = action["runs"]["steps"]
    assert "${{" not in acts["run"]  # what somebody else wrote, a run's name say, is no command
    given = {
        name.upper().replace("-", "_"): str(about["default"]) for name, about in action["inputs"].items()
    }
    assert set(acts["env"]) == {*given, "PULL_REQUEST", "GH_TOKEN"} - {"COMMENT"}

    def act(**inputs: str) -> int:
        for name in ("summary.md", "gh.log"):
            (folder / name).unlink(missing_ok=True)
        return run(
            acts["run"], folder, check=False, **own, **{**given, "PULL_REQUEST": "", **inputs}
        ).returncode

    assert act(METRICS="val_accuracy>=0.8\nbest(val_loss)<=0.9\n") == 0 and not (folder / "gh.log").exists()
    assert act(METRICS="val_accuracy>=2", PULL_REQUEST="8") == 1
    assert "val\\_accuracy\\>=2 | " in (folder / "summary.md").read_text()
    assert (folder / "gh.log").read_text().startswith("pr comment 8 --body-file ")
    assert act(METRICS="$(touch hacked)", RUN="`touch hacked`") == 2 and not (folder / "hacked").exists()
    assert not (folder / "summary.md").exists()

    run(job["steps"][-3]["run"], folder, **own, RATE="30")  # which learns nothing
    assert act() == 1 and "learning\\_rate\\_too\\_high" in (folder / "summary.md").read_text()
    assert run(script[-1], folder, check=False, **own).returncode == 1 and "<failure" in report.read_text()


# -- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, made and checked by `make package` of a clean copy of what is here."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "checkout"
    names = run("git ls-files -z --cached --others --exclude-standard", ROOT).stdout.split("\0")
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, copy / name)
    done = run(f"make package PYTHON={sys.executable} VENV={folder}/tools", copy, check=False)
    if done.returncode and "No matching distribution found" in done.stderr:
        pytest.skip("no registry of packages answers")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("PASSED") == 2 and "OK" in done.stdout
    return copy / "dist"


@pytest.mark.thorough
def test_wheel_and_sdist_have_what_they_should(dist: Path) -> None:
    wheel, sdist = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
    assert (wheel.name, sdist.name) == (
        f"mlflow_tfmon-{__version__}-py3-none-any.whl",
        f"mlflow_tfmon-{__version__}.tar.gz",
    )
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        info = f"mlflow_tfmon-{__version__}.dist-info"
        about = message_from_bytes(archive.read(f"{info}/METADATA"))
    tracked = run("git ls-files -z --cached --others --exclude-standard mlflow_tfmon", ROOT).stdout.split(
        "\0"
    )
    assert {one for one in inside if not one.startswith(info)} == {one for one in tracked if one}
    assert f"{info}/licenses/LICENSE" in inside
    links = re.findall(r"\]\(([^)]+)\)", str(about.get_payload()))
    assert all(link.startswith("https://") for link in links)
    assert about.get_all("Project-URL") is None or all(
        "example" not in one for one in about.get_all("Project-URL")
    )


WALK = """
mlflow-tfmon --help > help.txt
python -m mlflow_tfmon --version
python example.py
mlflow-tfmon runs
mlflow-tfmon diagnose latest
mlflow-tfmon check latest --metric 'val_accuracy>=0.5'
mlflow-tfmon report latest
mlflow-tfmon run example.py
other=$(mlflow-tfmon runs --json | python -c "import json, sys; print(json.load(sys.stdin)[1]['run_id'])")
mlflow-tfmon compare latest "$other"
"""


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_in_an_empty_environment_the_first_steps_of_the_readme_work(dist: Path, tmp_path: Path) -> None:
    """It has the wheel and what that needs, and knows nothing of this checkout; `TFMON_PYTHON` is another Python."""
    python = os.environ.get("TFMON_PYTHON", sys.executable)
    clean = {
        name: one for name, one in os.environ.items() if not name.startswith(("MLFLOW", "PYTHON", "TFMON"))
    }
    clean["MLFLOW_DISABLE_TELEMETRY"] = "true"
    work = tmp_path / "work"
    work.mkdir()
    example = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )[1]
    (work / "example.py").write_text(example)

    def do(command: str) -> str:
        path = f"{tmp_path}/env/bin{os.pathsep}{clean['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=work, capture_output=True, text=True, timeout=1500,
            env={**clean, "PATH": path, "HOME": str(tmp_path / "home"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    cache = run("python -m pip cache dir", ROOT).stdout.strip()
    do(f"{python} -m venv {tmp_path}/env")
    do(f"pip install --quiet --disable-pip-version-check --cache-dir {cache} {next(dist.glob('*.whl'))}")
    do("pip check")
    said = do(WALK)
    assert f"mlflow-tfmon, version {__version__}" in said and "passed: run " in said
    assert (
        "problems  " in said
        and (work / "comparison.html").is_file()
        and len(list(work.glob("report-*"))) == 1
    )
    assert str(ROOT) not in do("python -c 'import mlflow_tfmon; print(mlflow_tfmon.__file__)'")
    for extra, command in (("mcp", "mcp"), ("prometheus", "run --sinks prometheus:9464 example.py")):
        assert f"pip install 'mlflow-tfmon[{extra}]'" in do(f"mlflow-tfmon {command} || true")


# -- the documentation's versions -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("mike") is None, reason="needs the extra docs")
def test_a_tag_puts_its_documentation_beside_that_of_earlier_ones(tmp_path: Path) -> None:
    own = {"GIT_CONFIG_GLOBAL": "/dev/null", "MLFLOW_TFMON_HOME": str(tmp_path / "home")}
    run(f"git clone --quiet --bare {ROOT} origin.git && git clone --quiet origin.git checkout", tmp_path)
    checkout = tmp_path / "checkout"
    (checkout / ".venv").symlink_to(sys.prefix)
    deploy = jobs()["docs.deploy"]["steps"][-1]["run"]
    for tag in ("v0.1.0", "v0.2.0"):
        run(deploy, checkout, **own, GITHUB_REF_NAME=tag)
    names = run("git ls-tree --name-only gh-pages", tmp_path / "origin.git").stdout.split()
    assert {"0.1.0", "0.2.0", "latest", "versions.json", "index.html"} <= set(names)
    versions = yaml.safe_load(run("git show gh-pages:versions.json", tmp_path / "origin.git").stdout)
    assert [(one["version"], one["aliases"]) for one in versions] == [("0.2.0", ["latest"]), ("0.1.0", [])]
