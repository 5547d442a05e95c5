"""Names that MLflow accepts, for any metric, param or tag; and the names that readers look for."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

TELEMETRY, HISTOGRAMS = "tfmon/telemetry", "tfmon/histograms"  # folders of the run's artifacts
REPORT = "tfmon/report.html"  # artifact of the run
EVIDENCE = "tfmon/evidence"  # folder of the folders of bad steps, with these files
PREDICTIONS = "tfmon/predictions"  # folder of what the model predicts at epochs' ends
ABOUT, BATCH = "about.json", "batch.npz"
STACKS = "tfmon/stacks.txt"  # of a training that has stalled: where each thread is
# With `tensorboard`: the model's layers, the training's graph, and the folder of the event files.
MODEL, GRAPH, EVENT_FILES = "tfmon/model.json", "tfmon/graph.pbtxt", "tfmon/tensorboard"
MODEL_ID = re.compile(r"[\w\-]+")  # of a logged model: nothing that reads as another address
MAX_LENGTH = 250
_REFUSED = re.compile(r"[^/\w.\- :]")
_run_names = Counter[str]()  # how often each was given in this process


def run_name() -> str:
    """A name for a run that is made now: the script's and the time, such as "train 2026-11-30 14:03:22".

    MLflow would draw one from Python's random numbers, which are the training's, and scripts that set a seed would all
    give their runs one name. Runs that are made within a second are numbered.
    """
    name = f"{_script()} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    _run_names[name] += 1
    return name if _run_names[name] == 1 else f"{name} ({_run_names[name]})"


def _script() -> str:
    """What the process runs: the stem of its script, of a package that is run (`python -m`) its name."""
    if "ipykernel" in sys.modules:
        return "notebook"
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None:
        return "interactive" if hasattr(sys, "ps1") else "python"
    stem = Path(path).stem
    return (Path(path).absolute().parent.name if stem == "__main__" else stem)[:100] or "python"


def evidence_folder(prefix: str, step: int) -> str:
    """The folder, among a run's artifacts, of the batch of a step.

    Example:
        >>> evidence_folder("generator.", 151)
        'tfmon/evidence/generator.step-151'
    """
    return f"{EVIDENCE}/{_of_stream(prefix)}step-{step}"


def predictions_file(prefix: str, what: str) -> str:
    """A file of predictions, among a run's artifacts.

    Example:
        >>> predictions_file("", "epoch-00004")
        'tfmon/predictions/epoch-00004.json'
    """
    return f"{PREDICTIONS}/{_of_stream(prefix)}{what}.json"


def _of_stream(prefix: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", prefix)


def clean(name: str) -> str:
    """The nearest name that MLflow accepts: the name itself wherever it can be.

    MLflow takes letters, digits and `_ . - : space /`, at most 250 of them, and no name that reads as another path
    ("a//b", "../a"). What it refuses becomes "_"; a name that is too long ends in a hash of the whole.

    Example:
        >>> clean("acc@5")
        'acc_5'
    """
    parts = _REFUSED.sub("_", name).split("/")
    cleaned = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if cleaned.startswith(".."):  # which MLflow takes for a path upwards, whatever follows
        cleaned = "_" + cleaned[1:]
    return cleaned if len(cleaned) <= MAX_LENGTH else _marked(cleaned, name)


class Names:
    """Gives each name its clean form; two names never share one.

    The first to need a form gets it, a later one gets a hash of its own added, so the same names in the same order
    always give the same forms.

    Example:
        >>> names = Names()
        >>> names("acc@5"), names("acc#5")
        ('acc_5', 'acc_5-2ef7bde6')
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    @property
    def given(self) -> dict[str, str]:
        """The forms that were given: name -> form."""
        return self._given

    def restore(self, given: Mapping[str, str]) -> None:
        """Goes on as those that gave these forms would have."""
        self._given, self._taken = dict(given), set(given.values())

    def __call__(self, name: str) -> str:
        given = self._given.get(name)
        if given is None:
            given = clean(name)
            while given in self._taken:
                given = _marked(given, name + given)
            self._given[name] = given
            self._taken.add(given)
        return given


def _marked(cleaned: str, name: str) -> str:
    mark = "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return cleaned[: MAX_LENGTH - len(mark)] + mark
