"""Tests with malicious checkpoints, which come from a store: faults are reported, and have no effect."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.checkpoints import reading
from mlflow_tfmon.checkpoints.state import Callbacks, State, assign, chance
from mlflow_tfmon.errors import SettingError

pytestmark = pytest.mark.usefixtures("fresh")
_NOT = object()
X, Y = np.ones((16, 4), "float32"), np.ones((16, 1), "float32")


class Interrupted(Exception):
    pass


class Counter(keras.callbacks.Callback):
    """A user's own: counts, has an option, and writes to a file."""

    kind = 3

    def __init__(self, every: int = 2) -> None:
        super().__init__()
        self.every, self.count, self.best, self.path, self.on = every, 0, None, "mine.txt", True
        self.means: Any = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.count += 1
        if self.count == 2:
            raise Interrupted


def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="out")], name="net")
    net.compile(keras.optimizers.Adam(0.01), "mse")
    return net


def told(*callbacks: tuple[str, dict[str, Any]], **arrays: list[np.ndarray]) -> State:
    about = {"callbacks": [{"class": name, "numbers": numbers} for name, numbers in callbacks]}
    return State(
        about, {f"callback/0/{name}/{n}": one for name, all_ in arrays.items() for n, one in enumerate(all_)}
    )


@pytest.mark.parametrize(
    ("callback", "tampered"),
    [
        (
            lambda: keras.callbacks.ModelCheckpoint("mine.keras"),
            {"_options": 1, "filepath": 1, "save_freq": 1, "verbose": 2, "_save_model": 1, "on_epoch_end": None},
        ),
        (lambda: keras.callbacks.CSVLogger("mine.csv"), {"filename": 3, "file_flags": 4, "sep": 1, "csv_file": 3}),
        (lambda: keras.callbacks.TensorBoard("logs"), {"_log_write_dir": 1, "log_dir": 2, "update_freq": 1}),
        (lambda: keras.callbacks.BackupAndRestore("backup"), {"_weights_path": 1, "backup_dir": 2}),
        (keras.callbacks.EarlyStopping, {"patience": 10**9, "monitor": 1, "monitor_op": None, "__class__": 1}),
        (Counter, {"every": 1, "path": 7, "on": 3, "model": 1, "_model": 2, "new": 3, "on_epoch_end": 4, "params": 5}),
    ],
)  # fmt: skip
def test_no_attribute_but_a_counter_is_changed(
    callback: Callable[[], Any], tampered: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = callback()
    one.set_model(model())
    before = dict(vars(one))
    restored = Callbacks([one])
    restored.restore(told((type(one).__name__, tampered)))
    restored.restore(told(("AnotherClass", {"wait": 7})))
    restored.restore(told((type(one).__name__, {}), filepath=[X], path=[X], every=[X], _model=[X]))
    assert {name for name, value in vars(one).items() if value is not before.get(name, _NOT)} == set()


def test_what_a_training_counts_is_put_back() -> None:
    stopping, mine = keras.callbacks.EarlyStopping(), Counter()
    callbacks = [("EarlyStopping", {"wait": 3, "best": 0.5, "stopped_epoch": 4, "best_epoch": 2})]
    Callbacks([stopping]).restore(told(*callbacks, best_weights=[X, Y]))
    assert (stopping.wait, stopping.best, stopping.best_epoch) == (3, 0.5, 2)
    assert [np.shape(one) for one in stopping.best_weights] == [X.shape, Y.shape]
    numbers = {"count": 5, "best": 0.25, "on": False, "kind": 4}
    Callbacks([mine]).restore(told(("Counter", numbers), means=[X]))
    assert (mine.count, mine.best, mine.on, mine.kind, Counter.kind) == (5, 0.25, False, 4, 3)
    assert np.array_equal(mine.means[0], X)


@pytest.fixture
def interrupted(tmp_path: Path) -> tuple[str, Path]:
    """A run that was interrupted, and the folder of the model to go on from."""
    mlflow_tfmon.autolog(report=False)
    with pytest.raises(Interrupted):
        model().fit(X, Y, epochs=4, verbose=0, callbacks=[Counter()])
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    mlflow_tfmon.autolog(resume=run.info.run_id)  # waits for delivery
    mlflow_tfmon.autolog(disable=True)
    (folder,) = {
        path.parent.parent for path in tmp_path.rglob("tfmon/resume.json") if "home" not in path.parts
    }
    return run.info.run_id, folder


def changed(about: dict[str, Any], **how: Any) -> dict[str, Any]:
    """What is told, with one thing another."""
    return {**about, **how}


TAMPERED: list[Callable[[dict[str, Any]], Any]] = [
    lambda about: [],
    lambda about: None,
    lambda about: {name: value for name, value in about.items() if name != "callbacks"},
    lambda about: changed(about, callbacks=[{"class": "CSVLogger", "numbers": {"filename": "/etc/passwd"}}]),
    lambda about: changed(about, callbacks=[{"class": 1, "numbers": {}}]),
    lambda about: changed(about, callbacks=[{"class": "X", "numbers": {"a": [1]}}]),
    lambda about: changed(about, best={**about["best"], "_settings": 1}),
    lambda about: changed(about, best=7),
    lambda about: changed(about, epoch="1"),
    lambda about: changed(about, step=10**400),
    lambda about: changed(about, fits=True),
    lambda about: changed(about, within=1),
    lambda about: changed(about, prefix=3),
    lambda about: changed(about, streams={"0": ["a"]}),
    lambda about: changed(about, streams={"../x": [0]}),
    lambda about: changed(about, weights=[["a", [-1]]]),
    lambda about: changed(about, optimizers=[{"of": [0], "shapes": [], "name": ["optimizer"]}]),
    lambda about: changed(about, past={"streams": [{"no": "such"}]}),
    lambda about: changed(about, past={"streams": 7}),
    lambda about: changed(about, random={**about["random"], "numpy": ["MT19937", 10**9, 0, 0.0]}),
    lambda about: changed(about, random={**about["random"], "numpy": ["PCG64", 0, 0, 0.0]}),
    lambda about: changed(about, random={**about["random"], "python": [3, [1], None]}),
]  # fmt: skip


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    random, keys = chance()
    stream = {"number": 0, "prefix": "", "name": "Adam", "model": "net", "steps": 2, "variables": "ab"}
    valid = {
        "epoch": 1, "step": 2, "first_epoch": 0, "began_with": 0, "fits": 0, "place": 0, "process": "ab",
        "within": False, "past": {"streams": [stream], "epochs": {"": 1}, "seams": [], "resumed": False},
        "streams": {"0": [0, 1]},
        "prefix": "", "best": {"metric": "loss", "value": 0.5, "epoch": 0, "more": False}, "random": random,
        "callbacks": [{"class": "Counter", "numbers": {"count": 1, "best": None, "on": True}}],
        "weights": [["out/kernel", [4, 1]]], "optimizer": [["iteration", []]],
        "optimizers": [{"of": [0], "shapes": [["iteration", []]], "name": "second"}],
    }  # fmt: skip
    State(valid, dict(keys)).write(tmp_path)
    assert set(State.read(tmp_path).arrays) == set(keys)
    file, packed = tmp_path / "tfmon" / "resume.json", tmp_path / "tfmon" / "resume.npz"
    about = json.loads(file.read_text())
    for tamper in TAMPERED:
        file.write_text(json.dumps(tamper(about)))
        with pytest.raises(ValueError, match=r"^('|it )"):
            State.read(tmp_path)
    file.write_text("[" * 10**6)
    with pytest.raises(ValueError, match="nested too deep"):
        State.read(tmp_path)
    file.write_text(json.dumps(about))
    numpy = keys["random/numpy"]
    for hostile in (np.array([print] * 624, object), numpy[:3], numpy.astype(float)):
        np.savez(packed, **{**keys, "random/numpy": hostile}, allow_pickle=True)
        with pytest.raises(ValueError, match=r"Object arrays|NumPy's random numbers"):
            State.read(tmp_path)
    np.savez_compressed(packed, **keys, bomb=np.zeros(10**7))
    with pytest.raises(ValueError, match="compressed"):
        State.read(tmp_path)


@pytest.mark.thorough
def test_what_is_no_checkpoint_is_refused_in_a_line(interrupted: tuple[str, Path]) -> None:
    run_id, folder = interrupted
    file = folder / "tfmon" / "resume.json"
    about = json.loads(file.read_text())
    for tamper in TAMPERED[:4]:
        file.write_text(json.dumps(tamper(about)))
        with pytest.raises(SettingError, match="its checkpoint cannot be read") as caught:
            mlflow_tfmon.autolog(resume=run_id)
        assert "\n" not in str(caught.value)
    file.write_text(json.dumps(about))
    (weights,) = folder.rglob("model.keras")
    kept = weights.read_bytes()
    for write in (linked, external, compressed, lambda path, other: path.write_bytes(b"no archive")):
        write(weights, folder / "elsewhere.h5")
        with pytest.raises(SettingError, match="its weights file is invalid"):
            mlflow_tfmon.Monitor(model(), resume=run_id, report=False).start()
        weights.write_bytes(kept)
    mlflow_tfmon.autolog(resume=run_id, report=False)
    net = model()
    assert net.fit(X, Y, epochs=4, verbose=0).epoch == [1, 2, 3]  # the second was interrupted


@pytest.mark.parametrize(
    "write", range(6), ids=["linked", "external", "compressed", "within itself", "many times", "no array"]
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, write: int) -> None:
    (linked, external, compressed, within_itself, many_times_within, no_array)[write](
        tmp_path / "net.keras", tmp_path / "elsewhere.h5"
    )
    with pytest.raises(
        ValueError, match=("link", "another file", "at most", "too deep", "at most", "not an array")[write]
    ):
        reading.weights_file(tmp_path / "net.keras", tmp_path, 2**20)


def pack(path: Path, file: Path) -> None:
    """Puts weights into a .keras file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, "model.weights.h5")


def linked(path: Path, other: Path) -> None:
    """Weights that are a link to those of another file."""
    with h5py.File(other, "w") as file:
        file["secret"] = X
    made = other.with_name("made.h5")
    with h5py.File(made, "w") as file:
        file["layers"] = h5py.ExternalLink(str(other), "/secret")
    pack(path, made)


def external(path: Path, other: Path) -> None:
    """Weights that are the bytes of another file."""
    other.write_bytes(bytes(64))
    made = other.with_name("made.h5")
    with h5py.File(made, "w") as file:
        file.create_dataset("layers/out/vars/0", (4, 1), "f4", external=[(str(other), 0, 16)])
    pack(path, made)


def compressed(path: Path, other: Path) -> None:
    """A small file of weights that take gigabytes."""
    made = other.with_name("made.h5")
    with h5py.File(made, "w") as file:
        file.create_dataset("layers/out/vars/0", (2**20, 2**10), "f4", chunks=(64, 64), compression="gzip")
    pack(path, made)


def within_itself(path: Path, other: Path) -> None:
    """Weights in a group that is in itself."""
    made = other.with_name("made.h5")
    with h5py.File(made, "w") as file:
        file["layers/again"] = file.create_group("layers")
    pack(path, made)


def many_times_within(path: Path, other: Path) -> None:
    """Weights in a group that can be reached in 2⁶⁰ ways."""
    made = other.with_name("made.h5")
    with h5py.File(made, "w") as file:
        within = file.create_group("0")
        for _ in range(60):
            outer = file.create_group(f"{len(file)}")
            outer["a"], outer["b"] = within, within
            within = outer
    pack(path, made)


def no_array(path: Path, other: Path) -> None:
    """A type in the place of weights."""
    made = other.with_name("made.h5")
    with h5py.File(made, "w") as file:
        file["layers"] = np.dtype("f4")
    pack(path, made)


def test_few_bytes_that_say_that_they_are_many_values_are_refused() -> None:
    variable = keras.Variable(np.zeros((2, 3), "float32"))
    many = tf.make_tensor_proto(1.0, shape=(2**40,)).SerializeToString()
    with pytest.raises(ValueError, match="no value for"):
        assign(variable, np.frombuffer(many, np.uint8))
    assign(variable, np.frombuffer(tf.io.serialize_tensor(tf.ones((2, 3))).numpy(), np.uint8))
    assert variable.numpy().tolist() == [[1.0] * 3] * 2


def test_weights_of_a_model_are_a_file_of_weights(tmp_path: Path) -> None:
    net = model()
    net.fit(X, Y, verbose=0)
    net.save(tmp_path / "net.keras")
    net.save_weights(tmp_path / "net.weights.h5")
    for path in (tmp_path / "net.keras", tmp_path / "net.weights.h5"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        again = model()
        again.load_weights(str(reading.weights_file(path, tmp_path / "out", 2**20)))
        assert all(np.array_equal(a, b) for a, b in zip(again.get_weights(), net.get_weights(), strict=True))
