"""Hooks into other libraries while trainings are watched: a table for each library, and one installer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mlflow_tfmon.errors import contained
from mlflow_tfmon.internals import find

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Hook:
    """A method, or a function of a module, that is wrapped.

    Attributes:
        target: its dotted path; it is looked up when the hook is put in.
        consequence: what is not recorded where it is not there, as a clause.
        wrap: makes the wrapper, given the original; None where whoever puts it in gives that.
    """

    target: str
    consequence: str
    wrap: Wrap | None = None


_in: list[tuple[Any, str, Any]] = []  # owner, name, original; in the order in which they were put in


def put_in(hooks: Iterable[Hook]) -> None:
    """Puts hooks in that are not in already; one that fails costs what it says, and no other."""
    for hook in hooks:
        with contained(f"putting a probe into {hook.target}", hook.consequence):
            path, _, name = hook.target.rpartition(".")
            owner, original = find(path), find(hook.target)
            if hook.wrap is None or any((owner, name) == (known, method) for known, method, _ in _in):
                continue
            wrapped = functools.wraps(original)(hook.wrap(original))
            # As if it were TensorFlow's own: autograph must neither convert it nor change its state (TF 2.16 to 2.21).
            wrapped.autograph_info__ = {}  # type: ignore[attr-defined]
            setattr(owner, name, wrapped)
            _in.append((owner, name, original))


def take_out() -> None:
    """Takes all of them out, the last first."""
    while _in:
        owner, name, original = _in.pop()
        setattr(owner, name, original)
