"""The page: one self-contained HTML file, including the charting library (Apache ECharts).

All text goes through Jinja's escaping, all data as JSON in which no `<` is left, and the script writes text only: a
run or a variable named `<script>` is a name like any other. A browser runs no script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlflow_tfmon.facts.examples import PNG
from mlflow_tfmon.report.panels import Panel, Section

_HERE = Path(__file__).parent
_SEAMS = 8  # that are told in words


@dataclass(frozen=True)
class Finding:
    """A problem as the page shows it.

    Attributes:
        kind: such as "plateau".
        severity: "warning" or "critical".
        where: steps and variables.
        evidence: what was seen.
        advice: what to do; of a consequence of another problem, that it is one.
        follows: whether it is one.
        panel: key of the panel that shows it.
        steps: from which step to which.
    """

    kind: str
    severity: str
    where: str
    evidence: str
    advice: str
    panel: str
    steps: tuple[int, int]
    follows: bool = False


@dataclass(frozen=True)
class Example:
    """The example of a bad step's batch that stands out most, or its first one.

    Attributes:
        title: which step and example.
        text: what is seen in the batch.
        picture: the example as a `data:` address of a PNG, if it is a picture, else "".
        rows: else its values: what they are, its own, and the batch's median.
    """

    title: str
    text: str
    picture: str = ""
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Slides:
    """What the model gives for a few examples at the ends of epochs, of which the page shows one at a time.

    Attributes:
        title: of the part.
        fixed: names of what an example has, such as "input" and "target".
        changing: names of what the model gives for it.
        examples: of each example the texts (or `data:` addresses of pictures) by the names in `fixed`.
        labels: of each epoch.
        cells: of each epoch, of each example, by the names in `changing`.
        right: of each epoch, of each example; None where that can't be told.
        pictures: whether any of it is a picture.
    """

    title: str
    fixed: Sequence[str]
    changing: Sequence[str]
    examples: Sequence[Sequence[str]]
    labels: Sequence[str]
    cells: Sequence[Sequence[Sequence[str]]]
    right: Sequence[Sequence[bool | None]]
    pictures: bool = False


@dataclass(frozen=True)
class Table:
    """A table of facts: rows of text, the first column being what the others are of."""

    title: str
    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Contents of the page, from top to bottom.

    Attributes:
        title: of the run.
        facts: short lines under the title.
        verdict: one sentence.
        good: whether the verdict is good; None if nothing was judged.
        findings: the problems.
        sections: panels.
        clocks: of each run, to tell epochs and minutes of steps: lists "step", "epoch", "minutes" of one length.
        seams: of each run, where a further training goes on: the step, and what it is.
        lead: tables above the panels.
        tables: below the panels.
        code: how to go on, lines of Python with what they do before each.
        runs: names of the runs, where there are several.
        examples: of the batches of bad steps.
        slides: what the model predicts.
    """

    title: str
    facts: Sequence[str]
    verdict: str
    good: bool | None
    findings: Sequence[Finding]
    sections: Sequence[Section]
    clocks: Sequence[Mapping[str, Sequence[float]]]
    seams: Sequence[Sequence[tuple[int, str]]]
    lead: Sequence[Table] = ()
    tables: Sequence[Table] = ()
    code: Sequence[tuple[str, str]] = ()
    runs: Sequence[str] = ()
    examples: Sequence[Example] = ()
    slides: Sequence[Slides] = ()


def render(page: Page) -> str:
    """The page as HTML."""
    seams = [
        f"{what} from step {step} on{f' of {page.runs[run]}' if page.runs else ''}"
        for run, found in enumerate(page.seams)
        for step, what in found[:_SEAMS]
    ]
    panels = {panel.key: panel for section in page.sections for panel in section.panels}
    data = {
        "clocks": list(page.clocks),
        "seams": list(page.seams),
        "runs": list(page.runs),
        "slides": [{"labels": one.labels, "cells": one.cells, "right": one.right} for one in page.slides],
        "panels": {key: _data(panel) for key, panel in panels.items()},
    }
    loader = jinja2.FileSystemLoader(_HERE / "page")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    library, script = _raw("vendor/echarts.min.js"), _raw("page/report.js")
    return environment.get_template("report.html").render(
        page=page,
        png=PNG,
        policy=_policy(library, script),
        seams=", ".join(seams),
        panels=panels,
        style=_raw("page/report.css"),
        script=script,
        library=library,
        data=Markup(as_json(data)),
    )


def as_json(data: Any) -> str:
    r"""JSON that can stand within a `<script>` element; a dataclass is an object of its fields.

    Example:
        >>> as_json({"a": "</script>"})
        '{"a":"\\\\u003c/script>"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True, default=vars)
    return text.replace("<", "\\u003c")


def _policy(*scripts: str) -> str:
    """What a browser may do with the page: run these scripts, and load nothing from anywhere.

    Styles are free: the library writes some into what it shows at the pointer (ECharts 6.1), and they can load nothing.
    """
    hashes = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _raw(name: str) -> Markup:
    return Markup((_HERE / name).read_text("utf-8"))


def _data(panel: Any) -> dict[str, Any]:
    return {**vars(panel), "kind": "curves" if isinstance(panel, Panel) else "cells"}
