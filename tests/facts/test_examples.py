"""Tests of the examples of a batch: fingerprints, places in the data, what stands out, what fits."""

import numpy as np
import pytest

from mlflow_tfmon.facts import examples

RANDOM = np.random.default_rng(7)
X = RANDOM.normal(size=(40, 6))


def test_a_fingerprint_is_that_of_the_values_alone() -> None:
    plain = examples.fingerprints([X])
    assert len(set(plain)) == len(X)
    assert examples.fingerprints([X.astype("float32")]) == plain
    assert examples.fingerprints([X[::-1]]) == plain[::-1]
    assert examples.fingerprints([np.where(X[3, 1] == X, -X, X)])[3] != plain[3]
    zero, other = np.zeros((1, 2)), -np.zeros((1, 2))
    assert examples.fingerprints([zero]) == examples.fingerprints([other])
    words = np.array([b"a", b"longer"])
    assert examples.fingerprints([words])[0] == examples.fingerprints([words[:1]])[0]


def test_examples_are_found_in_the_data_after_a_shuffle() -> None:
    data = X.copy()
    data[5, 2], data[9] = np.nan, data[8]  # NaN equals NaN; of two alike the first counts
    order = RANDOM.permutation(len(data))[:16]
    batch = data[order].astype("float32")
    assert examples.places([batch], [data]) == [8 if one == 9 else one for one in order.tolist()]
    assert examples.places([batch + 1], [data]) == [-1] * 16
    assert examples.places([batch], [data[:, :4]]) == []
    pictures = RANDOM.integers(0, 255, (30, 9, 9, 3), np.uint8)
    assert examples.places([pictures[[4, 29]], X[[4, 29]]], [pictures, X[:30]]) == [4, 29]
    flat = np.arange(20.0)
    assert examples.places([flat[[3, 11]]], [flat]) == [3, 11]
    assert examples.places([flat[:0]], [flat]) == []
    sparse = np.zeros((5000, 300), np.uint8)  # hardly any two differ in a few columns
    sparse[np.arange(5000), np.arange(5000) % 300] = np.arange(5000) // 300 + 1
    assert examples.places([sparse[[7, 4321]]], [sparse]) == [7, 4321]


@pytest.mark.parametrize(
    "plant, example, why",
    [
        (lambda x, y: x.__setitem__((7, 3), np.nan), 7, "feature 3 is NaN"),
        (lambda x, y: x.__setitem__((7, 3), -np.inf), 7, "feature 3 is infinite"),
        (lambda x, y: y.__setitem__(9, np.nan), 9, "the target is NaN"),
        (lambda x, y: x.__setitem__((12, 0), 100.0), 12, "feature 0 is "),
        (lambda x, y: y.__setitem__(2, -100.0), 2, "the target is "),
    ],
)
def test_a_planted_example_stands_out(plant, example, why) -> None:
    x, y = X.astype("float32"), X.sum(axis=1).astype("float32")
    assert examples.odd({"inputs": x, "targets": y}) == examples.Odd()
    plant(x, y)
    found = examples.odd({"inputs": x, "targets": y})
    assert found.examples[0] == example and found.why.startswith(why), found


def test_binary_and_rare_values_are_no_outliers() -> None:
    words = np.zeros((32, 50), "float32")
    words[np.arange(32), RANDOM.integers(0, 50, 32)] = 1.0
    scales = RANDOM.normal(size=(32, 3)) * [1.0, 1e3, 1e6]
    assert examples.odd({"inputs": words, "more/0": scales, "targets": np.arange(32)}) == examples.Odd()


def test_losses_tell_what_values_do_not() -> None:
    losses = np.full(16, 0.02)
    losses[11] = 9.0
    found = examples.odd({"inputs": X[:16]}, losses)
    assert found.examples[0] == 11 and "its loss is 9" in found.why
    losses[4] = np.nan
    assert examples.odd({"inputs": X[:16]}, losses) == examples.Odd((4,), "its loss is NaN")
    assert examples.odd({"inputs": X[:16]}, np.full(16, np.nan)).why == ""


def test_what_is_too_large_is_kept_in_part_with_what_stands_out() -> None:
    arrays = {"inputs": np.zeros((10, 100)), "targets": np.zeros(10)}
    size = sum(one.nbytes for one in arrays.values())
    assert examples.picked(arrays, (), size) == list(range(10))
    assert examples.picked(arrays, (8, 3), size // 2) == [0, 1, 2, 3, 8]
    assert examples.picked(arrays, (8,), 100) == []


def test_a_batch_has_named_arrays() -> None:
    found = examples.arrays_of(({"a": X, "b": [X, X]}, X[:, 0], None))
    assert sorted(found) == ["inputs/a", "inputs/b/0", "inputs/b/1", "targets"]
    assert sorted(examples.arrays_of((X, X[:, 0], X[:, 0]))) == ["inputs", "sample_weight", "targets"]
    assert examples.arrays_of((X[0], 1), single=True)["inputs"].shape == (1, 6)
    assert examples.arrays_of(("text", object())) == {}
