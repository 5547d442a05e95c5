"""Comparison of runs: overlaid panels, settings that differ, and where two runs diverge."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_tfmon.errors import InputError
from mlflow_tfmon.reading.card import card
from mlflow_tfmon.reading.recorded import RecordedRun, load_run
from mlflow_tfmon.report.layers import layers
from mlflow_tfmon.report.making import as_people_count, as_people_write, clock, seams
from mlflow_tfmon.report.page import Page, Table, render
from mlflow_tfmon.report.panels import laid_over
from mlflow_tfmon.report.training import training

# Sums in another order (another machine, more threads) differ by some 1e-7 in float32; what differs more is no noise.
NOISE = 1e-5
_CARD_ROWS = 20  # of a table in a card
_BEFORE = 1000  # steps before the loss differs in which a single variable's gradient may differ already


@dataclass(frozen=True)
class Parting:
    """Where two runs diverge.

    Attributes:
        step: the first step at which they differ beyond noise.
        variable: the variable whose gradient norm differs most there, or "" if only the loss does.
        difference: by how much, relative to the larger.
        compared: how many steps both runs have.
    """

    step: int
    variable: str
    difference: float
    compared: int


@dataclass(frozen=True)
class Bits:
    """Where the weights of two runs differ bit for bit, by their checksums at deep steps.

    Attributes:
        step: the first deep step at which they differ; None if they do not.
        variable: the first variable that differs there, or "".
        compared: how many deep steps both runs have; 0 if there is nothing to compare.
    """

    step: int | None
    variable: str
    compared: int


def bits(one: RecordedRun, other: RecordedRun, since: int = 0) -> Bits:
    """The first deep step and variable at which the weights of two runs are not the same, bit for bit.

    Args:
        one: a run.
        other: another.
        since: steps before this one are not compared.

    Example:
        >>> bits(load_run(first_id), load_run(second_id))
        Bits(step=50, variable='net.head.kernel', compared=11)
    """
    names, steps, here = _of_variables(one, "weight_checksum", ("deep",), since)
    others, other_steps, there = _of_variables(other, "weight_checksum", ("deep",), since)
    if [one.variables[n] for n in names] != [other.variables[n] for n in others]:
        return Bits(None, "", 0)  # as for gradients
    common, left, right = np.intersect1d(steps, other_steps, return_indices=True)
    differ = here[left] != there[right]
    found = np.flatnonzero(differ.any(axis=1))
    if not len(found):
        return Bits(None, "", len(common))
    return Bits(int(common[found[0]]), names[int(differ[found[0]].argmax())], len(common))


def parting(one: RecordedRun, other: RecordedRun, noise: float = NOISE, since: int = 0) -> Parting | None:
    """The first step and variable at which two runs of the same data and seed differ; None if they do not.

    Args:
        one: a run.
        other: another.
        noise: relative difference of a loss or a gradient norm that is not taken for one.
        since: steps before this one are not compared.

    Example:
        >>> parting(load_run(first_id), load_run(second_id))
        Parting(step=12, variable='net.head.kernel', difference=0.031, compared=500)
    """
    steps = one.steps.index.intersection(other.steps.index)
    steps = steps[steps >= since]
    names = [n for n in one.steps if n in other.steps and n.rpartition(".")[2] in ("loss", "grad_norm")]
    here, there = (run.steps.loc[steps, names].to_numpy(float) for run in (one, other))
    apart = _apart(here, there)
    found = np.flatnonzero((apart > noise).any(axis=1))
    # Gradients of single variables may differ before their sum does.
    until = int(steps[found[0]]) if len(found) else int(steps[-1]) if len(steps) else 0
    by_variable = _first_variable(one, other, max(1, since, until - _BEFORE), until, noise)
    if by_variable is not None:
        step, variable, difference = by_variable
        return Parting(step, variable, difference, len(steps))
    if len(found):
        return Parting(until, "", float(np.nanmax(apart[found[0]])), len(steps))
    return None


def _apart(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The relative difference; 0 where neither is finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(here - there) / np.maximum(np.abs(here), np.abs(there))
    one_sided = np.isfinite(here) != np.isfinite(there)
    return np.where(one_sided, np.inf, np.nan_to_num(apart, nan=0.0))


def _first_variable(
    one: RecordedRun, other: RecordedRun, first: int, last: int, noise: float
) -> tuple[int, str, float] | None:
    names, steps, here = _of_variables(one, "grad_norm", ("steps",), first, last)
    others, other_steps, there = _of_variables(other, "grad_norm", ("steps",), first, last)
    if [one.variables[n] for n in names] != [other.variables[n] for n in others]:
        return None  # other layers: no variable has a counterpart
    _, left, right = np.intersect1d(steps, other_steps, return_indices=True)
    apart = _apart(here[left], there[right])
    found = np.flatnonzero((apart > noise).any(axis=1))
    if not len(found):
        return None
    at = int(apart[found[0]].argmax())
    return int(steps[left[found[0]]]), names[at], float(apart[found[0], at])


def _of_variables(
    run: RecordedRun, quantity: str, stems: Sequence[str], first: int = 0, last: float = np.inf
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """A quantity of the first stream's variables from one step to another, in files of these stems."""
    names: list[str] = []
    steps, values = [np.empty(0, int)], []
    for variables, at, found in run.layer_blocks(stems):
        if quantity not in found or (names and variables != names):
            continue
        names = variables
        wanted = (at >= first) & (at <= last)
        steps.append(at[wanted])
        values.append(found[quantity][wanted])
    return names, np.concatenate(steps), np.concatenate(values) if values else np.empty((0, len(names)))


