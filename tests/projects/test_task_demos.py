"""Tests of the demos of tasks, tools and several devices: their runs match projects/README.md."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from mlflow_tfmon import load_run
from tests.projects.conftest import Demo

demos = pytest.mark.demos
RunDemo = Callable[..., Demo]


@pytest.fixture
def at_store(monkeypatch: pytest.MonkeyPatch) -> Callable[[MlflowClient], None]:
    """MLflow's module at a demo's store, for what only it can do: loading models."""
    before = mlflow.get_tracking_uri()

    def at(client: MlflowClient) -> None:
        mlflow.set_tracking_uri(client.tracking_uri)

    yield at
    mlflow.set_tracking_uri(before)


def unseen_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits that the demos validate with."""
    digits = load_digits()
    pixels = (digits.images[..., None] / 16).astype("float32")
    _, x, _, y = train_test_split(
        pixels, digits.target, test_size=0.2, stratify=digits.target, random_state=1
    )
    return x, y


def problems(run: mlflow.entities.Run) -> set[str]:
    return set(run.data.tags["tfmon.problems"].split(","))


@demos
def test_gradient_monitor(run_demo: RunDemo) -> None:
    demo = run_demo("gradient_monitor")
    assert problems(demo.children["healthy"]) == {"none"}
    assert "vanishing_gradient" in problems(demo.children["vanishing"])
    assert {"exploding_gradient", "learning_rate_too_high"} <= problems(demo.children["exploding"])
    numbers = demo.parent.data.metrics
    assert numbers["first_to_last_vanishing"] < 1e-3 < 0.1 < numbers["first_to_last_healthy"]
    assert numbers["largest_norm_exploding"] > 1e3 > numbers["largest_norm_healthy"]
    assert numbers["val_accuracy_healthy"] > 0.7
    assert max(numbers["val_accuracy_vanishing"], numbers["val_accuracy_exploding"]) < 0.2
    assert {"gradient_monitor.png", "tfmon"} <= demo.artifacts(demo.parent)
    assert "vanishing_gradient" in demo.parent.data.tags["problems.vanishing"]


@demos
def test_monitored_training(run_demo: RunDemo, at_store: Callable[..., None]) -> None:
    demo = run_demo("monitored_training")
    assert not demo.children
    assert {"tfmon/report.html", "tfmon/problems.json"} <= demo.artifacts(demo.parent, "tfmon")
    assert "monitored_training.png" in demo.artifacts(demo.parent)
    at_store(demo.client)
    page = Path(
        mlflow.artifacts.download_artifacts(run_id=demo.parent.info.run_id, artifact_path="tfmon/report.html")
    ).read_text("utf-8")
    for panel in ("Loss", "Accuracy", "Learning rate", "Gradient norm", "Overfitting gap"):
        assert f'"{panel}' in page, panel
    # epoch_metrics' validation loss, by scikit-learn, of the best model as it was kept
    x, y = unseen_digits()
    best = mlflow.tensorflow.load_model(f"models:/{demo.parent.data.tags['tfmon.best_model']}")
    logits = best.predict(x, verbose=0).astype(float)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    history = demo.history(demo.parent, "val_loss")
    assert min(history) == pytest.approx(log_loss(y, chances), rel=1e-4)
    assert demo.parent.data.metrics["best/val_loss"] == min(history)
    # The labels drawn at random are learned by heart: that is found, said, and in the report.
    losses = demo.history(demo.parent, "loss")
    assert demo.parent.data.metrics["final_gap"] == pytest.approx(history[-1] - losses[-1])
    assert history[-1] > 1.1 * min(history) and losses[-1] < 0.1 < losses[0]
    assert problems(demo.parent) == {"overfitting"}
    assert "overfitting: " in demo.printed and "overfitting" in page
    steps = load_run(demo.parent.info.run_id, demo.client.tracking_uri).steps
    cosine = 0.5 * 3e-3 * (1 + np.cos(np.pi * np.arange(800) / 800))
    np.testing.assert_allclose(steps.learning_rate, cosine, rtol=1e-4, atol=1e-9)
    assert steps.grad_norm_clipped.max() <= 1 + 1e-5 < steps.grad_norm.max()


