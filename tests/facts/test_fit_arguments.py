import fits
import keras
import pytest

from mlflow_tfmon.facts.arguments import bind_fit


class Counting(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        assert self.model is not None and self.params is not None


def test_positional_keyword_and_default_arguments_are_named():
    arguments = bind_fit(keras.Model.fit, None, ("x", "y", 16), {"epochs": 5, "validation_data": "v"})
    assert (arguments.x, arguments.y, arguments.batch_size, arguments.epochs) == ("x", "y", 16, 5)
    assert (arguments.validation_data, arguments.initial_epoch, arguments.steps_per_epoch) == ("v", 0, None)
    assert arguments.values["shuffle"] is True and arguments.values["validation_freq"] == 1


def test_a_bound_fit_will_do():
    model = fits.small_model()
    assert bind_fit(model.fit, model, ("x",), {}).x == "x"


@pytest.mark.parametrize("args,kwargs", [((), {"epoch": 3}), (tuple(range(20)), {}), ((1,), {"x": 1})])
def test_arguments_that_fit_refuses_are_refused_alike(args, kwargs):
    model = fits.small_model()
    with pytest.raises(TypeError):
        model.fit(*args, **kwargs)
    with pytest.raises(TypeError):
        bind_fit(keras.Model.fit, model, args, kwargs)


def test_a_fit_of_the_users_own_with_free_keywords():
    def fit(self, *args, **kwargs):
        pass

    arguments = bind_fit(fit, None, (), {"x": 1, "epochs": 4, "callbacks": [1]})
    assert (arguments.x, arguments.epochs) == (1, 4)
    assert arguments.with_callbacks([2]) == ((), {"x": 1, "epochs": 4, "callbacks": [1, 2]})


def callback_forms():
    one, two = Counting(), Counting()
    return {
        "none": (None, []),
        "list": ([one, two], [one, two]),
        "tuple": ((one, two), [one, two]),
        "nested": ([one, [two]], [one, two]),
        "single": (one, [one]),
        "empty": ([], []),
    }


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("form", callback_forms())
def test_a_callback_is_added_however_the_users_were_passed(form, positional):
    given, flat = callback_forms()[form]
    given = flat[0] if form == "single" else given
    before = list(given) if isinstance(given, (list, tuple)) else given
    args = (*fits.arrays(), 32, 2, 0, given) if positional else fits.arrays()
    kwargs = {} if positional else {"callbacks": given, "epochs": 2, "verbose": 0}
    model, added = fits.small_model(), Counting()
    arguments = bind_fit(keras.Model.fit, model, args, kwargs)
    users = arguments.callback_list
    assert [type(callback) for callback in users] == [type(callback) for callback in flat]
    new_args, new_kwargs = arguments.with_callbacks([added])
    if form in ("none", "list"):  # a real fit for the two usual ones
        keras.Model.fit(model, *new_args, **new_kwargs)
        assert [callback.epochs for callback in (*users, added)] == [2] * (len(flat) + 1)
    passed = new_args[5] if positional else new_kwargs["callbacks"]
    assert passed == [*users, added]
    # What the user holds is as it was.
    assert (list(given) if isinstance(given, (list, tuple)) else given) == before
    assert kwargs.get("callbacks") is (None if positional else given)


def test_a_callback_list_of_keras_is_copied_and_its_callbacks_called():
    model, mine, added = fits.small_model(), Counting(), Counting()
    given = keras.callbacks.CallbackList([mine], add_history=True, model=model, epochs=2, steps=4, verbose=0)
    before = list(given.callbacks)
    arguments = bind_fit(
        keras.Model.fit, model, fits.arrays(), {"callbacks": given, "epochs": 2, "verbose": 0}
    )
    args, kwargs = arguments.with_callbacks([added])
    history = keras.Model.fit(model, *args, **kwargs)
    assert (mine.epochs, added.epochs, len(history.epoch)) == (2, 2, 2)
    assert given.callbacks == before and arguments.callback_list == before
