"""Tests of problems in real trainings: in the run, in the log, acted on, and found again."""

from __future__ import annotations

import base64
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from benchmarks.detection import own_jobs
from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.detectors import History
from mlflow_tfmon.problems import alerts, plugins
from mlflow_tfmon.problems.rediagnosis import diagnose
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream.records import RunEnded
from mlflow_tfmon.watching import actions
from tests.daily import thorough
from tests.delivery.recordings import BEGUN, blocks, layout, started, values, write

pytestmark = pytest.mark.usefixtures("fresh")


def detectors() -> set[str]:
    """The kinds that have a module."""
    about = {
        "__init__",
        "causes",
        "history",
        "learning",
        "premises",
        "problem",
        "sample",
        "table",
        "thresholds",
        "updates",
        "witnesses",
    }
    return {path.stem for path in Path(mlflow_tfmon.__file__).parent.glob("detectors/*.py")} - about


def _data(rows: int = 256) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int64")


def _model(
    rate: float = 0.01, kernel: Any = "glorot_uniform", built: bool = True, sgd: bool = False
) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "relu", kernel_initializer=kernel) for _ in range(2)]
    model = keras.Sequential(
        [*([keras.Input((4,))] if built else []), *layers, keras.layers.Dense(1, "sigmoid")]
    )
    optimizer = keras.optimizers.SGD(rate) if sgd else keras.optimizers.Adam(rate)
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    return model


def _fit(model: keras.Model, epochs: int = 12, **settings: Any) -> tuple[str, dict[str, list[float]]]:
    x, y = _data()
    # On a busy machine delivery takes longer than a user is made to wait; what has not arrived can't be judged again.
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, delivery_wait=120.0, **settings)
    with mlflow.start_run(description="what the user wrote") as run:
        history = model.fit(
            x[:200], y[:200], epochs=epochs, validation_data=(x[200:], y[200:]), verbose=0
        ).history
    return run.info.run_id, history


def _tags(run_id: str) -> dict[str, str]:
    tags: dict[str, str] = mlflow.get_run(run_id).data.tags
    return tags


def _last_run() -> str:
    return str(mlflow.search_runs(output_format="list")[0].info.run_id)


@pytest.mark.slow
def test_a_healthy_training_is_clean_now_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    run_id, _ = _fit(_model())
    assert _tags(run_id)["tfmon.problems"] == "none"
    note = _tags(run_id)["mlflow.note.content"]
    assert note.startswith("what the user wrote\n") and "No problem was found in this training." in note
    run = mlflow_tfmon.load_run(run_id)
    assert run.problems == [] == diagnose(run)
    capsys.readouterr()
    assert main(["diagnose", run_id]) == 0
    said = capsys.readouterr().out
    assert said == f"none: 84 steps and 12 epochs were searched for {len(detectors())} kinds of problems\n"


@pytest.mark.thorough
def test_what_only_deep_rows_tell_is_found_again() -> None:
    run_id, _ = _fit(_model(rate=1e-7), epochs=12)
    run = mlflow_tfmon.load_run(run_id)
    assert (
        [one.kind for one in run.problems] == ["learning_rate_too_low"] == [one.kind for one in diagnose(run)]
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer", "regression"])
def test_an_ordinary_net_that_learns_is_clean(name: str) -> None:
    job = next(one for one in own_jobs("seen", seeds=1) if one.name == name)
    keras.utils.set_random_seed(job.seed)
    model, arguments = job.make()
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, report=False)
    with mlflow.start_run() as run:
        history = model.fit(**arguments, verbose=0).history
    assert job.went_well(history, arguments)
    assert _tags(run.info.run_id)["tfmon.problems"] == "none"


