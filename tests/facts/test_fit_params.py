import fits
import keras
import numpy as np
import pytest

from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.params import early_stopping_params, fit_params

# What is really used; None: not known before the fit, so there is no param.
BATCH_SIZES = {
    "numpy_defaults": "32", "numpy_positional": "16", "numpy_float64_split": "10", "weights": "34",
    "class_weights": "32", "schedule": "32", "tensors": "32", "dictionary": "32", "batched": "25", "prefetched": "20",
    "endless": "20", "py_dataset": None, "py_dataset_with_size": "50", "from_generator": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", fits.KINDS)
def test_params_are_those_of_mlflow_but_for_its_faults(kind, reference):
    args, kwargs, model = fits.KINDS[kind]()
    ours, theirs = fit_params(bind_fit(keras.Model.fit, model, args, kwargs)), dict(reference(kind).params)
    assert ours.pop("batch_size", None) == BATCH_SIZES[kind]
    theirs.pop("batch_size", None)
    if kind == "weights":
        assert ours.pop("sample_weight") == "ndarray(shape=(100,), dtype=float64)"
        assert theirs.pop("sample_weight").startswith("[0. ")
    # Keras numbers the optimizers of a process: "adam_3" here is "adam_4" there.
    assert ours.pop("opt_name").rstrip("_0123456789") == theirs.pop("opt_name").rstrip("_0123456789")
    assert ours == theirs


def test_the_reference_has_the_fault_of_the_batch_size(reference):
    assert reference("numpy_defaults").params["batch_size"] == "None"


def test_arrays_are_described_and_never_written_out():
    args, _, model = fits.numpy_defaults()
    big = {"sample_weight": [np.ones(100), None], "class_weight": {0: np.float32(1), 1: np.ones(3)}}
    params = fit_params(bind_fit(keras.Model.fit, model, args, big))
    assert params["sample_weight"] == "[ndarray(shape=(100,), dtype=float64), None]"
    assert params["class_weight"] == "{0: 1.0, 1: ndarray(shape=(3,), dtype=float64)}"


def test_an_optimizer_without_configuration_costs_only_its_own_params():
    class Odd(keras.optimizers.SGD):
        def get_config(self):
            raise RuntimeError("no configuration")

    args, kwargs, _ = fits.numpy_defaults()
    params = fit_params(bind_fit(keras.Model.fit, fits.small_model(optimizer=Odd()), args, kwargs))
    assert params["epochs"] == "2" and not any(name.startswith("opt_") for name in params)


def test_a_model_that_was_not_compiled_has_no_optimizer_params():
    args, kwargs, _ = fits.numpy_defaults()
    model = keras.Sequential([keras.layers.Dense(2)])
    assert not any(n.startswith("opt_") for n in fit_params(bind_fit(keras.Model.fit, model, args, kwargs)))


def test_no_early_stopping_no_params():
    assert early_stopping_params([keras.callbacks.History()]) == {}
