"""Thresholds of the detectors, the keyword-only arguments of their functions, and the user's choice among both."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table

LAYERS = "layers"  # beside the thresholds of a kind: patterns of the names of the layers that are looked at
Detect = Callable[[History], Iterable[Problem]]
Chosen = Mapping[str, Any]  # by kind: whether it is looked for, or thresholds by name


def kind_of(detect: Detect) -> str:
    """The kind of problem that a detector of this package finds: its module's name."""
    return detect.__module__.rpartition(".")[2]


def thresholds(detect: Detect) -> dict[str, float]:
    """A detector's thresholds, with their defaults.

    Example:
        >>> thresholds(dead_relu.detect)
        {'min_share': 0.7, 'min_share_if_little': 0.9}
    """
    arguments = inspect.signature(detect).parameters.values()
    return {one.name: one.default for one in arguments if one.kind is one.KEYWORD_ONLY}


def check(chosen: Chosen, detectors: Iterable[Detect]) -> None:
    """Checks a choice; a kind that is not known, and does not resemble one that is, may be of another package.

    Raises:
        ValueError: it names what does not exist, or has a value that is none; the message says what there is.
    """
    known = {kind_of(detect): thresholds(detect) for detect in detectors}
    for kind, value in chosen.items():
        if kind not in known:
            near = difflib.get_close_matches(str(kind), known, n=1)
            if value is not False or near:
                what = f"did you mean {near[0]!r}?" if near else f"kinds: {', '.join(sorted(known))}"
                raise ValueError(f"has no kind {kind!r} ({what})")
        elif isinstance(value, Mapping):
            for name, number in value.items():
                if name == LAYERS and isinstance(number, str) and number.strip(", "):
                    continue
                if name == LAYERS:
                    raise ValueError(
                        f'needs patterns of names for layers of {kind}, such as "encoder.*", not {number!r}'
                    )
                if name not in known[kind]:
                    names = ", ".join(known[kind]) or "none"
                    raise ValueError(f"has no threshold {name!r} of {kind} (its thresholds: {names})")
                if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
                    raise ValueError(f"needs a number from 0 for {name} of {kind}, not {number!r}")
        elif not isinstance(value, bool):
            raise ValueError(f"needs True, False or a dictionary of thresholds for {kind}, not {value!r}")


def chosen_of(detectors: Iterable[Detect], chosen: Chosen) -> Iterator[tuple[str, Detect]]:
    """The detectors that are not turned off, by kind, with the thresholds that were chosen for them."""
    for detect in detectors:
        kind = kind_of(detect)
        value = chosen.get(kind, True)
        if value is not False:
            options = dict(value) if isinstance(value, Mapping) else {}
            layers = options.pop(LAYERS, "")
            with_options = functools.partial(detect, **options) if options else detect
            yield (
                kind,
                functools.partial(_of_layers, with_options, _patterns(layers)) if layers else with_options,
            )


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",") if one.strip())


def _of_layers(detect: Detect, patterns: tuple[str, ...], history: History) -> Iterator[Problem]:
    """What a detector finds in some layers: those of other layers are not looked at, nor named."""

    def matches(name: str) -> bool:
        return any(fnmatchcase(one, like) for one in (name, name.rpartition(".")[0]) for like in patterns)

    def only(table: Table) -> Table:
        return table.only([name for name in table.names if matches(name)])

    some = dataclasses.replace(
        history,
        gradients=only(history.gradients),
        deep={name: only(table) for name, table in history.deep.items()},
        activations={name: only(table) for name, table in history.activations.items()},
        activation_names={name: kind for name, kind in history.activation_names.items() if matches(name)},
        kernels=tuple(name for name in history.kernels if matches(name)),
    )
    for problem in detect(some):
        named = tuple(name for name in problem.variables if matches(name))
        if named or not problem.variables:
            yield dataclasses.replace(problem, variables=named)