@pytest.mark.parametrize("built", thorough([True, False], [False]))
def test_a_problem_is_in_the_run_and_is_found_again(
    built: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A model that is built by its first batch has no weights to look at before: its initializers tell."""
    run_id, _ = _fit(_model(kernel="zeros", built=built), epochs=6)
    lines = [
        one.message for one in caplog.records if re.match(r"mlflow_tfmon: step \d+: poor_init", one.message)
    ]
    assert len(lines) == 1, "said once, when it is first seen"
    assert "\n" not in lines[0]
    summary = next(
        one.message for one in caplog.records if "poor_initialization" in one.message and "\n" in one.message
    )
    assert len(summary.splitlines()) <= 24, "fits on a screen"
    run = mlflow_tfmon.load_run(run_id)
    problem = next(one for one in run.problems if one.kind == "poor_initialization")
    assert problem.severity == "critical"
    assert problem.first_step <= 1
    assert len(problem.variables) == 2
    assert _tags(run_id)["tfmon.problems"].split(",") == [one.kind for one in run.problems]
    note = _tags(run_id)["mlflow.note.content"]
    assert note.startswith("what the user wrote")
    assert "poor\\_initialization" in note or "poor_initialization" in note
    told = mlflow.artifacts.load_text(f"runs:/{run_id}/tfmon/diagnosis.md").splitlines()
    assert told[0] == "# Diagnosis" and told[2] in note and "poor\\_initialization" in told[2]
    assert f"- What to do: {problem.advice.replace('_', chr(92) + '_')}" in told
    trained = told[told.index("## What was trained") :]
    assert f"({run_id}), " in trained[2] and trained.index("## More") > trained.index(
        "## poor\\_initialization"
    )
    batch = mlflow.get_run(run_id).data.params["batch_size"]
    assert any(
        one.startswith("- Settings: optimizer adam") and f"batch size {batch}" in one for one in trained
    )
    came_to = next(one for one in trained if one.startswith("- Came to: "))
    assert f"step {len(run.steps)} of {len(run.steps)}, 6 epochs done" in came_to
    last = mlflow.get_run(run_id).data.metrics["val_loss"]
    assert any(
        one.startswith("- Last finite metrics: ") and f"val\\_loss {last:.4g}" in one for one in trained
    )
    assert {one.kind for one in diagnose(run)} == {one.kind for one in run.problems}
    capsys.readouterr()
    assert main(["diagnose", run_id, "--since", str(len(run.steps) + 1)]) == 0
    assert capsys.readouterr().out.endswith(f"seen from step {len(run.steps) + 1:,} on\n")
    assert main(["diagnose", run_id, "--since", "1"]) == 0 and "poor_init" in capsys.readouterr().out
    assert main(["diagnose", run_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] in _tags(run_id)["tfmon.problems"]
    assert main(["diagnose", "no-such-run"]) == 2
    fails = {"critical": 1, "warning": 1, "poor_initialization, overfitting": 1, "retracing": 0}
    assert {what: main(["diagnose", run_id, "--fail-on", what]) for what in fails} == fails
    capsys.readouterr()
    assert main(["diagnose", run_id, "--fail-on", "critcal"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "'critcal' is no severity" in err and "dead_relu" in err


@pytest.mark.thorough
def test_a_run_that_has_not_arrived_is_judged_by_what_has_and_this_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_id, _ = _fit(_model(kernel="zeros"), epochs=6)
    whole = {one.kind for one in diagnose(mlflow_tfmon.load_run(run_id))}
    for path in tmp_path.rglob("artifacts/**/*.parquet"):
        if path.name.startswith(("activations-", "deep-")):
            path.unlink()
    mlflow.MlflowClient().set_tag(run_id, "tfmon.delivery", "under way")
    capsys.readouterr()
    assert main(["diagnose", run_id, "--json"]) == 0
    told = capsys.readouterr()
    assert whole - {one["kind"] for one in json.loads(told.out)} == {"dead_relu"}
    assert "Not everything recorded for this run has arrived" in told.err


@pytest.mark.thorough
def test_a_training_that_diverges_is_rescued() -> None:
    run_id, history = _fit(_model(rate=100.0, sgd=True), epochs=40, on_problem="rescue")
    assert np.mean(history["val_accuracy"][-5:]) > 0.8
    assert "learning rate" in _tags(run_id)["tfmon.rescues"]
    assert "tfmon.stopped" not in _tags(run_id)


@pytest.mark.slow
@pytest.mark.parametrize("found_after", [4, 6])
def test_a_rescue_begins_before_the_cause_and_its_rate_is_that_which_was_measured(
    found_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is a hundred thousand times too high from the fourth epoch on; until then little was learned.

    The loss of such steps is chaotic: on some machines the problem is certain only epochs after it began.
    """
    sure = actions.sure
    monkeypatch.setattr(
        actions, "sure", lambda monitor: sure(monitor) if monitor.last_epoch >= found_after - 1 else []
    )

    class Spoiled(keras.callbacks.Callback):
        weights: list[list[np.ndarray]] = []  # noqa: RUF012

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.weights.append(self.model.get_weights())
            if epoch == 3:
                self.model.optimizer.learning_rate = 1000.0

    x, y = _data()
    model, spoiled = _model(sgd=True, rate=0.01), Spoiled()
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, on_problem="rescue", deep_every=4)
    with mlflow.start_run() as run:
        history = model.fit(x, y, epochs=12, verbose=0, callbacks=[spoiled]).history
    rescue, *_ = _tags(run.info.run_id)["tfmon.rescues"].split("; ")
    found = re.search(
        r"back to epoch (\d+), learning rate 1e\+03 -> (\S+), gradients clipped to a norm of (\S+)$", rescue
    )
    assert found is not None, rescue
    assert found[1] == "2"
    begun = [[one.tobytes() for one in weights] for weights in spoiled.weights]
    assert begun[3] in begun[4:], "an epoch begins from what the one before the cause left"
    # A step of the usual size, rather than a tenth of one that rewrites the weights.
    assert float(found[2]) < 10.0
    steps = mlflow_tfmon.load_run(run.info.run_id).steps
    usual = steps["grad_norm"].iloc[:24].median()
    assert float(found[3]) == pytest.approx(2 * usual, rel=0.5)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.slow
