"""Tests of problems of the data: validation data of another kind, targets on a large scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlflow_tfmon.detectors import History, Problem, judge
from mlflow_tfmon.detectors.causes import explained
from mlflow_tfmon.detectors.premises import Layer
from mlflow_tfmon.detectors.sample import Sample
from tests.detectors.histories import EPOCHS, STEPS, history, premises

_RANDOM = np.random.default_rng(0)
_X = _RANDOM.normal(size=(1000, 8))
_Y = _RANDOM.integers(0, 4, 1000)
_REGRESSION: dict[str, Any] = {
    "layers": (Layer("c", "Dense", "linear", 1, "c.kernel", 16, 1, 0.0, 0.3, is_output=True),),
    "loss": "mean_squared_error",
}


def _found(kind: str, trained: History) -> Problem | None:
    return next((one for one in explained(judge(trained)) if one.kind == kind), None)


def _validated(behind: bool | None, **known: Any) -> History:
    """A classifier before its first step (None), or after all of them, with validation behind or not."""
    known = {"inputs": Sample.of(_X, targets=False), "targets": Sample.of(_Y), **known}
    if behind is None:
        return history(known=premises(**known), done=1)
    val_loss = np.full(EPOCHS, 1.3 if behind else 0.06)
    return history(known=premises(**known), val_loss=val_loss)


@pytest.mark.parametrize("behind", [None, True, False])
def test_classes_that_training_lacks(behind: bool | None) -> None:
    order = np.argsort(_Y, kind="stable")
    train, held_out = _Y[order[:800]], _Y[order[800:]]  # as validation_split=0.2 takes them
    found = _found(
        "validation_mismatch",
        _validated(
            behind, targets=Sample.of(np.where(train == 3, 2, train)), val_targets=Sample.of(held_out)
        ),
    )
    assert (found is not None) == (behind is not False)
    if found is not None:
        share = np.mean(held_out == 3)
        assert f"{share:.0%} of the validation examples" in found.evidence and "(3)" in found.evidence
        assert "permutation(len(x))" in found.advice


def test_the_same_classes_in_both_are_nothing() -> None:
    for behind in (None, True):
        found = _validated(behind, targets=Sample.of(_Y[:800]), val_targets=Sample.of(_Y[800:]))
        assert _found("validation_mismatch", found) is None


def test_classes_that_come_in_turn_are_all_seen() -> None:
    """Every 14th of labels that come in turn has but half of them."""
    known = {"targets": Sample.of(np.arange(60_000) % 10), "val_targets": Sample.of(np.arange(4000) % 10)}
    for behind in (None, True):
        assert _found("validation_mismatch", _validated(behind, **known)) is None
    assert min(known["targets"].class_counts) > 300  # of some 4,000 that are looked at
    rows = {name: Sample.of(np.eye(10)[np.arange(count) % 10]) for name, count in
            (("targets", 60_000), ("val_targets", 4000))}  # fmt: skip
    assert _found("validation_mismatch", _validated(None, loss="categorical_crossentropy", **rows)) is None


def test_rare_classes_may_be_missing_by_chance() -> None:
    train, held_out = _RANDOM.integers(0, 5000, 20_000), _RANDOM.integers(0, 5000, 10_000)
    assert set(held_out) - set(train)
    found = _validated(None, targets=Sample.of(train), val_targets=Sample.of(held_out))
    assert _found("validation_mismatch", found) is None


def test_other_shares_matter_only_where_validation_is_behind() -> None:
    two = np.repeat([0, 1], 500)  # sorted: the last fifth is of one class
    for behind, expected in ((None, False), (True, True), (False, False)):
        found = _validated(behind, targets=Sample.of(two[:800]), val_targets=Sample.of(two[800:]))
        assert (_found("validation_mismatch", found) is not None) is expected


@pytest.mark.parametrize(
    ("factor", "offset", "behind", "expected"),
    [
        (255.0, 0.0, None, True),  # not divided
        (1 / 255, 0.0, None, True),  # divided twice
        (255.0, 0.0, False, False),  # a model that does not mind
        (6.0, 0.0, None, False),
        (6.0, 0.0, True, True),
        (1.0, 4.0, True, True),
        (1.0, 4.0, None, False),
        (1.2, 0.3, True, False),
    ],
)
def test_another_scale(factor: float, offset: float, behind: bool | None, expected: bool) -> None:
    other = Sample.of(_X[:200] * factor + offset, targets=False)
    found = _found("validation_mismatch", _validated(behind, val_inputs=other))
    assert (found is not None) is expected
    if found is not None:
        assert f"standard deviation {other.std:.3g}" in found.evidence


def test_overfitting_is_a_consequence_of_it() -> None:
    val_loss = np.concatenate([np.linspace(1.3, 0.9, 5), np.linspace(0.9, 2.5, EPOCHS - 5)])
    held_out = Sample.of(np.full(200, 3))
    trained = history(known=premises(targets=Sample.of(_Y % 3), val_targets=held_out), val_loss=val_loss)
    kinds = {one.kind: one.consequence_of for one in explained(judge(trained))}
    assert kinds == {"validation_mismatch": "", "overfitting": "validation_mismatch"}


@pytest.mark.parametrize(
    ("scale", "offset", "loss", "expected"),
    [
        (80.0, 500.0, 250_000.0, True),
        (80.0, 0.0, 6400.0, True),
        (1.0, 50.0, 2500.0, True),
        (1.0, 5.0, 26.0, False),
        (80.0, 500.0, None, False),  # it learns all the same
    ],
)
def test_targets_on_a_large_scale(scale: float, offset: float, loss: float | None, expected: bool) -> None:
    y = scale * _RANDOM.normal(size=1000) + offset
    learned = y.var() * (0.02 + np.exp(-np.arange(STEPS) / 40))
    trained = history(learned if loss is None else loss, known=premises(targets=Sample.of(y), **_REGRESSION))
    found = _found("unscaled_targets", trained)
    assert (found is not None) is expected
    if found is not None:
        line = found.advice.split("y = ")[1].split(",")[0]
        scaled = eval(line, {"y": y})  # the advice is a line of code with the numbers of these targets
        assert abs(scaled.mean()) < 0.01 * abs(y.mean() / y.std()) + 0.01 and scaled.std() == pytest.approx(
            1, rel=1e-3
        )


def test_targets_in_per_cent_have_no_scale() -> None:
    y = 500 + 80 * _RANDOM.normal(size=1000)
    known = premises(targets=Sample.of(y), **{**_REGRESSION, "loss": "mean_absolute_percentage_error"})
    assert _found("unscaled_targets", history(12.0, known=known)) is None


def test_validation_data_that_are_not_finite_are_named() -> None:
    broken = _X[:200].copy()
    broken[7, 3] = np.nan
    found = _found("nan_or_inf", _validated(None, val_inputs=Sample.of(broken, targets=False)))
    assert found is not None and found.severity == "warning"
    assert "The validation inputs contain 1 non-finite value" in found.evidence
    assert "x[7] of the validation data" in found.evidence


def test_validation_data_are_not_to_blame_for_what_happens_in_training() -> None:
    broken = Sample.of(np.full((200, 8), np.nan), targets=False)
    loss = np.where(np.arange(STEPS) > 20, np.nan, np.exp(np.arange(STEPS) / 4.0))
    known = premises(val_inputs=broken, inputs=Sample.of(_X, targets=False))
    found = explained(judge(history(loss, known=known, update=0.9)))
    (of_values,) = [one for one in found if one.kind == "nan_or_inf"]
    assert "validation inputs" not in of_values.evidence
    assert found[0].kind == "learning_rate_too_high" and found[0].advice


def test_the_advice_for_inputs_is_a_line_of_code_that_scales_them() -> None:
    tabular = _RANDOM.normal(size=(1000, 6)) * [1.0, 500.0, 3.0, 900.0, 0.0, 2.0] + 40.0  # one never varies
    images = _RANDOM.integers(0, 256, (200, 8, 8, 1))
    pixels = np.concatenate([300 * _RANDOM.random((1000, 150)), np.full((1000, 50), 7.0)], axis=1)
    for x, most in ((tabular, 6.0), (images, 1.01), (pixels, 6.0)):
        found = _found("unnormalized_input", history(1.4, known=premises(inputs=Sample.of(x, targets=False))))
        assert found is not None
        line = found.advice.split("Scale the inputs: ")[1].split("; the validation")[0].split(" (or")[0]
        scope: dict[str, Any] = {"x": x.astype(float), "numpy": np}
        exec(line, scope)
        assert np.isfinite(scope["x"]).all() and np.abs(scope["x"]).max() < most


def test_inputs_that_are_all_the_same_are_not_to_be_scaled() -> None:
    x = Sample.of(np.ones((100, 4)), targets=False)
    found = _found("unnormalized_input", history(1.4, known=premises(inputs=x)))
    assert found is not None
    assert "they are all 1." in found.evidence and "range only" not in found.evidence
    assert found.advice.startswith("Check how the inputs are loaded") and "/ 0" not in found.advice


def test_the_advice_for_rare_classes_is_the_weights_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = (np.arange(1000) % 20 == 0).astype(int)
    known = premises(
        loss="binary_crossentropy", targets=Sample.of(y),
        layers=(Layer("c", "Dense", "sigmoid", 1, "c.kernel", 16, 1, 0.0, 0.3, is_output=True),),
    )  # fmt: skip
    found = _found("underfitting", history(0.1985, known=known))
    assert found is not None
    weights = eval(found.advice.split("class_weight=")[1].split(")")[0])
    np.testing.assert_allclose(
        list(weights.values()), compute_class_weight("balanced", classes=np.array([0, 1]), y=y), rtol=0.01
    )


def test_the_advice_names_the_layer_and_the_loss_as_code() -> None:
    output = Layer("c", "Dense", "linear", 4, "c.kernel", 16, 4, 0.0, 0.3, is_output=True)
    found = _found("loss_output_mismatch", history(1.4, known=premises(layers=(output,))))
    assert found is not None
    assert "keras.losses.SparseCategoricalCrossentropy(from_logits=True)" in found.advice
    assert 'Dense(4, activation="softmax")' in found.advice
