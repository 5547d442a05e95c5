"""Tests of what users save after a monitored training (modules, models, checkpoints, copies): same as without."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import mlflow_tfmon
from tests import trainings


class Trainable(tf.Module):
    """A module that carries its training step along, as one does to go on training elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trainings.model()
        self.optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        self.optimizer.build(self.net.trainable_variables)
        self.own = [v.value for v in [*self.net.variables, *self.optimizer.variables]]
        self.train = trainings.custom_step(self.net, self.optimizer)

    @tf.function(input_signature=[tf.TensorSpec((None, trainings.FEATURES))])
    def predict(self, x: tf.Tensor) -> tf.Tensor:
        return self.net(x)


def saved_module(folder: Path) -> Trainable:
    """Trains a module and saves it with its step, traced before, as a signature; and a checkpoint of it."""
    module = Trainable()
    for a, b in trainings.batches(*trainings.data(), 1):
        module.train(a, b)
    traced = module.train.get_concrete_function(a, b)
    tf.saved_model.save(module, folder / "both", signatures={"train": traced, "predict": module.predict})
    tf.saved_model.save(module, folder / "plain")
    tf.train.Checkpoint(module=module).write(str(folder / "checkpoint"))
    return module


def variables(prefix: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return {name: reader.get_tensor(name) for name in names}


def objects(folder: Path) -> list[tuple[str, list[str]]]:
    """The objects of a SavedModel: the kind of each, and the names that it has for others."""
    proto = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    nodes = proto.meta_graphs[0].object_graph_def.nodes
    return sorted(
        (str(node.WhichOneof("kind")), sorted(c.local_name for c in node.children)) for node in nodes
    )


# Where it is used there is no mlflow_tfmon: twice loaded, so that one's state is not the other's.
ELSEWHERE = """
import sys
import numpy as np, tensorflow as tf
folder, data, out = sys.argv[1:]
x, y = (tf.constant(np.load(data)[name]) for name in "xy")
losses, predictions = [], []
for loaded in (tf.saved_model.load(f"{folder}/both"), tf.saved_model.load(f"{folder}/plain")):
    losses.append([float(loaded.train(x, y)) for _ in range(3)])
    predictions.append(loaded.predict(x).numpy())
for _ in range(2):
    loaded = tf.saved_model.load(f"{folder}/both")
    train = loaded.signatures["train"]
    losses.append([float(train(x=x, y=y)["output_0"]) for _ in range(3)])
    predictions.append(loaded.signatures["predict"](x=x)["output_0"].numpy())
assert "mlflow_tfmon" not in sys.modules
np.savez(out, losses=losses, predictions=predictions)
"""


@pytest.mark.thorough
def test_a_module_with_its_watched_step(fresh: None, tmp_path: Path) -> None:
    unwatched = saved_module(tmp_path / "unwatched")
    mlflow_tfmon.autolog()
    watched = saved_module(tmp_path / "watched")
    mlflow_tfmon.autolog(disable=True)
    (run,) = mlflow.search_runs(output_format="list")  # tracing it to save it made no other
    assert len(mlflow_tfmon.load_run(run.info.run_id).steps) == 10
    for ours, theirs in zip(watched.own, unwatched.own, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    for part in ("both/variables/variables", "plain/variables/variables", "checkpoint"):
        saved, reference = variables(tmp_path / "watched" / part), variables(tmp_path / "unwatched" / part)
        assert saved.keys() == reference.keys()
        assert all((saved[name] == reference[name]).all() for name in saved)
    assert objects(tmp_path / "watched/plain") == objects(tmp_path / "unwatched/plain")

    a, b = next(trainings.batches(*trainings.data(), 1))
    np.savez(tmp_path / "data.npz", x=a, y=b)
    arguments = [str(tmp_path / name) for name in ("watched", "data.npz", "elsewhere.npz")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *arguments], check=True)
    losses = [float(unwatched.train(a, b)) for _ in range(3)]
    elsewhere = np.load(tmp_path / "elsewhere.npz")
    for way in range(4):
        np.testing.assert_allclose(elsewhere["losses"][way], losses, rtol=1e-6)
        np.testing.assert_allclose(elsewhere["predictions"][way], unwatched.predict(a), rtol=1e-5)


def kept(folder: Path, batch: np.ndarray) -> dict[str, Any]:
    """Trains a model by `fit`, then keeps it in every way there is."""
    x, y = trainings.data()
    net = trainings.model(name="net")
    net.compile(keras.optimizers.SGD(0.1, momentum=0.9), trainings.loss())
    net.fit(x, y, batch_size=trainings.BATCH, epochs=1, verbose=0, shuffle=False)
    net.export(folder / "exported", verbose=False)
    net.save(folder / "model.keras")
    tf.saved_model.save(net, folder / "saved")
    copies = {
        "keras": keras.models.load_model(folder / "model.keras"),
        "pickled": pickle.loads(pickle.dumps(net)),
        "copied": copy.deepcopy(net),
        "clone": keras.models.clone_model(net),
    }
    copies["clone"].set_weights(net.get_weights())
    result: dict[str, Any] = {name: np.asarray(copied(batch)) for name, copied in copies.items()}
    # With the optimizer's state.
    copies["copied"].fit(x, y, batch_size=trainings.BATCH, epochs=1, verbose=0, shuffle=False)
    result["trained on"] = np.asarray(copies["copied"](batch))
    exported = tf.saved_model.load(folder / "exported")
    result["exported"] = exported.serve(batch).numpy()
    result["saved"] = variables(folder / "saved/variables/variables")
    return result | {"attributes": set(vars(copies["copied"]))}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:You are saving")
def test_a_model_trained_by_fit(fresh: None, tmp_path: Path) -> None:
    batch = trainings.data()[0][:4]
    unwatched = kept(tmp_path / "unwatched", batch)
    mlflow_tfmon.autolog(log_models=False)
    watched = kept(tmp_path / "watched", batch)
    mlflow_tfmon.autolog(disable=True)
    np.testing.assert_equal(watched, unwatched)
    for folder in ("saved", "exported"):
        assert objects(tmp_path / "watched" / folder) == objects(tmp_path / "unwatched" / folder)