def test_a_training_that_diverges_is_stopped_with_the_best_weights() -> None:
    x, y = _data()
    model = _model(sgd=True, rate=0.1)
    blow_up = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 if epoch < 8 else 1e6)
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, on_problem="stop", monitor="loss")
    with mlflow.start_run() as run:
        history = model.fit(x, y, epochs=40, verbose=0, callbacks=[blow_up]).history
    assert 8 < len(history["loss"]) < 40
    assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(min(history["loss"]), rel=0.2)
    assert "restored the weights of the best epoch" in _tags(run.info.run_id)["tfmon.stopped"]


def _loop(monitor: mlflow_tfmon.Monitor, model: keras.Model, bad_from: int, epochs: int) -> list[float]:
    """A loop that asks whether to stop, with a learning rate that becomes far too high; returns its losses."""
    x, y = _data()
    optimizer, loss_of = keras.optimizers.SGD(0.1), keras.losses.BinaryCrossentropy()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y[:, None], model(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return loss

    losses = []
    for epoch in range(epochs):
        optimizer.learning_rate.assign(0.1 if epoch < bad_from else 1e6)
        for _ in range(8):
            step()
        losses.append(float(loss_of(y[:, None], model(x))))
        monitor.log_epoch(epoch, {"loss": losses[-1]})
        if monitor.should_stop:
            break
        time.sleep(0.2)  # a loop that takes a while: it is judged once a second
    return losses


@pytest.mark.slow
def test_a_loop_that_asks_is_stopped_with_the_best_weights() -> None:
    model = _model(sgd=True)
    with mlflow_tfmon.Monitor(model, monitor="loss", on_problem="stop", log_models=False) as monitor:
        losses = _loop(monitor, model, bad_from=8, epochs=80)
    assert 8 < len(losses) < 80
    x, y = _data()
    assert float(keras.losses.BinaryCrossentropy()(y[:, None], model(x))) == pytest.approx(
        min(losses), rel=1e-3
    )
    assert "restored the weights of the best epoch" in _tags(_last_run())["tfmon.stopped"]


@pytest.mark.slow
def test_a_healthy_loop_is_not_stopped() -> None:
    model = _model(sgd=True)
    with mlflow_tfmon.Monitor(model, monitor="loss", on_problem="stop", log_models=False) as monitor:
        assert len(_loop(monitor, model, bad_from=99, epochs=10)) == 10
    assert "tfmon.stopped" not in _tags(_last_run())


def test_what_a_loop_lacks_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with mlflow_tfmon.Monitor(_model(), on_problem="rescue", log_models=False) as monitor:
            assert not monitor.should_stop
    assert sum("acts only in fit" in one.message for one in caplog.records) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("on_problem", ["stop", "rescue"])
def test_a_healthy_training_is_left_alone(on_problem: str) -> None:
    x, y = _data()
    plain = _model()
    plain.fit(x[:200], y[:200], epochs=6, validation_data=(x[200:], y[200:]), verbose=0)
    watched = _model()
    run_id, history = _fit(watched, epochs=6, on_problem=on_problem)
    assert len(history["loss"]) == 6
    assert not {"tfmon.stopped", "tfmon.rescues"} & _tags(run_id).keys()
    for one, other in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_functions_and_detectors_of_the_user(caplog: pytest.LogCaptureFixture) -> None:
    told: list[mlflow_tfmon.Problem] = []

    def tell(problem: mlflow_tfmon.Problem) -> None:
        told.append(problem)
        raise RuntimeError("the user's")

    class Mine(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> Iterator[mlflow_tfmon.Problem]:
            yield mlflow_tfmon.Problem("mine", "warning", history.step, (), "Seen.", "Do.")

    class Broken(mlflow_tfmon.Detector):
        def detect(self, history: Any) -> list[mlflow_tfmon.Problem]:
            raise ValueError("broken")

    try:
        run_id, _ = _fit(_model(), epochs=2, on_problem=tell)
    finally:
        plugins._defined.clear()
    assert [problem.kind for problem in told] == ["mine"]
    assert _tags(run_id)["tfmon.problems"] == "mine"


class _Listener(http.server.BaseHTTPRequestHandler):
    answers: list[int]
    bodies: list[Any]

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answers.pop(0))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_an_alert_is_posted_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0, 0.0, 0.0))
    handler = type("Handler", (_Listener,), {"answers": [500, 200], "bodies": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        run_id, _ = _fit(
            _model(kernel="zeros"), epochs=1, alert_url=f"http://127.0.0.1:{server.server_port}/x"
        )
        for waiting in threading.enumerate():
            if waiting.name == "mlflow_tfmon-alert":
                waiting.join()
        server.shutdown()
        thread.join()
    assert [body["problem"]["kind"] for body in handler.bodies] == ["poor_initialization"] * 2
    assert handler.bodies[0]["run_id"] == run_id
    assert run_id in handler.bodies[0]["link"]


def test_the_end_of_a_training_is_told(store: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = type("Handler", (_Listener,), {"answers": [200] * 9, "bodies": []})
    run_ids = [mlflow.MlflowClient(store).create_run("0").info.run_id for _ in range(4)]
    ended = (
        RunEnded(BEGUN + 3600, "FINISHED", True),
        RunEnded(BEGUN + 30, "FINISHED", True),  # whoever waits for half a minute sees it
        RunEnded(BEGUN + 30, "FAILED", True, "ValueError: no"),
        None,
    )
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for run_id, end in zip(run_ids, ended, strict=True):
            begun = [started(store, run_id, run_name="digits"), layout(400), *blocks(values(50))]
            folder = write(home, *begun, *([end] if end else []))
            url = f"http://127.0.0.1:{server.server_port}/x"
            for _ in range(2):  # the second finds nothing to do
                one = Deliverer(folder, alert_url=url)
                while not one.done:
                    one.advance(trainer_gone=True, hurry=True)
            alerts.wait()
        server.shutdown()
        thread.join()
    told = [(body["event"], body["run_id"]) for body in handler.bodies]
    assert told == [("finished", run_ids[0]), ("failed", run_ids[2]), ("died", run_ids[3])]
    first, failed, died = handler.bodies
    assert (
        first["link"].endswith(f"/runs/{run_ids[0]}?workflowType=machine_learning")
        and first["seconds"] == 3600
    )
    assert first["progress"].startswith("step 50 of 400, ")
    progress = [mlflow.MlflowClient(store).get_run(one).data.tags["tfmon.progress"] for one in run_ids]
    assert not [one for one in [*progress, first["progress"]] if " left" in one]  # of what is over
    assert failed["reason"] == "ValueError: no"
    assert "killed or crashed" in died["reason"]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://hooks.slack.com/services/T0/B0/x", ["text"]),
        ("https://discord.com/api/webhooks/1/x", ["content"]),
        ("https://me.webhook.office.com/webhookb2/x", ["attachments", 0, "content", "body", 0, "text"]),
        (
            "https://prod-1.westeurope.logic.azure.com:443/workflows/x",
            ["attachments", 0, "content", "body", 0, "text"],
        ),
    ],
)
def test_a_chat_gets_a_message_in_its_format(url: str, where: list[Any]) -> None:
    text = "digits: critical: " + "x" * 1900
    found: Any = json.loads(json.dumps(alerts.message(url, text)))
    for key in where:
        found = found[key]
    assert found == text and len(str(alerts.message(url, "y" * 9000))) > 1900


def test_a_chat_calls_nobody_and_links_to_the_run() -> None:
    link = "https://mlflow.example.org/#/experiments/0/runs/1?workflowType=machine_learning"
    text = f"<!channel> & @everyone: finished\nstep 50\n{link}"
    slack = alerts.message("https://hooks.slack.com/services/T0/B0/x", text)
    assert slack == {"text": f"&lt;!channel&gt; &amp; @everyone: finished\nstep 50\n{link}"}
    discord = alerts.message("https://discord.com/api/webhooks/1/x", "y" * 9000 + f"\n{link}")
    assert discord is not None and discord["allowed_mentions"] == {"parse": []}
    assert len(discord["content"]) == 2000 and discord["content"].endswith(f"y…\n{link}")
    teams: Any = alerts.message("https://me.webhook.office.com/webhookb2/x", text)
    lines = [one["text"] for one in teams["attachments"][0]["content"]["body"]]
    assert lines == [*text.split("\n")[:2], f"[{link}]({link})"]


@pytest.mark.parametrize(
    "url", ["https://example.org/hooks.slack.com", "https://hooks.slack.com.evil.org/services/x"]
)
def test_any_other_address_gets_json(url: str) -> None:
    assert alerts.message(url, "text") is None


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [("ann:s3cret", "ann:s3cret"), ("ann:s%2F3cret", "ann:s/3cret"), ("ann:s/3#c?ret", "ann:s/3#c?ret"),
     ("T0KEN", "T0KEN:"), ("änn:ü", "änn:ü")],
)  # fmt: skip
def test_an_alert_has_the_credentials_of_its_address_as_a_header(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, userinfo: str, pair: str
) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0,))
    seen: list[tuple[str, str | None]] = []

    class Handler(_Listener):
        answers, bodies = [200, 403], []

        def do_POST(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            super().do_POST()

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://{userinfo}@127.0.0.1:{server.server_port}/services/T00/höök here?token=QQQ"
        Settings.make(alert_url=url)
        told = [alerts.post(url, {"a": 1}), alerts.post(url, {"a": 1})]
        server.shutdown()
        thread.join()
    assert told == [True, False]
    header = "Basic " + base64.b64encode(pair.encode()).decode()
    assert seen == [("/services/T00/h%C3%B6%C3%B6k%20here?token=QQQ", header)] * 2
    (line,) = [one.message for one in caplog.records if "did not accept an alert" in one.message]
    assert "it answers 403" in line
    assert not any(part in line for part in ("s3cret", "3cret", "T0KEN", "QQQ", "T00", header, "ü"))


@pytest.mark.parametrize("url", ["httpx://ann:s3cret@h/x", "https//hooks.example.org/services/s3cret"])
def test_an_address_that_is_none_is_not_shown(url: str) -> None:
    with pytest.raises(mlflow_tfmon.SettingError, match="alert_url") as raised:
        Settings.make(alert_url=url)
    assert "s3cret" not in str(raised.value)


def test_an_alert_that_nobody_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(alerts, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, and says nothing
        port = listener.getsockname()[1]
        for _ in range(2):
            assert not alerts.post(f"http://user:secret@127.0.0.1:{port}/token", {"value": float("nan")})
    said = [one.message for one in caplog.records if "did not accept an alert" in one.message]
    assert len(said) == 1
    assert "secret" not in said[0]
    assert "token" not in said[0]


def test_a_package_offers_detectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[mlflow_tfmon.detectors]\ntheirs = theirs_of_a_test:Theirs\ngone = not_there_at_all:Gone\n"
    )
    (tmp_path / "theirs_of_a_test.py").write_text(
        "import mlflow_tfmon\n"
        "class Theirs(mlflow_tfmon.Detector):\n"
        "    def detect(self, history):\n"
        "        yield mlflow_tfmon.Problem('theirs', 'warning', 1, (), 'Seen.', 'Do.')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MLFLOW_TFMON_RAISE_ERRORS", raising=False)
    try:
        found = [problem.kind for detect in plugins.others() for problem in detect(History())]
    finally:
        plugins._defined.clear()
    assert found == ["theirs"]
    assert sum("loading the detector gone failed" in one.message for one in caplog.records) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("on_problem", "panic"), ("on_problem", 3), ("alert_url", "ftp://x"), ("alert_url", 1)],
)
def test_a_bad_setting_is_refused(name: str, value: Any) -> None:
    with pytest.raises(mlflow_tfmon.SettingError, match=name):
        mlflow_tfmon.autolog(**{name: value})


