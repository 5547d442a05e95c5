"""A signal: something that is recorded of a training, declared in one place.

A signal is made in two halves. In the trainer's graph an `Ingredient` makes one number of a variable; many signals
share one. On the host `Signal.finish` makes of the ingredients, in NumPy, what people see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]
SAMPLE = 128  # elements of a variable, at most, of which an ingredient with a state is computed


class Traced(Protocol):
    """A variable at a step, as ops of TensorFlow: what an ingredient is computed of.

    Attributes:
        new: the weights after the step. Like the others, a flat tensor; of a large variable it holds a part.
        old: the weights before the step.
        gradient: the gradient before clipping; of a sparse one the rows that it has.
    """

    new: Any
    old: Any
    gradient: Any

    def half_square(self, values: Any) -> Any:
        """Half the sum of squares, in double precision."""

    def count(self, condition: Any) -> Any:
        """How often a condition holds."""

    def largest(self, values: Any) -> Any:
        """The largest absolute value."""


class Of(Enum):
    """The tensors that an ingredient reads: both weights, or the gradient (which may have fewer elements)."""

    WEIGHTS = "weights"
    GRADIENT = "gradient"


@dataclass(frozen=True)
class Ingredient:
    """A number of one variable, computed in the trainer's graph at every `deep_every`-th step.

    Attributes:
        name: unique among the ingredients.
        trace: computes it; with `state`, of the variable and the state, and returns it with the new state.
        of: the tensors that `trace` reads.
        join: how the numbers of a large variable's parts become one: "sum" or "max".
        of_update: whether it tells of the update: undefined at a step at which none was made.
        state: how many float64 numbers of each variable it keeps from one time to the next, 0 when training begins;
            then `gradient` is a sample of `SAMPLE` elements, the same ones each time, filled up with zeros.

    Example:
        >>> CHANGE = Ingredient("change", lambda v: v.half_square(v.new - v.old))
    """

    name: str
    trace: Callable[..., Any]
    of: Of = Of.WEIGHTS
    join: str = "sum"
    of_update: bool = False
    state: int = 0


class When(Enum):
    """How often a signal is recorded."""

    STEP = "each step"
    DEEP = "every `deep_every` steps"


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What is recorded, and all that is to be known of it.

    Attributes:
        name: of the column in files and tables, and of the MLflow metric.
        finish: makes it of the arrays that it `needs`, NaN where it is undefined. Of a variable's signal these have the
            shape (rows, variables), and "size" is the number of elements of each variable, shape (variables,). A
            division by zero warns of nothing.
        needs: ingredients of a variable's signal; of any other, names of the columns of a step (`stream.ring`).
        formula: how it is computed, with its unit.
        label: what people call it, in the singular; "" for what nobody looks at: other signals, or comparisons, are
            computed of it.
        healthy: what is mostly seen where training goes well.
        per_variable: whether there is one of each variable.
        when: how often.
        undefined: what a NaN that was computed says; "": that the training diverged, and the step is noted.
        curve: whether it becomes a metric in MLflow; else it is in the files, `load_run` and the report.
        band: values between which training mostly goes well, or None.
        panel: whether the report draws it of each variable.
        expected: whether the user is told where a training does not allow to record it.

    Example:
        >>> UPDATE_NORM = Signal(
        ...     name="update_norm",
        ...     finish=lambda a: np.sqrt(2 * a["change"]),
        ...     needs=(CHANGE,),
        ...     formula="‖Δw‖",
        ...     label="update norm",
        ... )
    """

    name: str
    finish: Callable[[Arrays], np.ndarray]
    needs: tuple[Ingredient | str, ...]
    formula: str
    label: str = ""
    healthy: str = ""
    per_variable: bool = True
    when: When = When.DEEP
    undefined: str = ""
    curve: bool = True
    band: tuple[float, float] | None = None
    panel: bool = False
    expected: bool = False

    @property
    def plural(self) -> str:
        """Its label as a title, such as "Gradient norms"."""
        return f"{self.label[0].upper()}{self.label[1:]}s"

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        """What it needs of the trainer's graph at a deep step."""
        return tuple(one for one in self.needs if isinstance(one, Ingredient))
