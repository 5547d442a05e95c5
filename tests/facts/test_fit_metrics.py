import fits
import keras
import numpy as np
import tensorflow as tf

from mlflow_tfmon.facts.metrics import early_stopping_facts, epoch_metrics


class Logs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = {}

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[epoch] = epoch_metrics(logs, mlflow_names=True)


def test_epoch_metrics_have_the_names_of_mlflow_at_the_right_epochs(autologged):
    x, y = fits.arrays()
    ours = Logs()
    options = {"validation_data": (x[:20], y[:20]), "epochs": 3, "verbose": 0, "callbacks": [ours]}
    theirs = autologged(fits.small_model(), (x, y), options).metrics
    assert {name for metrics in ours.epochs.values() for name in metrics} == set(theirs)
    for name, points in theirs.items():
        mine = [(epoch, metrics[name]) for epoch, metrics in ours.epochs.items()]
        if name.startswith("validation_"):  # the reference's fault: all of them at step 0
            assert {step for step, _ in points} == {0}
            np.testing.assert_allclose(sorted(v for _, v in mine), sorted(v for _, v in points), rtol=1e-6)
        else:
            np.testing.assert_allclose(mine, points, rtol=1e-6)


def test_epochs_without_validation_have_no_validation_metrics():
    assert epoch_metrics({"loss": np.float32(0.5)}) == {"loss": 0.5}
    assert epoch_metrics(None) == {}


def test_what_is_not_one_number_is_left_out():
    logs = {"a": tf.constant([2.0]), "b": np.ones(3), "c": "text", "d": None, "e": True, "f": {"g": 1}}
    assert epoch_metrics(logs) == {"a": 2.0, "e": 1.0}


def test_numbers_that_are_not_finite_are_kept():
    assert np.isnan(epoch_metrics({"loss": float("nan")})["loss"])


class Script(keras.callbacks.Callback):
    """Gives the metric "quality" set values, before EarlyStopping sees them."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["quality"] = self.values[epoch]


def stopped(callbacks, values, model=None, **options):
    model = model or fits.small_model()
    model.fit(
        *fits.arrays(), epochs=len(values), verbose=0, callbacks=[Script(values), *callbacks], **options
    )
    return model


def early(**options):
    return keras.callbacks.EarlyStopping(monitor="quality", mode="max", **options)


def test_a_stopped_training_whose_best_weights_were_restored(autologged):
    values = [1, 5, 4, 3, 2, 9]
    mine = early(patience=2, restore_best_weights=True)
    stopped([mine], values)
    facts = early_stopping_facts([keras.callbacks.History(), mine])
    assert facts.metrics == (("stopped_epoch", 3.0, 3), ("restored_epoch", 1.0, 1))
    assert facts.params == {} and facts.tags == {}
    assert early_stopping_facts([mine], epoch_offset=10).metrics[0] == ("stopped_epoch", 13.0, 13)

    theirs = early(patience=2, restore_best_weights=True)
    options = {"epochs": 6, "verbose": 0, "callbacks": [Script(values), theirs]}
    metrics = autologged(fits.small_model(), fits.arrays(), options).metrics
    assert metrics["stopped_epoch"][0][1] == 3 and metrics["restored_epoch"][0][1] == 1
    assert [step for step, _ in metrics["loss"]] == [
        0,
        1,
        2,
        3,
        4,
    ]  # the reference's fault: there was no epoch 4


def test_best_weights_are_restored_without_a_stop_too():
    mine = early(patience=9, restore_best_weights=True)
    stopped([mine], [1, 5, 4])
    assert early_stopping_facts([mine]).metrics == (("restored_epoch", 1.0, 1),)


def test_a_stop_by_another_callback_is_not_taken_for_an_early_one():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    mine = early(patience=9)
    stopped([mine, Stop()], [1, 2, 3, 4])
    assert early_stopping_facts([mine]).metrics == ()
    assert early_stopping_facts([]).metrics == ()
