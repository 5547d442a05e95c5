"""Problems of a training in MLflow: a tag, a file, and a part of the run's description."""

from __future__ import annotations

import json
import re

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.stream.records import Premises, Problems
from mlflow_tfmon.tags import PROBLEMS_TAG
from mlflow_tfmon.tracking.names import TELEMETRY, clean

TAG = PROBLEMS_TAG
FILE = "tfmon/problems.json"
_BEGIN, _END = "<!-- tfmon.problems -->", "<!-- /tfmon.problems -->"


def kinds(record: Problems) -> str:
    """The tag: the kinds, separated by commas; "none" if the training is clean."""
    return ",".join(dict.fromkeys(one["kind"] for one in record.found)) or "none"


def as_json(record: Problems) -> str:
    """The file."""
    return json.dumps(record.found, indent=1)


def summary(record: Problems) -> str:
    """The part of the description, in Markdown; "" if the training is clean."""
    found = [Problem.from_dict(one) for one in record.found]
    lines = [
        f"- **{plain(str(one.kind))}** ({plain(str(one.severity))}, since step {plain(str(one.first_step))}): "
        f"{plain(str(one.evidence))} *{plain(one.remedy())}*"
        for one in found
    ]
    return "\n".join(["**Problems of this training** (mlflow_tfmon)", "", *lines]) if lines else ""


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
