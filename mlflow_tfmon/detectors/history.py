"""History of a training up to some step, as plain bounded data: the input of a detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.detectors.table import Gathering, Table

_STEPS, _VARIABLES, _EPOCHS, _DEEP, _SYSTEM = 512, 128, 256, 64, 128  # rows of the tables
_FIRST = 5  # steps whose loss is taken for that of the untrained model
ACTIVATIONS = ("mean", "std", "zero_fraction", "dead_fraction", "saturated_fraction")


@dataclass(frozen=True)
class NonFinite:
    """Steps at which a series was not finite.

    Attributes:
        first: the first such step.
        last: the last such step.
        count: how many such steps.
    """

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Apart:
    """How often a worker had something else than the chief, of what all of them must have alike.

    Attributes:
        before: the last step before the first such one at which it was the same; 0 if none was.
        first: the first such step; 0 if there is none.
        last: the last such step.
        count: how many such steps.
        part: of gradients, by which part of the chief's norm the worker's was another at most.
        variable: of weights, the first one that differed, at the first such step.
    """

    before: int = 0
    first: int = 0
    last: int = 0
    count: int = 0
    part: float = 0.0
    variable: str = ""


@dataclass(frozen=True)
class Witness:
    """The batch of a bad step: the step, why it was kept ("not_finite" or "spike"), and what is seen in it."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class History:
    """A training up to a step; the rows of all `Table`s but `epochs` are optimizer steps from 1.

    Attributes:
        step: the last step.
        total_steps: how many are planned in all, or None.
        steps: columns as in a recording's `Steps` blocks: loss, learning_rate, grad_norm, …
        gradients: gradient norm, a column per variable.
        deep: by name of the signal (of `signals.DEEP`: "weight_norm", "update_ratio", …), a column per variable.
        epochs: the epochs' metrics, rows numbered from 1, and "step".
        activations: by quantity ("mean", "std", "zero_fraction", "dead_fraction", "saturated_fraction"), a column per
            layer; without the output layer.
        activation_names: the activation of each of those layers.
        kernels: the variables that are kernels, in the order of the model.
        sizes: elements of each variable.
        nonfinite: by series ("loss", "grad_norm", a variable's name); without steps that loss scaling skipped.
        premises: facts known before the first step (of several fits, before the last one), or None.
        premises_step: the last step when they were recorded.
        alone: whether no other optimizer alternates with this one (as in a GAN, whose losses need not fall).
        others: the losses of those that do, by the prefix of their series.
        start: the step before the first one considered: steps before a rescue are not.
        first_losses: losses of the first few steps.
        ended: whether the training has ended by itself; False if it was interrupted.
        system: what the training took of the machine, by name without "system/".
        witnesses: the batches of bad steps, in the order of the steps.
        stopped: seconds for which workers, by name, had stopped when they were asked; none once steps come again.
        apart: of several workers, by the column that tells of it ("worker_1/weights_apart", "worker_1/gradient_apart").
    """

    step: int = 0
    total_steps: int | None = None
    steps: Table = field(default_factory=Table)
    gradients: Table = field(default_factory=Table)
    deep: Mapping[str, Table] = field(default_factory=dict)
    epochs: Table = field(default_factory=Table)
    activations: Mapping[str, Table] = field(default_factory=dict)
    activation_names: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    nonfinite: Mapping[str, NonFinite] = field(default_factory=dict)
    premises: Premises | None = None
    premises_step: int = 0
    alone: bool = True
    start: int = 0
    first_losses: tuple[float, ...] = ()
    ended: bool = False
    system: Table = field(default_factory=Table)
    witnesses: tuple[Witness, ...] = ()
    others: Mapping[str, Table] = field(default_factory=dict)
    apart: Mapping[str, Apart] = field(default_factory=dict)
    stopped: Mapping[str, float] = field(default_factory=dict)

    def at(self, share: float) -> float:
        """Returns the step at which a share of the steps so far had been made."""
        return self.start + share * (self.step - self.start)

    def dense(self, names: Sequence[str]) -> list[str]:
        """Returns the kernels without embeddings, most rows of which get no gradient in a step."""
        layers = self.premises.layers if self.premises is not None else ()
        tables = {layer.kernel for layer in layers if layer.kind == "Embedding"}
        return [name for name in names if name not in tables and not name.endswith("embeddings")]

    def over_kernels(self, table: Table) -> Table:
        """Returns the columns of the kernels, in the order of the model."""
        return table.only([name for name in self.kernels if name in table])


