import fits
import keras
import numpy as np
import pytest

from mlflow_tfmon.facts.summary import can_summarize, model_summary


@pytest.mark.parametrize("kind", ["numpy_defaults", "dictionary"])
def test_the_summary_is_that_of_mlflow(kind, reference):
    theirs = reference(kind).summary
    _, _, model = fits.KINDS[kind]()
    assert can_summarize(model)
    record = model_summary(model)
    assert (record.path, record.text) == ("model_summary.txt", theirs)


def test_a_model_is_summarized_once_it_is_built():
    class Later(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    for model in (Later(), keras.Sequential([keras.layers.Dense(2)])):
        assert not can_summarize(model)
        model(np.ones((1, 4), "float32"))
        assert can_summarize(model) and "Total params: 10" in model_summary(model).text