@pytest.mark.thorough
def test_a_killed_training_has_its_problems() -> None:
    code = (
        "import os, signal, keras, mlflow, mlflow_tfmon\n"
        "from tests.problems.test_problems import _data, _model\n"
        "class Kill(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        from mlflow_tfmon.watching import pipeline\n"
        "        if any(one.watch.problems for one in pipeline._open.values()):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        f"mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})\n"
        "mlflow_tfmon.autolog(log_models=False)\n"
        "_model(kernel='zeros').fit(*_data(), epochs=2000, verbose=0, callbacks=[Kill()])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    run = mlflow.search_runs(output_format="list")[0]
    until = time.monotonic() + 60
    while (
        "poor_initialization" not in _tags(run.info.run_id).get("tfmon.problems", "")
        and time.monotonic() < until
    ):
        time.sleep(0.2)
    assert "poor_initialization" in _tags(run.info.run_id)["tfmon.problems"]


@pytest.mark.slow
def test_a_fit_that_goes_on_with_a_trained_model_is_clean() -> None:
    """Its first losses are low, and what it could have learned before is not known."""
    x, _ = _data()
    targets = x[:, :1] * 2 + 0.5 * np.random.default_rng(1).normal(size=(len(x), 1)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    model.fit(x, targets, epochs=60, verbose=0)
    mlflow_tfmon.autolog(log_models=False, delivery_wait=120.0)
    feed = tf.data.Dataset.from_tensor_slices((x, targets)).batch(32)
    with mlflow.start_run() as run:
        model.fit(feed, epochs=30, verbose=0)
    assert _tags(run.info.run_id)["tfmon.problems"] == "none"


@pytest.mark.thorough
@pytest.mark.parametrize(("momentum", "kinds"), [(0.99, {"normalization_mismatch"}), (0.8, set())])
def test_averages_of_batch_normalization_that_lag_are_no_overfitting(
    momentum: float, kinds: set[str]
) -> None:
    """56 steps in all: training data in inference mode are as bad as the validation data."""
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 1000)
    waves = np.where(y, 1.0, 1.6)[:, None] * np.linspace(0, 12, 60) + random.uniform(0, 6, (1000, 1))
    x = (40 + 12 * np.sin(waves) + 2 * random.normal(size=(1000, 60)))[..., None].astype("float32")
    model = keras.Sequential([keras.Input((60, 1))])
    for filters, width in ((16, 7), (32, 5), (32, 3)):
        model.add(keras.layers.Conv1D(filters, width, padding="same"))
        model.add(keras.layers.BatchNormalization(momentum=momentum))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling1D())
    model.add(keras.layers.Dense(2, "softmax"))
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, delivery_wait=120.0)
    with mlflow.start_run() as run:
        model.fit(x[:800], y[:800], validation_data=(x[800:], y[800:]), epochs=14, batch_size=256, verbose=0)
    assert {one.kind for one in mlflow_tfmon.load_run(run.info.run_id).problems} == kinds
    assert (model.evaluate(x[:800], y[:800], verbose=0)[1] < 0.7) == bool(kinds)