class Comparison(str):
    """A comparison as a page of HTML, which a notebook shows as a card.

    Attributes:
        summary: where the runs diverge, in a sentence.
    """

    def __new__(cls, page: str, summary: str, card: str) -> Comparison:
        made = super().__new__(cls, page)
        made.summary = summary
        made._card = card
        return made

    summary: str
    _card: str

    def __repr__(self) -> str:
        return f"Comparison({self.summary!r}; as a page: Path('comparison.html').write_text(…))"

    def _repr_html_(self) -> str:
        return self._card


def compare(run_ids: Sequence[str], tracking_uri: str | None = None, since: int = 0) -> Comparison:
    """Returns a comparison of runs as HTML; a notebook shows the settings that differ and the best values.

    Args:
        run_ids: two or more MLflow runs.
        tracking_uri: their store; default: MLflow's current tracking URI.
        since: where they diverge is looked for from this step on.

    Raises:
        ValueError: a run was not monitored, or nothing of it has arrived yet, or there are fewer than two.
        mlflow.MlflowException: there is no such run.

    Example:
        >>> Path("comparison.html").write_text(mlflow_tfmon.compare([first_id, second_id]))
    """
    runs, recorded = _loaded(run_ids, tracking_uri)
    names = _names(runs)
    verdict, good = _verdict(names, recorded, since)
    sections = laid_over(
        [(name, [*training(one), *layers(one)]) for name, one in zip(names, recorded, strict=True)]
    )
    facts = [f"{name}: run {run.info.run_id}" for name, run in zip(names, runs, strict=True)]
    settings = _differing([_params(run) for run in runs])
    lead = (
        Table("Settings that differ", settings, ["setting", *names]),
        Table("Metrics, best", _metrics(runs, best=True), ["metric", *names]),
    )
    final = Table("Metrics, final", _metrics(runs, best=False), ["metric", *names])
    title = "Comparison of " + " and ".join(names if len(names) < 4 else [*names[:3], "others"])
    small = card(
        title, verdict, tables=[(table.head, table.rows[:_CARD_ROWS]) for table in lead if table.rows]
    )
    page = render(
        Page(
            title=title,
            facts=facts,
            verdict=verdict,
            good=good,
            findings=(),
            sections=sections,
            clocks=[clock(one) for one in recorded],
            seams=[seams(one) for one in recorded],
            lead=[table for table in lead if table.rows],
            tables=[final] if final.rows else [],
            runs=names,
        )
    )
    return Comparison(page, verdict, small)


def differences(run_ids: Sequence[str], tracking_uri: str | None = None, since: int = 0) -> dict[str, Any]:
    """Returns in what runs differ, for programs.

    Args:
        run_ids: two or more MLflow runs.
        tracking_uri: their store; default: MLflow's current tracking URI.
        since: as `compare` takes it.

    Returns:
        The runs; by name the settings that differ, and the final and best metrics, each with a value per run (None
        where it has none); and for each run after the first where it diverges from the first, None if it does not, and
        where the bits of their weights do.

    Raises:
        ValueError: as `compare` does.
        mlflow.MlflowException: there is no such run.

    Example:
        >>> differences([first_id, second_id])["partings"]
        [{'step': 12, 'variable': 'net.head.kernel', 'difference': 0.031, 'compared': 500}]
    """
    runs, recorded = _loaded(run_ids, tracking_uri)
    params = [_params(run) for run in runs]
    settings = {key: [one.get(key) for one in params] for key in sorted(set().union(*params))}
    found = [parting(recorded[0], one, since=since) for one in recorded[1:]]
    metrics = [run.data.metrics for run in runs]
    return {
        "runs": [{"id": run.info.run_id, "name": run.info.run_name} for run in runs],
        "settings": {key: values for key, values in settings.items() if len(set(values)) > 1},
        "metrics": {key: list(values) for key, values in metric_table(metrics, best=False)},
        "best": {key: list(values) for key, values in metric_table(metrics, best=True)},
        "partings": [None if one is None else dataclasses.asdict(one) for one in found],
        "bits": [dataclasses.asdict(bits(recorded[0], one, since)) for one in recorded[1:]],
    }


