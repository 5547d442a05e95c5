"""The site's hooks: tables are made of the code, and links to files beside the documentation become plain names."""

from __future__ import annotations

import re
from typing import Any

from mlflow_tfmon.signals import table

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
_TABLE = re.compile(r"<!-- signals: (of_step|of_variable) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    made = _TABLE.sub(lambda found: getattr(table, found[1])(), markdown)
    return _OUTSIDE.sub(r"\1", made)