class Gatherer:
    """Gathers the history of one stream, in bounded memory.

    Example:
        >>> gatherer = Gatherer(("dense.kernel",), {"dense.kernel": 8})
        >>> gatherer.steps(("step", "loss"), ("grad_norm",), np.array([[1.0, 0.7, 0.1]]))
        >>> gatherer.history().step
        1
    """

    def __init__(self) -> None:
        self.total_steps: int | None = None
        self._told: Premises | None = None
        self._premises: Premises | None = None
        self._premises_step = 0
        self.alone = True
        self._step = 0
        self._variables: dict[str, tuple[int, bool]] = {}
        self._now: tuple[str, ...] = ()  # the variables of the following blocks
        self.restart()

    def restart(self) -> None:
        """Discards all measurements: the training restarts from an earlier state."""
        self._start = self._step
        self._first_losses: list[float] = []
        self._steps = Gathering(_STEPS)
        self._gradients = Gathering(_VARIABLES)
        self._deep = {name: Gathering(_DEEP) for name in (one.name for one in signals.DEEP)}
        self._epochs = Gathering(_EPOCHS)
        self._system = Gathering(_SYSTEM)
        self._activations = {name: Gathering(_DEEP) for name in ACTIVATIONS}
        self._activation_names: dict[str, str] = {}
        self._nonfinite: dict[str, NonFinite] = {}
        self._witnesses: list[Witness] = []
        self._apart: dict[str, Apart] = {}
        self._stopped: dict[str, float] = {}

    def know(self, premises: Premises | None) -> None:
        """Takes the premises of the steps that follow.

        A further fit with a different loss counts as a new training: losses before and after cannot be compared.
        """
        if premises is self._told:
            return
        self._told, before = premises, self._premises
        if premises is not None and before is not None and self._step > self._start:
            if not premises.more and (premises.goal, premises.weighted) != (before.goal, before.weighted):
                self.restart()
                premises = dataclasses.replace(premises, trained_before=True)
            premises = premises.since(before)
        self._premises = premises
        if premises is None or not premises.more:
            self._premises_step = self._step

    def opened(self, variables: Sequence[tuple[str, int, bool]]) -> None:
        """Takes the variables of the following blocks: name, size, whether it is a kernel."""
        self._variables |= {name: (size, kernel) for name, size, kernel in variables}
        self._now = tuple(name for name, _, _ in variables)

    def steps(self, columns: Sequence[str], values: np.ndarray, gradients: np.ndarray | None) -> None:
        """Takes steps.

        Args:
            columns: names of the scalars, "step" among them.
            values: array (steps, columns).
            gradients: array (steps, variables) of gradient norms before clipping, or None where they are not known.
        """
        if not len(values):
            return
        columns = list(columns)
        numbers = values[:, columns.index("step")]
        skipped = (
            values[:, columns.index("skipped")] > 0 if "skipped" in columns else np.zeros(len(values), bool)
        )
        self._step = max(self._step, int(numbers[-1]))
        self._stopped.clear()
        told = "data_loss" if "data_loss" in columns else "loss"
        if told in columns and len(self._first_losses) < _FIRST:
            early = values[: _FIRST - len(self._first_losses), columns.index(told)]
            self._first_losses += early[np.isfinite(early)].tolist()
        for name in ("loss", "grad_norm"):
            if name in columns:
                bad = np.isinf(values[:, columns.index(name)]) | np.isnan(values[:, columns.index(name)])
                self._note(name, numbers[bad & ~skipped])
        for name in columns:
            if name.endswith("_apart"):
                self._compare(name, numbers, values[:, columns.index(name)])
        if gradients is not None:
            bad = ~np.isfinite(gradients) & ~skipped[:, None]
            for at in np.flatnonzero(bad.any(axis=0)):
                self._note(self._now[at], numbers[bad[:, at]])
            self._gradients.add(numbers, self._now, gradients)
        if "time" in columns:  # "seconds" is the time between the ends of consecutive steps
            values = np.column_stack([values, np.diff(values[:, columns.index("time")], prepend=np.nan)])
            columns.append("seconds")
        self._steps.add(numbers, columns, values)

    def deep(self, steps: np.ndarray, quantities: Mapping[str, np.ndarray]) -> None:
        """Takes deep rows: an array (rows, variables) by quantity."""
        for name, values in quantities.items():
            if name in self._deep:
                self._deep[name].add(steps, self._now, values)

    def epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Takes an epoch's metrics."""
        self._step = max(self._step, step)
        names = ["step", *metrics]
        self._epochs.add(np.array([epoch + 1.0]), names, np.array([[step, *metrics.values()]], float))
        for name, value in metrics.items():
            if not np.isfinite(value):
                self._note(f"epoch {name}", np.array([max(step, 1)]))

    def system(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what the training took of the machine at a step."""
        names = [name.removeprefix("system/") for name in values]
        for name, seconds in values.items():
            if name.endswith("/stopped_s"):
                self._stopped[name.split("/")[0].replace("_", " ")] = seconds
        self._system.add(np.array([float(step)]), names, np.array([list(values.values())], float))

    def activation(self, step: int, layers: Mapping[str, tuple[str, Mapping[str, float]]]) -> None:
        """Takes activations at a step: by layer, the activation's name and the quantities."""
        names = list(layers)
        self._activation_names |= {name: layers[name][0] for name in names}
        for quantity, gathering in self._activations.items():
            row = [[layers[name][1].get(quantity, float("nan")) for name in names]]
            gathering.add(np.array([float(max(step, 1))]), names, np.array(row, float))

    def witness(self, one: Witness) -> None:
        """Takes what is known of the batch of a bad step."""
        self._witnesses.append(one)

    def history(self, ended: bool = False) -> History:
        """Returns the history so far; `ended` if nothing will follow."""
        return History(
            self._step,
            self.total_steps,
            self._steps.table(),
            self._gradients.table(),
            {name: one.table() for name, one in self._deep.items()},
            self._epochs.table(),
            {name: one.table() for name, one in self._activations.items()},
            dict(self._activation_names),
            tuple(name for name, (_, kernel) in self._variables.items() if kernel),
            {name: size for name, (size, _) in self._variables.items()},
            dict(self._nonfinite),
            self._premises,
            self._premises_step,
            self.alone,
            self._start,
            tuple(self._first_losses),
            ended,
            self._system.table(),
            tuple(sorted(self._witnesses, key=lambda one: one.step)),
            apart=dict(self._apart),
            stopped=dict(self._stopped),
        )

    def _compare(self, name: str, steps: np.ndarray, values: np.ndarray) -> None:
        compared = ~np.isnan(values)
        steps, values = steps[compared].astype(int), values[compared]
        known = self._apart.get(name, Apart())
        apart = np.flatnonzero(values)
        same = steps[: apart[0]] if len(apart) else steps
        if not known.count and len(same):
            known = dataclasses.replace(known, before=int(same[-1]))
        if len(apart):
            of_weights = name.endswith("/weights_apart")
            known = Apart(
                known.before,
                known.first or int(steps[apart[0]]),
                int(steps[apart[-1]]),
                known.count + len(apart),
                0.0 if of_weights else max(known.part, float(values.max())),
                known.variable or (self._named(float(values[apart[0]])) if of_weights else ""),
            )
        self._apart[name] = known

    def _named(self, number: float) -> str:
        """The variable of this number, from 1; "" if there is none: whoever may write to the store may change it."""
        return self._now[int(number) - 1] if 1 <= number < len(self._now) + 1 else ""

    def _note(self, name: str, steps: np.ndarray) -> None:
        if len(steps):
            known = self._nonfinite.get(name)
            first = known.first if known else int(steps[0])
            count = (known.count if known else 0) + len(steps)
            self._nonfinite[name] = NonFinite(first, int(steps[-1]), count)
