"""The registry: of two declarations of a name one would be lost, in silence."""

from __future__ import annotations

from mlflow_tfmon.signals import DEEP, INGREDIENTS, MEASURES, OF_STEP, OF_VARIABLE


def test_signals_have_names_of_their_own() -> None:
    for some in (OF_VARIABLE, (*OF_STEP, *MEASURES)):
        names = [one.name for one in some]
        assert sorted(set(names)) == sorted(names)


def test_ingredients_have_names_of_their_own() -> None:
    declared = {id(one): one.name for signal in DEEP for one in signal.ingredients}
    assert sorted(declared.values()) == sorted(one.name for one in INGREDIENTS)
