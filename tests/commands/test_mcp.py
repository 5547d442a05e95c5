"""Tests of the MCP server: a client of the SDK, which has nothing but the tools, finds out why a training failed."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from mlflow_tfmon.cli import main
from mlflow_tfmon.stream.records import Problems
from tests.report import recordings

EPOCHS, BATCH, ROWS = 12, 25, 200
GOOD, BAD = "steady", "raised"
RAISED = 6 * ROWS // BATCH + 1  # the first step with the higher rate


def train(raised: float | None) -> str:
    """A training whose learning rate is raised in its middle; returns the run's id."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 4)).astype("float32")
    y = (x[:, :1] + x[:, 1:2] > 0).astype("float32")
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")]
    )
    net.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    rates = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: raised if raised and epoch >= 6 else rate
    )
    with mlflow.start_run(run_name=BAD if raised else GOOD) as run:
        net.fit(
            x, y, batch_size=BATCH, epochs=EPOCHS, validation_data=(x, y), shuffle=False, verbose=0,
            callbacks=[rates],
        )  # fmt: skip
    return run.info.run_id


Call = Callable[..., Awaitable[Any]]


def ask(question: Callable[[Call], Awaitable[None]]) -> None:
    """Has a client of the SDK start the server as an agent does, and ask it."""
    mcp = pytest.importorskip("mcp")
    server = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "mlflow_tfmon", "mcp", "--tracking-uri", mlflow.get_tracking_uri()],
        env={**os.environ, "MLFLOW_TRACKING_URI": "sqlite:////nowhere/mlflow.db"},
    )  # fmt: skip

    async def talk() -> None:
        async with mcp.Client(server, read_timeout_seconds=120) as client:
            tools = (await client.list_tools()).tools
            assert all(tool.description and tool.annotations.read_only_hint for tool in tools)

            async def call(name: str, **arguments: Any) -> Any:
                answer = await client.call_tool(name, arguments)
                return answer.content[0].text if answer.is_error else answer.structured_content

            await question(call)

    anyio.run(talk)


