"""Problems of a training in MLflow: a tag, a file, and a part of the run's description."""

from __future__ import annotations

import json
import re

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.stream.records import Premises, Problems
from mlflow_tfmon.tags import PROBLEMS_TAG
from mlflow_tfmon.tracking.names import TELEMETRY, clean

TAG = PROBLEMS_TAG
FILE, DIAGNOSIS = "tfmon/problems.json", "tfmon/diagnosis.md"
_CLEAN = "No problem was found in this training."
_MORE = (
    "- Curves, layers and histograms: the artifact `tfmon/report.html`.",
    "- All that was recorded, as pandas: `mlflow_tfmon.load_run(run_id)`; as files: `tfmon/telemetry`.",
    "- The same as JSON: `tfmon/problems.json`; judged again: `mlflow-tfmon diagnose RUN`.",
    "- What each kind means: the page Problems of the documentation.",
)
_BEGIN, _END = "<!-- tfmon.problems -->", "<!-- /tfmon.problems -->"


def kinds(record: Problems) -> str:
    """The tag: the kinds, separated by commas; "none" if the training is clean."""
    return ",".join(dict.fromkeys(one["kind"] for one in record.found)) or "none"


def as_json(record: Problems) -> str:
    """The file."""
    return json.dumps(record.found, indent=1)


def summary(record: Problems) -> str:
    """The part of the description, in Markdown: the verdict in one sentence, what to do, and what else there is."""
    first, others = _first(record)
    if first is None:
        return _CLEAN
    lines = [f"{_said(first)} *{plain(first.remedy())}*"]
    lines += [f"- {_said(one)} *{plain(one.remedy())}*" for one in others]
    return "\n\n".join([lines[0], "\n".join(lines[1:])]).strip()


def diagnosis(record: Problems) -> str:
    """The file that says why, for people and programs: the cause, its evidence and remedy, what follows from it."""
    first, others = _first(record)
    found = [one for one in (first, *others) if one is not None]
    lines = ["# Diagnosis", "", _said(first) if first is not None else _CLEAN]
    for one in [one for one in found if not one.consequence_of]:
        lines += ["", f"## {plain(one.kind)}", "", f"- Evidence: {plain(one.evidence)}"]
        lines.append(
            f"- Steps: {one.first_step or 'before the first'} to {max(one.last_step, one.first_step)}"
        )
        lines += [f"- Where: {plain(', '.join(one.variables))}"] if one.variables else []
        lines += [
            f"- What to do: {plain(one.advice)}",
            f"- Severity: {plain(one.severity)}; confidence: {one.confidence:.0%}",
        ]
        follows = [other for other in others if other.consequence_of == one.kind]
        lines += [f"- A consequence: {_said(other)}" for other in follows]
    lines += ["", "## More", "", *_MORE]
    return "\n".join(lines) + "\n"


def _first(record: Problems) -> tuple[Problem | None, list[Problem]]:
    found = [Problem.from_dict(one) for one in record.found]
    return (found[0], found[1:]) if found else (None, [])


def _said(one: Problem) -> str:
    since = f"since step {one.first_step}" if one.first_step else "from the start"
    return f"**{plain(one.kind)}** ({plain(one.severity)}) {since}: {plain(one.evidence)}"


def with_part(description: str, text: str) -> str:
    """A description with `text` in the place of our part of it, which is below what the user wrote."""
    part = re.compile(r"\n*" + re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    left = part.sub("", description)
    return f"{left}\n\n{_BEGIN}\n{text}\n{_END}".lstrip("\n") if text else left


def premises_file(record: Premises) -> tuple[str, str]:
    """Path and text of the file that keeps the premises of a training, for judging it again."""
    name = clean(record.prefix.rstrip(".")).replace("/", ".") or "model"
    text = json.dumps({"prefix": record.prefix, "step": record.step, "about": record.about})
    further = f"-{record.step}" if record.step else ""  # a further fit's
    return f"{TELEMETRY}/premises-{name}{further}.json", text


def plain(text: str) -> str:
    """Text in which Markdown and HTML see nothing but text (a layer may have any name)."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", text)