def _params(run: Any) -> dict[str, str]:
    """The params of a run; the number that Keras puts behind an optimizer's name in a process is no difference."""
    found = dict(run.data.params)
    if name := found.get("opt_name"):
        found["opt_name"] = re.sub(r"_\d+$", "", name)
    return found


def _loaded(run_ids: Sequence[str], tracking_uri: str | None) -> tuple[list[Any], list[RecordedRun]]:
    import mlflow

    if len(set(run_ids)) < 2:
        raise InputError("a comparison needs two different runs or more.")
    client = mlflow.MlflowClient(tracking_uri)
    runs = [client.get_run(run_id) for run_id in dict.fromkeys(run_ids)]
    return runs, [load_run(run.info.run_id, tracking_uri) for run in runs]


def _names(runs: Sequence[Any]) -> list[str]:
    names = [run.info.run_name or run.info.run_id for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} {run.info.run_id[:6]}"
        for name, run in zip(names, runs, strict=True)
    ]


def _verdict(names: Sequence[str], recorded: Sequence[RecordedRun], since: int) -> tuple[str, bool | None]:
    """One sentence for all runs with the same result: for many variants, that is most of them."""
    by_text: dict[tuple[str, str, str], list[str]] = {}
    for name, one in list(zip(names, recorded, strict=True))[1:]:
        found = said(parting(recorded[0], one, since=since), names[0], bits(recorded[0], one, since))
        by_text.setdefault(found, []).append(name)
    sentences = [
        f"{runs[0]} {of_one} {rest}"
        if len(runs) == 1
        else f"{', '.join(runs[:-1])} and {runs[-1]} {of_many} {rest}"
        for (of_one, of_many, rest), runs in by_text.items()
    ]
    return "; ".join(sentences) + ".", None


def said(found: Parting | None, first: str, exact: Bits) -> tuple[str, str, str]:
    """A parting in words: the verb for one run and for several, and the rest of the sentence.

    Args:
        found: where runs diverge from the first one, or None.
        first: the name of that one.
        exact: where the bits of their weights do.

    Example:
        >>> said(None, "baseline", Bits(None, "", 11))
        ('is', 'are', 'identical to baseline at every common step, bit for bit in the weights at 11 steps')
    """
    differ = f"; the bits of the weights differ first at step {exact.step} ({exact.variable})"
    if found is None and exact.step is not None:
        return "is", "are", f"within noise of {first} at every common step{differ}"
    same = f"bit for bit in the weights at {exact.compared} step{'s' * (exact.compared != 1)}"
    if found is None:
        return (
            "is",
            "are",
            f"identical to {first} at every common step" + (f", {same}" if exact.compared else ""),
        )
    where = ": data, seed, weights or settings differ from the start" if found.step == 1 else ""
    if found.step > 1 and found.variable:
        where = f" (largest difference: gradient of {found.variable}, {found.difference:.2g})"
    rest = f"from {first} at step {found.step}{where}"
    return "diverges", "diverge", rest + (differ if exact.step is not None and found.step > 1 else "")


def _differing(tables: Sequence[dict[str, str]]) -> list[list[str]]:
    keys = sorted(set().union(*tables))
    rows = [[key, *(table.get(key, "-") for table in tables)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    short = [[row[0], *map(as_people_write, row[1:])] for row in rows]
    return [
        one if len(set(one[1:])) == len(set(row[1:])) else row for one, row in zip(short, rows, strict=True)
    ]


def metric_table(
    runs: Sequence[Mapping[str, float]], best: bool
) -> list[tuple[str, tuple[float | None, ...]]]:
    """The epoch metrics of runs: for each name the value of every run, None where it has none.

    Args:
        runs: the metrics of each run, as MLflow has them; those by step have names with a slash.
        best: whether those of the best epoch (`best/…`) are meant, not the final ones.

    Example:
        >>> metric_table([{"loss": 0.5, "batch/loss": 0.4}, {"loss": 0.7, "val_loss": 0.9}], best=False)
        [('loss', (0.5, 0.7)), ('val_loss', (None, 0.9))]
    """
    keys = sorted({key for run in runs for key in run if ("best/" in key if best else "/" not in key)})
    # MLflow's second name of a `val_` metric.
    twins = {key.replace("val_", "validation_", 1) for key in keys if "val_" in key}
    return [(key, tuple(run.get(key) for run in runs)) for key in keys if key not in twins]


def _metrics(runs: Sequence[Any], best: bool) -> list[list[str]]:
    return [
        [
            as_people_count(key, 0)[0],
            *("-" if value is None else as_people_count(key, value)[1] for value in values),
        ]
        for key, values in metric_table([run.data.metrics for run in runs], best)
    ]
