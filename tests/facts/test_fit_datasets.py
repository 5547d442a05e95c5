import fits
import keras
import mlflow.data
import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.datasets import datasets


def ours(args, kwargs=None):
    arguments = bind_fit(keras.Model.fit, None, args, kwargs or {})
    return {used.context: used.dataset for used in datasets(arguments)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in fits.KINDS if kind not in ("endless", "dictionary")])
def test_datasets_are_described_as_mlflow_does(kind, reference, parsed):
    args, kwargs, _ = fits.KINDS[kind]()
    found = {context: parsed(entry) for context, entry in ours(args, kwargs).items()}
    theirs = {context: parsed(entry) for context, entry in reference(kind).inputs.items()}
    assert found == theirs
    assert bool(found) == (kind not in ("py_dataset", "py_dataset_with_size", "from_generator"))


def test_a_dictionary_of_arrays_is_described_in_both_contexts(reference, parsed):
    args, kwargs, _ = fits.dictionary()
    found = ours(args, kwargs)
    theirs = reference("dictionary").inputs
    assert set(theirs) == {"eval"} and parsed(found["eval"]) == parsed(theirs["eval"])
    assert parsed(found["train"])["profile"]["features_shape"] == {"left": [100, 4], "right": [100, 4]}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(30_000, dtype="int16").reshape(15_000, 2),
        np.asfortranarray(np.random.default_rng(0).normal(size=(300, 7, 11))),
        np.array(["a", "bcd", "é"] * 5000),
        np.zeros((0, 5)),
        np.array([True, False]),
        np.ones((3, 0)),
        np.array([[1, "x"], [None, 2.0]], dtype=object),
        np.random.default_rng(0).normal(size=(3, 20_000))[:, ::2],
    ],
)
def test_digest_schema_and_profile_of_any_array(array, parsed):
    source = mlflow.data.code_dataset_source.CodeDatasetSource(tags={})
    theirs = mlflow.data.from_numpy(array, source=source, targets=array).to_dict()
    found = ours((array, array))["train"]
    assert {**parsed(found), "source": 0} == {**parsed(theirs), "source": 0}


def test_an_array_larger_than_memory_is_described():
    # 4 TB that are all one number: anything that copied or ran over it would fail or never end.
    huge = np.broadcast_to(np.float32(1), (10_000_000, 100_000))
    assert '"features_size": 1000000000000' in ours((huge,))["train"]["profile"]


@pytest.mark.parametrize(
    "data",
    [
        None,
        [1, 2],
        "text",
        object(),
        fits.generator(),
        {},
        {"a": [1]},
        tf.ragged.constant([[1], [2, 3]]),
        {"x": None},
    ],
)
def test_what_has_no_description_is_left_out(data, caplog):
    assert ours((data,), {"validation_data": data}) == {}
    assert ours((np.ones((3, 2)), [1, 2, 3])) == {}
    assert caplog.records == []


def test_a_failing_part_leaves_the_other():
    assert set(ours(([1],), {"validation_data": (np.ones((3, 2)), np.ones(3))})) == {"eval"}
    assert set(ours((np.ones((3, 2)),), {"validation_data": ()})) == {"train"}


class Counter:
    """A source of elements that counts how many were taken."""

    def __init__(self):
        self.taken = 0

    def dataset(self):
        def elements():
            while True:
                self.taken += 1
                yield np.ones(4, "float32"), np.ones(2, "float32")

        specs = (tf.TensorSpec((4,), tf.float32), tf.TensorSpec((2,), tf.float32))
        return tf.data.Dataset.from_generator(elements, output_signature=specs).batch(10)


def test_a_pipeline_with_state_is_not_run_and_still_described(parsed):
    counter = Counter()
    entry = parsed(ours((counter.dataset(),))["train"])
    assert counter.taken == 0
    assert entry["profile"] == {"features_cardinality": -2} and len(entry["digest"]) == 8
    fields = entry["schema"]["mlflow_tensorspec"]["features"]
    assert '"shape": [-1, 4]' in fields and '"name": "1"' in fields


def test_the_digest_of_a_pipeline_that_is_not_run_tells_data_apart():
    def digest(shift, batch=10):
        x, y = fits.arrays()
        data = tf.data.Dataset.from_tensor_slices((x + shift, y)).shuffle(10).batch(batch).repeat()
        return ours((data,))["train"]["digest"]

    assert digest(0) == digest(0)
    assert len({digest(0), digest(1), digest(0, batch=20) + " "}) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.shuffle(10),
        lambda d: d.map(lambda x, y: (x + tf.random.uniform(()), y)),
        lambda d: d.filter(lambda x, y: True),
        lambda d: d.cache("/nonexistent/file"),
        lambda d: d.interleave(lambda x, y: tf.data.Dataset.from_tensors((x, y))),
    ],
)
def test_pipelines_that_running_might_change_are_not_run(change):
    assert pipelines.is_repeatable(fits.pipeline())
    assert not pipelines.is_repeatable(change(fits.pipeline()).batch(2).prefetch(1))
