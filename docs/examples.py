"""The reference's examples: griffe takes those under "Examples:" for code, our docstrings say "Example:"."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Names the examples of each docstring as griffe wants them named."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called with each object that is documented."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:(?=\n +>>>)", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
