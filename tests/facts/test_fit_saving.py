import json
import logging
import os
import pickle
import subprocess
import sys

import fits
import keras
import mlflow
import numpy as np
import own_models
import pytest
import tensorflow as tf
import yaml

from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.saving import save_model

X, Y = fits.arrays()


def functional(**options):
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, keras.layers.Dense(2, activation="relu")(keras.layers.BatchNormalization()(inputs))
    )
    model.compile(**{"optimizer": keras.optimizers.Adam(0.01), "loss": "mse", "run_eagerly": True, **options})
    return model


def compiled(model):
    model.compile("adam", "mse", run_eagerly=True)
    return model


# kind: how to make the model, and how it is to be saved: "keras", "keras" without compilation, or "saved_model"
MODELS = {
    "sequential": (lambda: fits.small_model(), "keras"),
    "sequential built late": (lambda: compiled(keras.Sequential([keras.layers.Dense(2)])), "keras"),
    "functional": (functional, "keras"),
    "own loss": (lambda: functional(loss=own_models.own_loss, metrics=["mae"]), "uncompiled"),
    "registered": (lambda: compiled(own_models.Registered(3)), "keras"),
    "unregistered": (lambda: compiled(own_models.Unregistered(3)), "saved_model"),
    "narrow constructor": (lambda: compiled(own_models.NarrowConstructor()), "saved_model"),
    "without config": (lambda: compiled(own_models.WithoutConfig()), "saved_model"),
    "lambda": (lambda: compiled(keras.Sequential([keras.layers.Lambda(lambda v: v * 2)])), "saved_model"),
}
LOADER = """
import json, pickle, sys
import mlflow, numpy as np
cases = pickle.load(open(sys.argv[1], "rb"))
for name, (folder, x, expected) in cases.items():
    loaded, pyfunc = mlflow.tensorflow.load_model(folder), mlflow.pyfunc.load_model(folder)
    direct = loaded.predict(x, verbose=0) if hasattr(loaded, "predict") else loaded(x).numpy()
    np.testing.assert_allclose(direct, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(pyfunc.predict(x), expected, rtol=1e-6, atol=1e-7, err_msg=name)
    print("\\nloaded", json.dumps([name, type(loaded).__name__, bool(getattr(loaded, "compiled", False))]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every kind of model, fitted and saved, with the warnings that came of it."""
    folder, records = tmp_path_factory.mktemp("models"), {}

    class Keeping(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Keeping()
    logging.getLogger("mlflow_tfmon").addHandler(handler)
    for name, (make, _) in MODELS.items():
        model, messages = make(), []
        data = X if name != "lambda" else X[:, :2]
        model.fit(data, Y, verbose=0)
        weights = [w.numpy().tobytes() for w in model.variables]
        stopping = model.stop_training
        assert save_model(model, folder / name, bind_fit(keras.Model.fit, model, (data, Y), {}))
        assert weights == [w.numpy().tobytes() for w in model.variables]
        assert model.compiled and model.stop_training is stopping and model.predict_function is None
        expected = np.asarray(model(data[:7], training=False))
        records[name] = (str(folder / name), data[:7], expected, messages)
    logging.getLogger("mlflow_tfmon").removeHandler(handler)
    return records


@pytest.mark.thorough
def test_every_model_loads_in_another_process_and_predicts_the_same(saved, tmp_path):
    # The other process could import the users' classes, but has no reason to unless they are registered.
    (tmp_path / "load.py").write_text(LOADER)
    (tmp_path / "cases").write_bytes(pickle.dumps({name: case[:3] for name, case in saved.items()}))
    done = subprocess.run(
        [sys.executable, "load.py", "cases"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("loaded ") for line in done.stdout.splitlines() if line.startswith("loaded ")]
    loaded = {name: (kind, ready) for name, kind, ready in map(json.loads, lines)}
    assert loaded.keys() == MODELS.keys()
    for name, (_, how) in MODELS.items():
        kind, ready = loaded[name]
        assert (kind == "_UserObject") == (how == "saved_model"), name
        assert ready == (how == "keras"), name


def test_what_is_lost_is_said_once_with_the_remedy(saved):
    for name, (_, how) in MODELS.items():
        messages = saved[name][3]
        assert len(messages) == (how != "keras"), (name, messages)
        if messages:
            assert "register_keras_serializable" in messages[0]
    assert "(Unregistered)" in saved["unregistered"][3][0] and "'own_loss'" in saved["own loss"][3][0]


def test_the_weights_beside_a_saved_model_go_back_into_the_users_class(saved):
    folder, x, expected, _ = saved["unregistered"]
    again = own_models.Unregistered(3)
    again(x)
    again.load_weights(f"{folder}/model.weights.h5")
    np.testing.assert_array_equal(np.asarray(again(x)), expected)


def test_requirements_are_pinned_to_what_is_installed(saved):
    with open(f"{saved['functional'][0]}/requirements.txt") as file:
        lines = set(file.read().split())
    assert {
        f"tensorflow=={tf.__version__}",
        f"keras=={keras.__version__}",
        f"numpy=={np.__version__}",
    } <= lines
    assert f"mlflow=={mlflow.__version__}" in lines


@pytest.mark.parametrize("kind", ["numpy_float64_split", "prefetched"])
def test_signature_and_example_are_those_of_mlflow(kind, autologged, tmp_path, store):
    args, kwargs, model = fits.KINDS[kind]()
    model.fit(*args, **kwargs, verbose=0)
    assert save_model(
        model, tmp_path / "m", bind_fit(keras.Model.fit, model, args, kwargs), log_input_examples=True
    )
    ours = mlflow.pyfunc.load_model(str(tmp_path / "m"))

    args, kwargs, model = fits.KINDS[kind]()
    options = {"log_models": True, "log_input_examples": True, "log_datasets": False}
    with pytest.MonkeyPatch.context() as patch:
        # The reference's own search for requirements takes half a minute in a process of its own.
        patch.setattr(mlflow.models, "infer_pip_requirements", lambda *_, fallback, **__: fallback)
        run = autologged(model, args, {**kwargs, "verbose": 0}, **options)
    (logged,) = store.search_logged_models(
        experiment_ids=[store.get_run(run.run_id).info.experiment_id],
        filter_string=f"source_run_id = '{run.run_id}'",
    )
    theirs = mlflow.pyfunc.load_model(logged.model_uri)
    assert ours.metadata.signature == theirs.metadata.signature
    np.testing.assert_array_equal(ours.input_example, theirs.input_example)
    assert len(ours.input_example) == 5


def signature(tmp_path, model, x, **options):
    assert save_model(
        model, tmp_path / "m", x if x is None else bind_fit(keras.Model.fit, model, (x,), {}), **options
    )
    return yaml.safe_load((tmp_path / "m" / "MLmodel").read_text()).get("signature")


def test_data_that_must_not_be_read_still_give_a_signature(tmp_path, caplog):
    data = fits.Batches()
    found = signature(tmp_path, functional(), data, log_input_examples=True)
    assert data.reads == 0 and '"shape":\n' not in found["inputs"]
    assert json.loads(found["inputs"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 4]}
    assert json.loads(found["outputs"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 2]}
    assert [r.getMessage() for r in caplog.records if "log_input_examples=True" in r.getMessage()]


def test_no_signature_where_none_is_wanted(tmp_path):
    assert signature(tmp_path, functional(), X, log_model_signatures=False) is None


def test_a_training_without_fit_has_a_signature_from_the_model(tmp_path):
    assert signature(tmp_path, functional(), None)["outputs"]


def test_several_inputs_and_outputs(tmp_path):
    args, _, model = fits.dictionary()
    assert [f["name"] for f in json.loads(signature(tmp_path, model, args[0])["inputs"])] == ["left", "right"]
    outputs = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(args[0])
    np.testing.assert_allclose(outputs, np.asarray(model(args[0])), rtol=1e-6)


def test_a_model_that_cannot_be_saved_at_all_is_said_and_leaves_nothing(tmp_path, caplog):
    class Untraceable(own_models.Unregistered):
        def call(self, x, training=False):
            return self.out(keras.ops.convert_to_tensor(np.asarray(x)[:, :3]))

    model = Untraceable(3)
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    assert not save_model(model, tmp_path / "m", bind_fit(keras.Model.fit, model, (X, Y), {}))
    assert not (tmp_path / "m").exists()
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("mlflow_tfmon")]
    assert "is not logged" in message and "register_keras_serializable" in message
