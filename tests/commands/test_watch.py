"""Tests of `mlflow-tfmon watch`: what it shows of runs in a real store, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from mlflow_tfmon import cli
from mlflow_tfmon.commands import watch
from mlflow_tfmon.commands.watch import sparkline
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.records import EpochEnded, Facts, RunEnded
from tests.delivery.recordings import BEGUN, blocks, layout, started, values


def shown(run_id: str, width: int = 120) -> str:
    run, curves = watch._look(mlflow.MlflowClient(), run_id)
    console = Console(width=width, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(watch.view(run, curves, width))
    return console.export_text()


def test_a_curve_is_a_line_of_bars() -> None:
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    assert (
        sparkline([1.0, 1.0], 10) == "▁▁" and sparkline([], 10) == "" and sparkline([float("nan")], 5) == ""
    )
    assert len(sparkline(list(range(1000)), 30)) == 30
    assert sparkline([1e-4, 1e-2, 1.0], 3) == "▁▅█"  # by the logarithm
    assert sparkline([float("inf"), 1.0, 2.0], 9) == "▁█"


def test_what_it_shows_of_a_training_that_goes_on_and_of_its_end(
    store: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", run_name="a \x1b[31mrun").info.run_id
    rows = values(200)
    journal = Journal.create(home)
    told = Facts(metrics=(("best/val_loss", 0.25, 0), ("best/epoch", 0.0, 0)), time=BEGUN)
    ended = EpochEnded(0, 100, BEGUN + 1, {"loss": 0.5, "val_loss": 0.25})
    journal.append([started(store, run_id), layout(400), *blocks(rows[:100]), ended, told])
    one = Deliverer(journal.folder)
    one.advance(hurry=True)
    client.set_tag(run_id, "tfmon.progress", "step 100 of 400, loss 0.5, 3 s left")
    text = shown(run_id)
    assert "\x1b" not in text and "running" in text
    assert "step 100 of 400, loss 0.5, 3 s left" in text and "best val_loss 0.25 at epoch 1" in text
    for name in ("loss of the step", "gradient norm", "learning rate", "val_loss"):
        assert name in text
    assert any(bar in text for bar in watch._BARS) and "problems: none so far" in text
    client.set_tag(run_id, "tfmon.problems", "dead_relu,plateau")
    assert "problems: dead_relu,plateau" in shown(run_id)
    assert max(map(len, shown(run_id, 60).splitlines())) <= 60
    journal.append([*blocks(rows[100:]), RunEnded(BEGUN + 9, "FINISHED", True)])
    while not one.done:
        one.advance(trainer_gone=True)
    journal.close()
    assert cli.main(["watch", run_id, "--every", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "finished" in out and "step 200 of 400" in out
    assert "best val_loss 0.25 at epoch 1 of 1" in out  # how many there were is known at the end


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(store: str, home: Path) -> None:
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.set_tag(run_id, "tfmon.delivery", "streaming")
    client.log_metric(run_id, "batch/loss", 0.5, step=1)
    command = [
        sys.executable,
        "-m",
        "mlflow_tfmon",
        "watch",
        run_id[:12],
        "--every",
        "0.1",
        "--tracking-uri",
        store,
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "FORCE_COLOR": "1"}
    ) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        out, until = b"", time.monotonic() + 120
        while b"loss of the step" not in out:
            assert time.monotonic() < until and process.poll() is None
            out += process.stdout.read() or b""
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        os.set_blocking(process.stdout.fileno(), True)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"")


def test_a_store_that_never_answers_is_an_error_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["watch", "latest", "--tracking-uri", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
