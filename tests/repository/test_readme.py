"""Tests of the README and the pages of use: their examples run, and the runs contain what the text promises."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_tfmon import load_run
from mlflow_tfmon.sources import tomllib

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/use.md", "docs/settings.md")
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)

RUN_BLOCKS = """
import json, runpy, sys
import mlflow
import mlflow_tfmon

made = []
known = set()
for path in sys.argv[2:]:
    runpy.run_path(path, run_name="__main__")
    mlflow_tfmon.autolog(disable=True)  # each example for itself
    now = {run.info.run_id for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    made.append(sorted(now - known))
    known = now
with open(sys.argv[1], "w") as file:
    json.dump(made, file)
"""


def blocks() -> list[str]:
    """The examples that train or read: of those that are there twice the first, and not the one line of `autolog`."""
    found = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [block for block in dict.fromkeys(found) if len(block.splitlines()) > 3]


def test_on_pypi_no_link_leads_nowhere() -> None:
    """There, what is relative to this repository is none; its words stay."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shown = text = (ROOT / "README.md").read_text()
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(rule["pattern"], rule["replacement"], shown)
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", shown))
    words = re.findall(r"(?<!!)\[([^\]]+)\]\([^)]+\)", text)
    assert len(words) > 20 and all(one in shown for one in words)


@pytest.fixture(scope="module")
def examples(
    store_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Run], str, MlflowClient]:
    """Runs all examples in one process: their runs, what was printed, and a client."""
    folder = tmp_path_factory.mktemp("readme")
    paths = [folder / f"block_{i}.py" for i in range(len(blocks()))]
    for path, block in zip(paths, blocks(), strict=True):
        path.write_text(block)
    shutil.copyfile(store_template, folder / "mlflow.db")
    store = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(store)
    own = {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_EXPERIMENT_ID": client.create_experiment("readme", artifact_location=str(folder / "files")),
        "MLFLOW_TFMON_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        # MLflow's test mode wants callbacks to be added after the user's alone; epoch_metrics must come before.
        "MLFLOW_AUTOLOGGING_TESTING": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS, str(folder / "made.json"), *map(str, paths)],
        cwd=folder,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((folder / "made.json").read_text())
    assert [len(runs) for runs in made] == [1, 1, 1, 0, 0, 1], made
    return [client.get_run(runs[0]) for runs in made if runs], done.stdout, client


def steps(client: MlflowClient, run: Run, key: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, key)]


def test_every_example_gives_a_finished_and_delivered_run(examples):
    for run in examples[0]:
        assert run.info.status == "FINISHED"
        assert run.data.tags["tfmon.delivery"] == "complete"


@pytest.mark.parametrize(("example", "batches"), [(0, 3 * 45), (1, 3 * 47), (2, 3 * 57)])
def test_every_step_is_there_once(examples, example, batches):
    runs, _, client = examples
    run = runs[example]
    every = list(range(1, batches + 1))
    recorded = load_run(run.info.run_id, client.tracking_uri)
    assert list(recorded.steps.index) == every
    assert recorded.steps[["loss", "learning_rate", "grad_norm"]].notna().all(axis=None)
    of_variables = recorded.layers.groupby("variable")["step"].apply(list)
    assert len(of_variables) == 4 and all(steps == every for steps in of_variables)
    kernel = next(key for key in run.data.metrics if re.fullmatch(r"grad_norm/.*dense.*\.kernel", key))
    for key in ("batch/loss", "batch/learning_rate", "batch/grad_norm", kernel):
        shown = steps(client, run, key)
        assert shown[0] == 1 and shown[-1] == batches and set(shown) <= set(every), key


def test_autologging_records_what_mlflow_does(examples):
    runs, _, client = examples
    run = runs[0]
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert steps(client, run, key) == [0, 1, 2]
    assert run.data.params["epochs"] == "3"
    assert run.data.params["batch_size"] == "32"
    assert "best/val_loss" in run.data.metrics
    assert run.outputs.model_outputs


def test_the_monitor_records_epochs_and_own_figures(examples):
    runs, _, client = examples
    history = client.get_metric_history(runs[1].info.run_id, "val_loss")
    assert [point.step for point in history] == [0, 1, 2]
    assert runs[1].data.metrics["best/val_loss"] == min(point.value for point in history)
    assert steps(client, runs[1], "batch/perplexity") == [47, 94, 141]


def test_the_callback_takes_its_settings(examples):
    runs, _, client = examples
    key = next(key for key in runs[2].data.metrics if key.startswith("weight_norm/"))
    assert steps(client, runs[2], key) == [1, *range(10, 171, 10)]
    assert "best/accuracy" in runs[2].data.metrics


def test_what_was_recorded_is_there_as_pandas(examples):
    printed = examples[1]
    assert "171" in printed  # the last step of the run before
    assert "learning_rate" in printed
    assert "dense" in printed
    assert "val" not in printed.split("variable")[-1]  # its epochs had no validation


def test_metrics_of_ones_own_are_those_of_the_epochs(examples):
    runs, _, client = examples
    history = client.get_metric_history(runs[3].info.run_id, "val_worst_f1")
    assert [point.step for point in history] == list(range(5))
    assert runs[3].data.metrics["best/val_worst_f1"] == max(point.value for point in history)


def test_the_settings_are_those_of_the_code():
    from mlflow_tfmon import autolog
    from mlflow_tfmon.settings import Settings

    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    documented = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", section("Settings"), re.MULTILINE)))
    )
    assert documented - {"setting"} == set(defaults)
    for name, value in re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section("Settings"), re.MULTILINE):
        assert str(defaults[name]) == value.strip('"'), name
    alone = set(inspect.signature(autolog).parameters) - set(defaults)
    assert {"disable", "exclusive", "disable_for_unsupported_versions"} <= alone


def test_the_oldest_versions_are_those_that_are_declared_and_tested():
    from mlflow_tfmon.versions import OLDEST

    pins = dict(re.findall(r"^(\w+)==(.*)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    bounds = dict(
        re.findall(r'^    "(\w+)>=([\d.]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    for name, version in OLDEST.items():
        assert pins[name] == bounds[name] == version
        assert version in section("Supported versions")


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
