"""Formats of a verdict: text for a terminal, JSON, JUnit XML, and Markdown for the comment of a pull request."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

from mlflow_tfmon import tables
from mlflow_tfmon.detectors import KINDS, Problem
from mlflow_tfmon.report.condition import Outcome
from mlflow_tfmon.report.verdict import Baseline, Verdict
from mlflow_tfmon.tracking.findings import plain
from mlflow_tfmon.uris import visible, without_secrets

_NOT_XML = re.compile("[\ufffe\uffff]")  # what `visible` leaves of what XML 1.0 cannot hold
_CLASS = "mlflow_tfmon"  # as which CI services group the cases


def text(verdict: Verdict) -> str:
    """The verdict for a terminal: in a line, then problems (the cause first), conditions and the comparison."""
    lines = [f"{verdict.word}: run {verdict.name} ({verdict.run_id}): {verdict.why}"]
    lines += [f"{one.severity}: {one.line()}" for one in verdict.problems] or [f"none: {_searched(verdict)}"]
    lines += [f"{one.condition.text}: {_value(one)}: {_said(one)}" for one in verdict.outcomes]
    base = verdict.baseline
    if base is not None:
        head, *rows = _rows(base)
        lines += [tables.table([[one.upper() for one in head], *rows])] if rows else []
        lines += [base.sentence, *_about_noise(base)]
    return visible(without_secrets("\n".join(lines)))


def as_json(verdict: Verdict) -> str:
    """The verdict as JSON; a number that is not finite is a text, since JSON has none."""
    base = verdict.baseline
    content: dict[str, Any] = {
        "verdict": verdict.word,
        "why": verdict.failures or verdict.unknowns,
        "run": {
            "id": verdict.run_id,
            "name": verdict.name,
            "ended": verdict.ended,
            "complete": verdict.complete,
        },
        "steps": verdict.steps,
        "epochs": verdict.epochs,
        "problems": [
            {**dataclasses.asdict(one), "fails": verdict.failing.fails(one)} for one in verdict.problems
        ],
        "conditions": [
            {"condition": one.condition.text, "value": one.value, "at": one.at, "holds": one.holds}
            for one in verdict.outcomes
        ],
        "baseline": None
        if base is None
        else {
            "id": base.run_id,
            "name": base.name,
            "metrics": {
                name: {"run": here, "baseline": there} for name, (here, there) in base.metrics.items()
            },
            "noise": base.noise,
            "earlier": base.earlier,
            "parting": None if base.parting is None else dataclasses.asdict(base.parting),
        },
    }
    return tables.as_json(content)


def junit(verdict: Verdict) -> str:
    """The verdict as JUnit XML: a case for each kind of problem and each condition, and one for the run's end.

    The kinds have the same names in each build, so that a CI service tells which are new and which are mended.
    """
    suite = ElementTree.Element("testsuite", name=_CLASS)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("run_id", verdict.run_id), ("run_name", verdict.name), ("verdict", verdict.word)):
        ElementTree.SubElement(properties, "property", name=name, value=_xml(value))
    found: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
    for problem in verdict.problems:  # also of another package's kind
        found.setdefault(problem.kind, []).append(problem)
    for kind, problems in found.items():
        case = _case(suite, "problems", kind)
        for problem in problems:
            line = f"{problem.severity}: {problem.line()}"
            if verdict.failing.fails(problem):
                _because(case, "failure", line, problem.severity)
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(line)
    for outcome in verdict.outcomes:
        case = _case(suite, "metrics", outcome.condition.text)
        if not outcome.holds:
            kind = "failure" if verdict.breaks(outcome) else "error"
            _because(case, kind, f"{_value(outcome)}: {_said(outcome)}", "metric")
    case = _case(suite, "run", "ended and recorded")
    if verdict.broke_off:
        _because(case, "failure", f"the run ended as {verdict.ended}", "run")
    elif not verdict.complete or not verdict.steps:
        _because(case, "error", "; ".join(verdict.unknowns) or verdict.why, "run")
    if verdict.baseline is not None:
        ElementTree.SubElement(suite, "system-out").text = _xml(text(verdict))
    for name, of in (("tests", "testcase"), ("failures", "testcase/failure"), ("errors", "testcase/error")):
        suite.set(name, str(len(suite.findall(of))))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8").decode("utf-8")  # "unicode" declares the locale's encoding


def markdown(verdict: Verdict, picture: str = "") -> str:
    """The verdict as a comment: first the verdict, then problems (the cause first), conditions and the comparison.

    Args:
        verdict: the verdict.
        picture: where the picture of the losses is, as seen from where the comment is; "" for none.
    """
    lines = [f"## Training check: {verdict.word}", "", f"Run **{_md(verdict.name)}**: {_md(verdict.why)}."]
    if verdict.problems:
        lines += ["", "### Problems", ""]
        for one in verdict.problems:
            fails = ", fails the check" if verdict.failing.fails(one) else ""
            since = f"since step {one.first_step}" if one.first_step else "from the start"
            where = f" in {_md(', '.join(one.variables[:3]))}" if one.variables else ""
            lines.append(
                f"- **{_md(one.kind)}** ({_md(one.severity)}{fails}){where} {since}: {_md(one.evidence)} "
                f"*{_md(one.remedy())}*"
            )
    if verdict.outcomes:
        lines += ["", "### Conditions", "", "| condition | value | |", "|---|---:|---|"]
        lines += [f"| {_md(one.condition.text)} | {_value(one)} | {_said(one)} |" for one in verdict.outcomes]
    base = verdict.baseline
    if base is not None:
        lines += ["", f"### Against {_md(base.name)}", "", _md(base.sentence)]
        head, *rows = _rows(base)
        if rows:
            lines += ["", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
            lines += [f"| {' | '.join(map(_md, row))} |" for row in rows]
        lines += [part for line in _about_noise(base) for part in ("", line)]
        lines += ["", f"![Loss of both runs](<{picture}>)"] if picture else []
    lines += ["", f"<sub>Run {_md(verdict.run_id)}; {_searched(verdict)}.</sub>", ""]
    return "\n".join(lines)


FORMATS: Mapping[str, Callable[[Verdict], str]] = {
    "text": text,
    "json": as_json,
    "junit": junit,
    "markdown": markdown,
}


def _searched(verdict: Verdict) -> str:
    searched = f"{verdict.steps:,} steps and {verdict.epochs:,} epochs"
    return f"{searched} were searched for {len(KINDS)} kinds of problems"


def _rows(base: Baseline) -> list[tuple[str, ...]]:
    """The table of a comparison, its heading first; how much a metric varies is told where that is known."""
    noise = ("noise",) if base.noise else ()
    found: list[tuple[str, ...]] = [("metric", "run", "baseline", "change", *noise)]
    for name, (here, there) in base.metrics.items():
        if name.endswith("best/epoch"):  # which people count from 1
            continue
        change = "-" if here is None or there is None else f"{here - there:+.4g}"
        varies = [f"{base.noise[name]:.2g}" if name in base.noise else "-"] if noise else []
        found.append((name, _number(here), _number(there), change, *varies))
    return found


def _about_noise(base: Baseline) -> list[str]:
    if not base.noise:
        return []
    return [
        f"Noise: the median absolute deviation over {base.earlier} earlier runs of the experiment with the baseline's "
        "params (but for seeds)."
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _value(outcome: Outcome) -> str:
    """The value; of the best one also its epoch, which people count from 1, as Keras does."""
    if outcome.value is None:
        return "not recorded"
    best = outcome.condition.best and outcome.at is not None
    return _number(outcome.value) + (f" (epoch {outcome.at + 1})" if best and outcome.at is not None else "")


def _said(outcome: Outcome) -> str:
    return "unknown" if outcome.value is None else "holds" if outcome.holds else "does not hold"


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"{_CLASS}.{group}", name=_xml(name))


def _because(case: ElementTree.Element, tag: str, line: str, kind: str) -> None:
    ElementTree.SubElement(case, tag, message=_xml(line), type=_xml(kind)).text = _xml(line)


def _xml(text: str) -> str:
    """Text that XML can hold, without secrets."""
    return _NOT_XML.sub("\ufffd", visible(without_secrets(text)))


def _md(text: str) -> str:
    """Text that stays text within a line of Markdown, and calls nobody who is named in it."""
    return plain(" ".join(visible(without_secrets(text)).split())).replace("@", "@<!-- -->")
