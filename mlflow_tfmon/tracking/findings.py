"""Problems of a training in MLflow: a tag, a file, and a part of the run's description."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.stream.records import Premises, Problems
from mlflow_tfmon.tags import (
    COMMAND_TAG,
    PROBLEMS_TAG,
    PROGRESS_TAG,
    REACHED_TAG,
    RESCUES_TAG,
    STALLED_TAG,
    STOPPED_TAG,
    pointer,
)
from mlflow_tfmon.tracking.chart_view import CHARTS, TRAININGS
from mlflow_tfmon.tracking.names import MODEL_ID, REPORT, TELEMETRY, clean

if TYPE_CHECKING:
    from mlflow.entities import Run

TAG = PROBLEMS_TAG
FILE, DIAGNOSIS = "tfmon/problems.json", "tfmon/diagnosis.md"
_CLEAN = "No problem was found in this training."
_MORE = (
    "- Curves, layers and histograms: the artifact `tfmon/report.html`.",
    "- All that was recorded, as pandas: `mlflow_tfmon.load_run(run_id)`; as files: `tfmon/telemetry`.",
    "- The same as JSON: `tfmon/problems.json`; judged again: `mlflow-tfmon diagnose RUN`.",
    "- For agents: `mlflow-tfmon mcp` answers from the recording.",
    "- What each kind means: the page Problems of the documentation.",
)
# The params of a fit that tell most of it, and what people call them.
_SETTINGS = {
    "opt_name": "optimizer", "opt_learning_rate": "learning rate", "batch_size": "batch size", "epochs": "epochs",
}  # fmt: skip
# Of the description that are ours, in their order. MLflow's page (3.17) shows five lines; a button shows the rest.
_PARTS = ("problems", "run", "others")


def kinds(record: Problems) -> str:
    """The tag: the kinds, separated by commas; "none" if the training is clean."""
    return ",".join(dict.fromkeys(one["kind"] for one in record.found)) or "none"


def as_json(record: Problems) -> str:
    """The file."""
    return json.dumps(record.found, indent=1)


def summary(record: Problems) -> str:
    """The first part of the description, in Markdown: the verdict in one sentence, and what to do."""
    return next(_remedied(record), _CLEAN)


def others(record: Problems) -> str:
    """The last part of the description: the problems after the first, which are often its consequences."""
    return "\n".join(f"- {one}" for one in list(_remedied(record))[1:])


def _remedied(record: Problems) -> Iterator[str]:
    for one in map(Problem.from_dict, record.found):
        yield f"{_said(one)} *{plain(one.remedy())}*"


def diagnosis(found: Sequence[Problem], run: Run) -> str:
    """The file that says why, for people and programs: the verdict, what was trained, then cause, evidence and remedy.

    Args:
        found: the problems, the cause first.
        run: of MLflow, which knows what was trained and how far it has come.
    """
    lines = ["# Diagnosis", "", _said(found[0]) if found else _CLEAN, "", "## What was trained", ""]
    lines += [f"- {name}: {plain(text)}" for name, text in _trained(run)]
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
        follows = [other for other in found if other.consequence_of == one.kind]
        lines += [f"- A consequence: {_said(other)}" for other in follows]
    lines += ["", "## More", "", *_MORE]
    return "\n".join(lines) + "\n"


def _trained(run: Run) -> Iterator[tuple[str, str]]:
    """What is known of a training in a few lines: name and text of each."""
    info, params, tags = run.info, run.data.params, run.data.tags
    yield "Run", f"{info.run_name or 'no name'} ({info.run_id}), {info.status.lower()}"
    settings = [f"{label} {_plainly(params[name])}" for name, label in _SETTINGS.items() if name in params]
    last = [f"{name} {value:.4g}" for name, value in sorted(run.data.metrics.items()) if "/" not in name]
    rows = (
        ("Command", tags.get(COMMAND_TAG) or tags.get("mlflow.source.name", "")),
        ("Settings", ", ".join(settings)),
        ("Came to", tags.get(PROGRESS_TAG, "")),
        ("Last finite metrics", ", ".join(last)),
        ("Best", ", ".join(f"{of}{name} {value:.4g}{at}" for of, name, value, at in best_epochs(run))),
        ("Stopped", tags.get(STOPPED_TAG, "")),
        ("Rescued", tags.get(RESCUES_TAG, "")),
        ("Stalled", tags.get(STALLED_TAG, "")),
    )
    yield from ((name, text) for name, text in rows if text)


def _plainly(param: str) -> str:
    """A param without the digits of single precision, or those of an optimizer's name, such as "sgd_1"."""
    try:
        return f"{float(param):.6g}"
    except ValueError:
        return re.sub(r"_\d+$", "", param)


