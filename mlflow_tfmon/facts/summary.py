"""The model's summary as a text artifact."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from mlflow_tfmon.stream.records import Text


def can_summarize(model: Any) -> bool:
    """Whether the model is built, so that a summary would show its shapes and parameters."""
    return bool(getattr(model, "built", False)) and all(layer.built for layer in model.layers)


def model_summary(model: Any) -> Text:
    """The table that `model.summary()` prints.

    Args:
        model: a Keras model. Before it is built (`can_summarize`), the table has question marks for shapes.

    Returns:
        The record of the artifact `model_summary.txt`.

    Example:
        >>> model_summary(model).path
        'model_summary.txt'
    """
    lines: list[str] = []
    with _undisplayed():
        model.summary(print_fn=lambda line, *_, **__: lines.append(line))
    return Text("model_summary.txt", "\n".join(lines))


def _undisplayed() -> contextlib.AbstractContextManager[Any]:
    """Keeps an empty output out of a notebook's cell, which rich, by which Keras draws the table, would leave there."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        return contextlib.nullcontext()
    from IPython.utils.capture import capture_output

    return capture_output(stdout=False, stderr=False)
