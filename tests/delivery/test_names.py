from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric, _validate_param, _validate_tag

from mlflow_tfmon.tags import pointed, pointer
from mlflow_tfmon.tracking.names import MAX_LENGTH, Names, clean

NAMES = st.one_of(st.text(max_size=300), st.text("a/.: @\n_-", max_size=12))


@example("..0")
@given(NAMES)
def test_mlflow_accepts_every_clean_name(name: str) -> None:
    _validate_metric(clean(name), 1.0, 0, 0)
    _validate_param(clean(name), "value")
    _validate_tag(clean(name), "value")
    assert clean(clean(name)) == clean(name)


@given(NAMES)
def test_a_name_that_mlflow_accepts_stays_as_it_is(name: str) -> None:
    try:
        _validate_metric(name, 1.0, 0, 0)
    except Exception:
        return
    if "\n" not in name:  # MLflow's pattern lets a name end in a line break
        assert clean(name) == name


@given(st.lists(NAMES, max_size=30))
def test_two_names_never_share_a_form(raw: list[str]) -> None:
    names = Names()
    given_forms = {name: names(name) for name in raw}
    assert len(set(given_forms.values())) == len(set(raw))
    assert all(len(form) <= MAX_LENGTH for form in given_forms.values())
    again = Names()
    assert {name: again(name) for name in raw} == given_forms


def test_names_of_the_contract_are_untouched() -> None:
    for name in ("batch/loss", "generator.batch/grad_norm", "grad_norm/dense.kernel", "val_accuracy"):
        assert clean(name) == name


def test_ids_are_out_of_sight_and_those_of_the_first_version_are_read() -> None:
    assert pointer("best_model", "generator.") == "tfmon.generator.best_model"
    assert pointer("last_model", "generator.") == "mlflow.tfmon.generator.last_model"
    old = {"tfmon.last_model": "m-1", "tfmon.generator.resume_model": "m-2", "mlflow.user": "me"}
    assert pointed(old) == {("last_model", ""): "m-1", ("resume_model", "generator."): "m-2"}
    assert pointed({**old, pointer("last_model"): "m-3"})["last_model", ""] == "m-3"
