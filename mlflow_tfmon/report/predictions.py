"""Predictions on the page: what the model gives for a few examples, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlflow_tfmon.errors import contained
from mlflow_tfmon.facts.examples import PNG
from mlflow_tfmon.reading.predictions import Predicted
from mlflow_tfmon.report.page import Slides

_EPOCHS = 24  # that the slider has, from the first to the last
_MOST_LETTERS = 8_000_000  # of all of them: pictures are large


def slides(load: Callable[[int | None], Sequence[Predicted]]) -> list[Slides]:
    """What the page shows of predictions, of each model of the run.

    Args:
        load: gives those of so many epochs (`RecordedRun.predicted`).
    """
    with contained("showing the predictions", "the report lacks them"):
        found = load(_EPOCHS)
        return [
            _of([one for one in found if one.prefix == prefix])
            for prefix in sorted({one.prefix for one in found})
        ]
    return []


def _of(found: list[Predicted]) -> Slides:
    last = found[-1]
    found = [one for one in found if one.examples == last.examples]  # others belong to other rows
    while len(found) > 2 and sum(map(_letters, found)) > _MOST_LETTERS:
        found = [one for at, one in enumerate(found) if not (len(found) - 1 - at) % 2]
    fixed = list(dict.fromkeys(name for cells in last.examples for name in cells))
    changing = list(dict.fromkeys(name for one in found for cells in one.cells for name in cells))
    count = max(len(one.cells) for one in found)
    of = last.prefix.rstrip(".")
    return Slides(
        title=f"What the model predicts{f' ({of})' if of else ''}",
        fixed=fixed,
        changing=changing,
        examples=[
            [last.examples[at].get(name, "") if at < len(last.examples) else "" for name in fixed]
            for at in range(count)
        ],
        labels=[_label(one) for one in found],
        cells=[
            [
                [one.cells[at].get(name, "") if at < len(one.cells) else "" for name in changing]
                for at in range(count)
            ]
            for one in found
        ],
        right=[[one.right[at] if at < len(one.right) else None for at in range(count)] for one in found],
        pictures=any(
            text.startswith(PNG) for cells in (*last.examples, *last.cells) for text in cells.values()
        ),
    )


def _label(one: Predicted) -> str:
    judged = [right for right in one.right if right is not None]
    told = f": {sum(judged)} of {len(judged)} right" if judged else ""
    return f"after epoch {one.epoch + 1} (step {one.step:,}){told}"


def _letters(one: Predicted) -> int:
    return sum(len(text) for cells in one.cells for text in cells.values())
