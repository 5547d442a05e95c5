"""Predictions of a run: what its model gave for a few fixed examples at epochs' ends, as the run keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_tfmon import temporary
from mlflow_tfmon.reading import files
from mlflow_tfmon.tracking.names import PREDICTIONS

_EPOCH = re.compile(r"([A-Za-z0-9_.-]*?)epoch-(\d{1,12})\.json")
_MOST = 256  # epochs that are read, of all models
_MOST_BYTES = 512 * 2**20  # of all of them
_DIGEST = re.compile(r"[0-9a-f]{16}")
Cells = Mapping[str, str]


@dataclass(frozen=True)
class Predicted:
    """What was predicted at an epoch's end; each cell is a text, or the `data:` address of a PNG.

    Attributes:
        epoch: its number within the run, from 0.
        step: optimizer steps done by then.
        prefix: of the model's metrics.
        examples: what does not change, of each example: "input", "target".
        cells: what the model gave: "prediction".
        right: whether that is right; None where it can't be told.
    """

    epoch: int
    step: int
    prefix: str
    examples: Sequence[Cells]
    cells: Sequence[Cells]
    right: Sequence[bool | None]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A dictionary for each example."""
        for at, (cells, right) in enumerate(zip(self.cells, self.right, strict=False)):
            fixed = self.examples[at] if at < len(self.examples) else {}
            yield {
                "epoch": self.epoch, "step": self.step, "example": at, **fixed, **cells, "right": right
            }  # fmt: skip


def load_predictions(client: Any, run_id: str, most: int | None = None) -> list[Predicted]:
    """The predictions of a run, in the order of the epochs.

    Args:
        client: of the run's store.
        run_id: the run.
        most: epochs of each model, from the first to the last; default: all that are kept, up to 256 in all.

    Raises:
        UnreadableError: a file is damaged.
    """
    parent = PREDICTIONS.rpartition("/")[0]
    if not any(item.path == PREDICTIONS for item in client.list_artifacts(run_id, parent)):
        return []
    names = {item.path.rpartition("/")[2] for item in client.list_artifacts(run_id, PREDICTIONS)}
    known: dict[str, Sequence[Cells]] = {"": ()}
    size = 0
    with temporary.Folder() as place:

        def read(name: str) -> tuple[Path, Any]:
            nonlocal size
            path = Path(client.download_artifacts(run_id, f"{PREDICTIONS}/{name}", place))
            content = files.read_json(path)
            with files.named(path):
                size += path.stat().st_size
                if size > _MOST_BYTES:
                    raise ValueError(f"the predictions have more than {_MOST_BYTES:,} bytes in all")
            return path, content

        def fixed(digest: str, prefix: str) -> Sequence[Cells]:
            if digest not in known:
                known[digest] = ()
                name = f"{prefix}examples-{digest}.json"
                if _DIGEST.fullmatch(digest) and name in names:
                    path, content = read(name)
                    with files.named(path):
                        known[digest] = [_cells(one) for one in content]
            return known[digest]

        predicted = []
        for epoch, prefix, name in _chosen(names, most):
            path, content = read(name)
            with files.named(path):
                cells = [_cells(one) for one in content["cells"]]
                right = [None if one is None else bool(one) for one in content["right"]][: len(cells)]
                examples = fixed(str(content["examples"]), prefix)
                predicted.append(Predicted(epoch, int(content["step"]), prefix, examples, cells, right))
    return predicted


def _chosen(names: Iterable[str], most: int | None) -> list[tuple[int, str, str]]:
    """Epoch, prefix and name of the files that are read, in the order of the epochs."""
    models: dict[str, list[tuple[int, str, str]]] = {}
    for name in names:
        if told := _EPOCH.fullmatch(name):
            models.setdefault(told[1], []).append((int(told[2]), told[1], name))
    each = max(2, _MOST // max(1, len(models)))
    each = each if most is None else min(most, each)
    chosen = []
    for epochs in map(sorted, models.values()):
        places = np.linspace(0, len(epochs) - 1, min(each, len(epochs))).round().astype(int)
        chosen += [epochs[at] for at in np.unique(places)]
    return sorted(chosen)[:_MOST]


def _cells(found: Any) -> dict[str, str]:
    """Cells of one example; anybody who may write to the store may have changed them."""
    return {str(name): str(value) for name, value in found.items()}
