"""Picture of the losses of two runs as a small SVG, for a comment or a page that shows images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from mlflow_tfmon.uris import visible, without_secrets

Curve = Sequence[tuple[int, float]]  # steps and finite losses

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 240, 64, 12, 30, 24  # px
_COLORS = ("#1f77b4", "#ff7f0e")  # seen on white and on black
_GRAY = "#808080"
_WIDE = 100.0  # ratio of the largest to the least loss from which the axis is logarithmic


def losses(curves: Sequence[tuple[str, Curve]], parting: int | None = None) -> str:
    """The losses of runs over their steps.

    Args:
        curves: name and loss of each run, two at most; one that is empty is left out.
        parting: step at which a line shows that they part, or None.

    Returns:
        The SVG; a logarithmic axis is named in it.
    """
    points = [point for _, curve in curves for point in curve] or [(0, 0.0), (1, 1.0)]
    steps, values = [step for step, _ in points], [value for _, value in points]
    first, last, least, most = min(steps), max(steps), min(values), max(values)
    log = least > 0 and most / least > _WIDE

    def scaled(value: float) -> float:
        return math.log(value) if log else value

    low, high = scaled(least), scaled(most)

    def x(step: float) -> float:
        return _LEFT + (step - first) / max(1, last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share = (scaled(value) - low) / (high - low) if high > low else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'font-family="sans-serif" font-size="12" fill="{_GRAY}">',
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="{_GRAY}"/>',
    ]
    for value, at in ((most, _TOP + 8), (least, _HEIGHT - _BOTTOM)):
        lines.append(f'<text x="{_LEFT - 6}" y="{at}" text-anchor="end">{value:.4g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        lines.append(f'<text x="{x(step):.0f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">step {step:,}</text>')
    if parting is not None and first <= parting <= last:
        lines.append(
            f'<path d="M{x(parting):.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="{_GRAY}" stroke-dasharray="4 3"/>'
        )
    place = float(_LEFT)
    for (name, curve), color in zip(curves, _COLORS, strict=False):
        if curve:
            drawn = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve)
            lines.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        shown = _short(name)
        lines.append(f'<text x="{place:.0f}" y="16" fill="{color}">{escape(shown)}</text>')
        place += 8 * len(shown) + 24
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="16" text-anchor="end">loss{" (log)" if log else ""}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _short(name: str, most: int = 30) -> str:
    text = visible(without_secrets(" ".join(name.split())))
    return text if len(text) <= most else text[: most - 1] + "…"