@pytest.mark.thorough
def test_an_agent_finds_out_why_a_training_failed_since_when_and_what_to_change(fresh: None) -> None:
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, deep_every=8)
    good, bad = train(None), train(3e4)
    found: dict[str, Any] = {}

    async def question(call: Call) -> None:
        runs = (await call("list_runs"))["runs"]
        assert [one["name"] for one in runs] == [BAD, GOOD] and runs[0]["problems"]
        found["verdict"] = await call("check_run", run=BAD, metrics=["val_loss<=0.6"], baseline=GOOD)
        found["status"] = await call("run_status", run=BAD)
        found["problems"] = await call("find_problems", run=runs[0]["run_id"])
        found["later"] = await call("find_problems", run=BAD, since=10_000)
        found["names"] = await call("read_series", run=BAD, names=[])
        variable = f"grad_norm/{found['names']['variables'][0]}"
        names = ["batch/learning_rate", "batch/loss", "val_loss", variable, "weight_norm/" + variable[10:]]
        found["series"] = await call("read_series", run=BAD, names=names, points=8)
        found["steps"] = await call(
            "read_series", run=BAD, names=["batch/loss"], first=RAISED - 2, last=RAISED + 2
        )
        found["compared"] = await call("compare_runs", runs=[GOOD, BAD])
        found["wrong"] = [
            await call("find_problems", run="no-such-run"),
            await call("read_series", run=BAD, names=["batch/los"]),
            await call("check_run", run=BAD, metrics=["val_loss"]),
            await call("compare_runs", runs=[BAD]),
            await call("read_batches", run=BAD, step=1),
        ]
        found["batches"] = (await call("read_batches", run=BAD))["batches"]
        found["batch"] = await call("read_batches", run=BAD, step=found["batches"][0]["step"])

    ask(question)
    assert found["verdict"]["verdict"] == "failed"
    cause = found["problems"]["problems"][0]
    assert cause["kind"] == "learning_rate_too_high" and "learning rate" in cause["advice"].lower()
    assert RAISED <= cause["first_step"] <= RAISED + 16
    text = found["problems"]["diagnosis"]
    assert (
        text.startswith("# Diagnosis\n\n**learning\\_rate\\_too\\_high**")
        and "optimizer sgd, learning rate 0.1, batch size 25, epochs 12" in text
    )
    assert found["later"]["problems"] == []
    assert (
        found["status"]["status"] == "FINISHED"
        and f"step {EPOCHS * ROWS // BATCH}" in found["status"]["told"]["progress"]
    )
    recorded = mlflow_tfmon.load_run(bad)
    by_name = {one["name"]: one for one in found["series"]["series"]}
    loss = by_name["batch/loss"]
    assert len(loss["step"]) <= 8 < loss["recorded"] == len(recorded.steps)
    finite = np.isfinite(recorded.steps.loss)
    assert max(loss["values"]) == recorded.steps.loss[finite].max()
    assert loss["not_finite"] == {"count": int((~finite).sum()), "first": int(finite.idxmin())}
    assert by_name["val_loss"]["epoch"][0] == 0 and len(by_name["batch/learning_rate"]["step"]) <= 8
    np.testing.assert_allclose(
        found["steps"]["series"][0]["values"], recorded.steps.loss.loc[RAISED - 2 : RAISED + 2]
    )
    variable = next(iter(recorded.variables))
    layers = recorded.layers[recorded.layers.variable == variable].set_index("step")
    for quantity in ("grad_norm", "weight_norm"):
        one = by_name[f"{quantity}/{variable}"]
        np.testing.assert_array_equal(layers.loc[one["step"], quantity], one["values"])
    (parting,) = found["compared"]["partings"]
    assert parting["step"] == RAISED or parting["step"] == RAISED + 1
    assert [one["id"] for one in found["compared"]["runs"]] == [good, bad]
    assert all(isinstance(one, str) and "\n" not in one for one in found["wrong"]), found["wrong"]
    kept = mlflow_tfmon.load_run(bad).batches
    assert [one["step"] for one in found["batches"]] == [one.step for one in kept] and kept
    assert [one["text"] for one in found["batches"]] == [one.text for one in kept]
    first, batch = kept[0], found["batch"]
    assert [one["example"] for one in batch["odd"]] == list(first.odd[:10])
    assert [one["index"] for one in batch["odd"]] == [
        first.indices[first.kept.index(one)] for one in first.odd[:10]
    ]
    row = first.kept.index(first.odd[0]) if first.odd else 0
    shown = {one["value"]: float(one["its own"]) for one in batch["values"]}
    np.testing.assert_allclose(
        [shown[f"inputs[{at}]"] for at in range(4)], first.arrays()["inputs"][row], rtol=1e-5
    )
    assert "no run 'no-such-run'" in found["wrong"][0] and "batch/loss" in found["wrong"][1]


def test_without_the_sdk_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    assert main(["mcp"]) == 1
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err == "mlflow-tfmon: mcp needs the MCP SDK, 2 or later: pip install 'mlflow-tfmon[mcp]'.\n"
    )


@pytest.mark.slow
def test_mlflows_own_assistant_finds_the_diagnosis_by_the_commands_that_it_is_told(
    store: str, home: Path, tmp_path: Path
) -> None:
    prompts = pytest.importorskip("mlflow.assistant.providers.prompts")
    problem = {
        "kind": "dead_relu", "severity": "critical", "first_step": 40, "variables": [], "evidence": "All are 0.",
        "advice": "Lower the rate.",
    }  # fmt: skip
    records = [*recordings.training(400), Problems(400, recordings.recordings.BEGUN + 4, (problem,))]
    run_id = recordings.delivered(store, home, *records)
    instructions = inspect.getsource(prompts)
    told = {}
    for what in ("runs describe", "artifacts list", "artifacts download"):
        (command,) = set(re.findall(rf"^(mlflow {what} --run-id <RUN_ID>.*)$", instructions, re.MULTILINE))
        command = command.replace("<RUN_ID>", run_id).replace("<PATH>", "tfmon/diagnosis.md")
        if what == "artifacts list":
            command += " --artifact-path tfmon"
        told[what] = subprocess.run(
            [sys.executable, "-m", *command.split()], env={**os.environ, "MLFLOW_TRACKING_URI": store},
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
    assert "dead_relu" in told["runs describe"]
    assert "tfmon/diagnosis.md" in told["artifacts list"]
    path = told["artifacts download"].strip().splitlines()[-1]
    assert "Lower the rate." in Path(path).read_text("utf-8")
