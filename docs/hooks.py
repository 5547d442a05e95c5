"""The site's hooks: tables are made of the code, and links to files beside the documentation become plain names."""

from __future__ import annotations

import inspect
import re
from typing import Any

from mlflow_tfmon.detectors import CAUSES, OUTCOMES
from mlflow_tfmon.detectors.thresholds import kind_of, thresholds
from mlflow_tfmon.signals import table

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
_TABLE = re.compile(r"<!-- signals: (of_step|of_variable) -->")
_THRESHOLDS = "<!-- thresholds -->"


def _thresholds() -> str:
    """The thresholds of all detectors, as the docstrings of their functions describe them."""
    rows = [("kind", "threshold", "default", "meaning"), ("---",) * 4]
    for detect in sorted((*CAUSES, *OUTCOMES), key=kind_of):
        text = inspect.getdoc(detect) or ""
        for name, default in thresholds(detect).items():
            found = re.search(rf"^    {name}: (.+(?:\n {{8}}.+)*)\.$", text, re.MULTILINE)
            meaning = re.sub(r"\s+", " ", found[1]) if found else ""
            rows.append((f"`{kind_of(detect)}`", f"`{name}`", f"{default:g}", meaning))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    made = _TABLE.sub(lambda found: getattr(table, found[1])(), markdown)
    made = made.replace(_THRESHOLDS, _thresholds())
    return _OUTSIDE.sub(r"\1", made)