def best(metrics: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    """The best value and its epoch (from 0; None if unknown) of each monitored metric of a run, by name.

    Example:
        >>> best({"best/val_loss": 0.2, "best/epoch": 6.0, "loss": 0.1})
        {'val_loss': {'value': 0.2, 'epoch': 6.0}}
    """
    found: dict[str, dict[str, float | None]] = {}
    for key, value in metrics.items():
        prefix, is_best, name = key.rpartition("best/")
        if is_best and name != "epoch":
            found[prefix + name] = {"value": value, "epoch": metrics.get(f"{prefix}best/epoch")}
    return found


def best_epochs(run: Run) -> Iterator[tuple[str, str, float, str]]:
    """The best values of a run: prefix of its series, name, value, and " at epoch 5 of 12" if that is known."""
    metrics = run.data.metrics
    done = Past.from_text(run.data.tags.get(REACHED_TAG)).epochs
    for key, value in sorted(metrics.items()):
        prefix, is_best, name = key.rpartition("best/")
        if is_best and name != "epoch":
            epoch, of = metrics.get(f"{prefix}best/epoch"), done.get(prefix)
            at = "" if epoch is None else f" at epoch {epoch + 1:.0f}"
            at += f" of {max(of, int(epoch) + 1)}" if epoch is not None and of else ""  # the tag comes later
            yield prefix, name, value, at


def _said(one: Problem) -> str:
    since = f"since step {one.first_step}" if one.first_step else "from the start"
    return f"**{plain(one.kind)}** ({plain(one.severity)}) {since}: {plain(one.evidence)}"


def with_part(description: str, text: str, part: str = "problems") -> str:
    """A description with `text` in the place of a part of ours, below what the user wrote; "" takes it away."""
    texts: dict[str, str] = {}
    for name in _PARTS:
        ours = re.compile(rf"\n*<!-- tfmon\.{name} -->\n(.*?)\n<!-- /tfmon\.{name} -->", re.DOTALL)
        if found := ours.search(description):
            texts[name] = found[1]
        description = ours.sub("", description)
    texts[part] = text
    for name in _PARTS:
        if texts.get(name):
            description += f"\n\n<!-- tfmon.{name} -->\n{texts[name]}\n<!-- /tfmon.{name} -->"
    return description.lstrip("\n")


def about(run: Run, report: bool) -> str:
    """The part of the description that says what came of a run: its best epochs, how to load its models, where to look.

    Args:
        run: MLflow's run.
        report: whether it has a report, or will have one soon.
    """
    info, found, code = run.info, list[str](), list[str]()
    # Addresses within MLflow's page (seen with 3.17), whatever the server is called outside.
    here = f"#/experiments/{info.experiment_id}/runs"
    for prefix, name, value, at in best_epochs(run):
        found.append(f"Best {plain(prefix + name)}: **{value:.5g}**{at}")
        model_id = run.data.tags.get(pointer("best_model", prefix), "")
        if MODEL_ID.fullmatch(model_id):
            code.append(f'- `mlflow.tensorflow.load_model("models:/{model_id}")`')
    if report:
        found.append(f"[The report]({here}/{info.run_id}/artifacts/{REPORT}?{TRAININGS})")
    found.append(f"[Charts of this experiment's runs]({here}?{CHARTS})")
    return "\n".join([" · ".join(found), "", *code]).strip()


def premises_file(record: Premises) -> tuple[str, str]:
    """Path and text of the file that keeps the premises of a training, for judging it again."""
    name = clean(record.prefix.rstrip(".")).replace("/", ".") or "model"
    text = json.dumps({"prefix": record.prefix, "step": record.step, "about": record.about})
    further = f"-{record.step}" if record.step else ""  # a further fit's
    return f"{TELEMETRY}/premises-{name}{further}.json", text


def plain(text: str) -> str:
    """Text in which Markdown and HTML see nothing but text (a layer may have any name)."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", text)
