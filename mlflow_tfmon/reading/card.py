"""Cards: what a notebook shows of a recorded run or of a comparison, as a small piece of HTML without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from mlflow_tfmon.detectors.problem import Problem

_POINTS, _WIDTH, _HEIGHT = 200, 240, 48  # of a curve, pixels
_LOG = 30.0  # times the median of a curve
_CARD = "border:1px solid #8886;border-radius:8px;padding:10px 16px;max-width:820px;font:14px/1.5 system-ui,sans-serif"


def card(
    title: str,
    verdict: str,
    facts: Sequence[str] = (),
    curves: Mapping[str, np.ndarray] | None = None,
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]] = (),
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """A card as HTML; all text in it is shown as it is.

    Args:
        title: of what it shows.
        verdict: a line, or several.
        facts: short lines.
        curves: values by name, each drawn.
        tables: heads and rows.
        links: words and where they lead.

    Example:
        >>> "<b>" in card("a run", "<b>")
        True
    """
    parts = [f"<b>{escape(title)}</b>", *(f"<div>{escape(line)}</div>" for line in verdict.splitlines())]
    parts += [f'<div style="opacity:.7">{escape(fact)}</div>' for fact in facts]
    drawn = [
        f'<span style="display:inline-block;margin:8px 24px 0 0">{_drawn(values)}<br>'
        f'<span style="opacity:.7">{escape(name)}: {values[-1]:.4g}</span></span>'
        for name, values in (curves or {}).items()
        if len(values) > 1
    ]
    parts += ["<div>", *drawn, "</div>"] if drawn else []
    for head, rows in tables:
        lines = [_row("th", head), *(_row("td", row) for row in rows)]
        parts.append(f'<div style="overflow-x:auto"><table>{"".join(lines)}</table></div>')
    led = [
        f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(words)}</a>'
        for words, address in links
    ]
    parts += [f"<div>{' · '.join(led)}</div>"] if led else []
    return f'<div style="{_CARD}">{"".join(parts)}</div>'


def verdict_of(problems: Sequence[Problem], complete: bool) -> str:
    """What a card says of problems, the first of which is the cause of others."""
    if problems:
        return "\n".join(f"{one.severity}: {one.line()}" for one in problems[:3])
    return "No problem was found." if complete else "No problem was found so far."


def _row(cell: str, row: Sequence[str]) -> str:
    head = f'<{cell} style="text-align:left;padding:2px 20px 2px 0">'
    return f"<tr>{''.join(f'{head}{escape(one)}</{cell}>' for one in row)}</tr>"


def _drawn(values: np.ndarray) -> str:
    """A curve as SVG: the mean of each stretch, by its logarithm where one would see nothing of most of them."""
    parts = np.array_split(values, min(_POINTS, len(values)))
    means = np.array([part.mean() for part in parts])
    if means.min() > 0 and means.max() > _LOG * np.median(means):
        means = np.log(means)
    low, span = means.min(), np.ptp(means) or 1.0
    across = np.linspace(1, _WIDTH - 1, len(means))
    down = _HEIGHT - 2 - (means - low) / span * (_HEIGHT - 4)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img"><polyline points="{line}" fill="none" stroke="#3a9bd6" '
        'stroke-width="1.5"/></svg>'
    )