@demos
def test_gan(run_demo: RunDemo) -> None:
    demo = run_demo("gan")
    steps = 4 * (1437 // 64)
    recorded = load_run(demo.parent.info.run_id, demo.client.tracking_uri)
    for stream in ("generator", "discriminator"):
        assert recorded.steps[f"{stream}.loss"].notna().sum() == steps
        shown = [
            point.step
            for point in demo.client.get_metric_history(demo.parent.info.run_id, f"{stream}.batch/loss")
        ]
        assert shown[0] == 1 and shown[-1] == steps
        assert any(name.startswith(f"{stream}.") for name in recorded.layers.variable.unique())
    told = demo.history(demo.parent, "told_apart")
    assert len(told) == 4 and all(0.4 < value <= 1 for value in told)
    assert demo.parent.data.metrics["told_apart_first"] == told[0]


@demos
def test_registry(run_demo: RunDemo, at_store: Callable[..., None]) -> None:
    demo = run_demo("registry")
    name, client = "tfmon-demo-digits", demo.client
    accuracies = {
        child.info.run_id: max(demo.history(child, "val_accuracy")) for child in demo.children.values()
    }
    best_run = max(accuracies, key=lambda run_id: accuracies[run_id])
    assert {version.run_id for version in client.search_model_versions(f"name='{name}'")} == set(accuracies)
    for alias in ("best", "champion"):
        assert client.get_model_version_by_alias(name, alias).run_id == best_run
    assert demo.parent.data.params["champion_run"] == best_run
    assert demo.parent.data.metrics["served_difference"] < 1e-4
    at_store(client)
    x, y = unseen_digits()
    found = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(x).argmax(axis=1)
    assert np.mean(found == y) == pytest.approx(accuracies[best_run], abs=1e-6)
    assert str(found[:5]) in demo.printed  # what the server said


@pytest.mark.parametrize(
    ("demo", "option", "value"),
    [
        ("registry", "--name", "a/b"),
        ("resume", "--epochs", "1"),  # nothing would have been kept when it is killed
    ],
)
def test_what_a_demo_cannot_do_is_said_in_one_line(
    demo: str, option: str, value: str, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr("sys.argv", [demo, f"{option}={value}"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"projects.{demo}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and option in line and f"'{value}'" in line


@demos
def test_hyperparameters(run_demo: RunDemo) -> None:
    demo = run_demo("hyperparameters")
    trials = [demo.children[f"trial {number}"] for number in range(3)]
    assert trials[1].data.params["learning_rate"] == "1000.0"
    assert "tfmon.stopped" in trials[1].data.tags and "nan_or_inf" in problems(trials[1])
    # by the steps: a loss that is not finite is not in its series
    steps = [len(load_run(trial.info.run_id, demo.client.tracking_uri).steps) for trial in trials]
    epochs = [number // 45 for number in steps]
    assert steps == [45 * number for number in epochs]
    assert epochs[0] == 4 > epochs[1]
    numbers = demo.parent.data.metrics
    assert numbers["epochs_saved"] == sum(4 - number for number in epochs)
    assert numbers["trials_ended_early"] == sum(number < 4 for number in epochs)
    whole = [trial for trial, number in zip(trials, epochs, strict=True) if number == 4]
    assert numbers["best_val_accuracy"] == pytest.approx(
        max(max(demo.history(trial, "val_accuracy")) for trial in whole), abs=1e-6
    )
    assert numbers["best_val_accuracy"] > 0.8
    assert demo.parent.data.params["best_learning_rate"] == "0.1"
    table = mlflow.artifacts.load_dict(f"{demo.parent.info.artifact_uri}/comparison.json")
    columns = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
    assert list(columns["run_id"]) == [trial.info.run_id for trial in trials]
    assert list(columns["epochs"]) == epochs
    assert [set(kinds.split(",")) for kinds in columns["problems"]] == [problems(trial) for trial in trials]
    page = Path(demo.client.download_artifacts(demo.parent.info.run_id, "tfmon/comparison.html"))
    assert all(f"trial {number}" in page.read_text("utf-8") for number in range(3))


@demos
def test_translation(run_demo: RunDemo, at_store: Callable[..., None]) -> None:
    demo = run_demo("translation")
    scores = demo.history(demo.parent, "val_bleu")
    losses = demo.history(demo.parent, "batch/loss")
    assert len(scores) == 5 and scores[0] < 50 < scores[-1] and losses[-1] < losses[0] / 2
    assert demo.parent.data.metrics["best/val_bleu"] == max(scores)
    assert demo.artifacts(demo.parent) >= {"translation.png", "translations.txt"}
    at_store(demo.client)
    from projects import translation

    numbers = np.random.default_rng(1).permutation(np.arange(1, 10_000))
    source = translation.Words([translation.in_english(number) for number in numbers])
    target = translation.Words([translation.in_german(number) for number in numbers])
    model = mlflow.tensorflow.load_model(f"models:/{demo.parent.data.tags['mlflow.tfmon.last_model']}")
    shown = []
    for number in numbers[-300:][:5]:  # word by word, and one after the other
        sentence, said = source.encode([translation.in_english(number)]), [translation.START]
        while len(said) < translation.LENGTH + 1 and said[-1] != translation.END:
            padded = np.array([said + [translation.PAD] * (translation.LENGTH - len(said))])
            said.append(int(model.predict([sentence, padded], verbose=0)[0, len(said) - 1].argmax()))
        shown.append(" ".join(target.known[word] for word in said if word > translation.END))
    text = mlflow.artifacts.load_text(f"runs:/{demo.parent.info.run_id}/translations.txt")
    assert text.split("\n") == shown and all(shown)


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (1, "one", "eins"),
        (16, "sixteen", "sechzehn"),
        (21, "twenty one", "ein und zwanzig"),
        (30, "thirty", "dreißig"),
        (101, "one hundred one", "ein hundert eins"),
        (1000, "one thousand", "ein tausend"),
        (4321, "four thousand three hundred twenty one", "vier tausend drei hundert ein und zwanzig"),
        (9999, "nine thousand nine hundred ninety nine", "neun tausend neun hundert neun und neunzig"),
    ],
)
def test_numbers_in_words(number: int, english: str, german: str) -> None:
    from projects import translation

    assert (translation.in_english(number), translation.in_german(number)) == (english, german)


@demos
def test_object_detection(run_demo: RunDemo) -> None:
    demo = run_demo("object_detection")
    history = demo.history(demo.parent, "val_map")
    assert len(history) == 2 and all(0 <= value <= 1 for value in history)
    halves = demo.history(demo.parent, "val_map50")
    assert all(at_half >= average for average, at_half in zip(history, halves, strict=True))
    assert demo.parent.data.metrics["best/val_map"] == max(history)
    assert demo.parent.data.metrics["best_map50"] == halves[int(np.argmax(history))]
    losses = demo.history(demo.parent, "batch/loss")
    assert losses[-1] < losses[0] / 2
    assert "object_detection.png" in demo.artifacts(demo.parent)


def average_precision(true: np.ndarray, found: np.ndarray, overlap: float) -> float:
    """By hand: of one class, all canvases; precision at 101 recalls, as COCO defines it."""
    taken: set[int] = set()
    hits = []
    for canvas, x, y, w, h, *_ in found[np.argsort(-found[:, 5], kind="stable")]:
        best, at = overlap, -1
        for number, (where, a, b, c, d) in enumerate(true):
            width, height = min(x + w, a + c) - max(x, a), min(y + h, b + d) - max(y, b)
            shared = max(width, 0) * max(height, 0)
            if where == canvas and number not in taken and shared / (w * h + c * d - shared) >= best:
                best, at = shared / (w * h + c * d - shared), number
        taken.add(at)
        hits.append(at >= 0)
    right = np.cumsum(hits)
    recall, precision = right / len(true), right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([precision[p] if p < len(precision) else 0.0 for p in places]))


def test_the_metric_of_object_detection() -> None:
    """Against the definition, on boxes that are shifted at random, with scores at random and some missing."""
    from projects import object_detection as demo

    random = np.random.default_rng(1)
    digits, labels = random.uniform(0.5, 1, (10, 8, 8, 1)), np.arange(10) % 2
    _, boxes = demo.canvases(digits, labels, 12, seed=3)
    for one, other in ((a, b) for rows in boxes for a, b in pairwise(rows)):
        apart = np.maximum(one[:2] - other[:2] - other[2:4], other[:2] - one[:2] - one[2:4])
        assert apart.max() >= 0  # none covers another
    true = np.array([[canvas, *row] for canvas, rows in enumerate(boxes) for row in rows], float)
    found = np.column_stack([true[:, :5], random.uniform(size=len(true)), true[:, 5]])[: -len(true) // 4]
    found[:, 1:3] += random.uniform(-2, 2, (len(found), 2))
    expected = {
        overlap: np.mean(
            [
                average_precision(true[true[:, 5] == label, :5], found[found[:, 6] == label], overlap)
                for label in (0, 1)
            ]
        )
        for overlap in np.arange(0.5, 0.99, 0.05).round(2)
    }
    measured = demo.average_precision(demo.ground_truth(boxes), found)
    assert measured["val_map50"] == pytest.approx(expected[0.5], abs=1e-6)
    assert measured["val_map"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert 0.1 < measured["val_map"] < measured["val_map50"] < 1


@demos
def test_distributed(run_demo: RunDemo) -> None:
    demo = run_demo("distributed")
    assert set(demo.children) == {"one device", "two devices", "two workers"}
    recorded = {
        name: load_run(child.info.run_id, demo.client.tracking_uri) for name, child in demo.children.items()
    }
    losses = {name: run.steps.loss.to_numpy() for name, run in recorded.items()}
    for name in ("two devices", "two workers"):
        assert len(losses[name]) == len(losses["one device"]) == 22
        np.testing.assert_allclose(losses[name], losses["one device"], rtol=1e-3)
        apart = demo.parent.data.metrics[f"loss_difference_{name.replace(' ', '_')}"]
        assert apart == pytest.approx(np.abs(losses[name] / losses["one device"] - 1).max())
    assert (recorded["two workers"].steps.examples == 64).all()  # of both workers
    for worker in (0, 1):
        assert recorded["two workers"].steps[f"worker_{worker}/step_time_ms"].iloc[2:].gt(0).all()


@demos
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'mlflow-tfmon[ray]'")
def test_ray(run_demo: RunDemo) -> None:
    demo = run_demo("ray")
    trials = {f"learning rate {rate:g}": rate for rate in (0.01, 0.1, 1.0)}
    assert demo.children.keys() == {"two workers", *trials}
    workers = load_run(demo.children["two workers"].info.run_id, demo.client.tracking_uri).steps
    assert len(workers) == 2 * (1437 // 64) and (workers.examples == 64).all()  # of both workers
    for worker in (0, 1):
        assert workers[f"worker_{worker}/step_time_ms"].iloc[2:].gt(0).all()
    best = []
    for name, rate in trials.items():
        steps = load_run(demo.children[name].info.run_id, demo.client.tracking_uri).steps
        assert steps.learning_rate.eq(np.float32(rate)).all()
        best.append(max(demo.history(demo.children[name], "val_accuracy")))
    assert demo.parent.data.metrics["best_val_accuracy"] == pytest.approx(max(best))
    assert {"comparison.json", "ray.png"} <= demo.artifacts(demo.parent)


@demos
def test_resume(run_demo: RunDemo, at_store: Callable[..., None]) -> None:
    demo = run_demo("resume")
    whole, resumed = (demo.children[name] for name in ("whole", "killed and resumed"))
    assert demo.parent.data.metrics["weights_difference"] == 0
    assert "tfmon.resumed" in resumed.data.tags and "tfmon.resumed" not in whole.data.tags
    recorded = [load_run(run.info.run_id, demo.client.tracking_uri) for run in (whole, resumed)]
    for run in recorded:
        assert list(run.steps.index) == list(range(1, 4 * 45 + 1))
        assert list(run.epochs.index) == list(range(4))
    np.testing.assert_array_equal(recorded[0].steps.loss, recorded[1].steps.loss)
    at_store(demo.client)
    x, y = unseen_digits()
    found = mlflow.pyfunc.load_model(f"models:/{resumed.data.tags['mlflow.tfmon.model']}").predict(x)
    assert np.mean(found.argmax(axis=1) == y) == pytest.approx(
        demo.history(whole, "val_accuracy")[-1], abs=1e-6
    )
