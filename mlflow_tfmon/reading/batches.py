"""The kept batches of a run's bad steps, and the search for their examples in a dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_tfmon import temporary
from mlflow_tfmon.errors import NotThereError
from mlflow_tfmon.facts import examples
from mlflow_tfmon.reading import files
from mlflow_tfmon.reading.arrays import read_arrays
from mlflow_tfmon.tracking.credentials import check_artifacts
from mlflow_tfmon.tracking.names import ABOUT, BATCH, EVIDENCE

if TYPE_CHECKING:
    from mlflow_tfmon.reading.recorded import RecordedRun

_NAME = re.compile(r"([A-Za-z0-9_.-]*)step-(\d{1,18})")
_MOST = 64  # folders that are read: several trainings of one run may have kept 8 each
_AT_ONCE = 4096  # examples of an array


@dataclass(frozen=True)
class KeptBatch:
    """The batch of a step at which the loss or a gradient was not finite, or the loss was far above those before.

    Attributes:
        step: the step.
        prefix: of the stream, as in `RecordedRun.streams`.
        kind: "not_finite" or "spike".
        loss: of the step.
        text: what is seen in it, in a sentence.
        examples: how many the batch had.
        kept: the places in the batch of those that are kept: all of them if they fit into 8 MB.
        odd: the places of those that stand out, the oddest first.
        losses: of each example, before weights; None if they were not seen.
        indices: of the kept ones, where they are in the data of the fit, -1 for unknown; None if it was not in memory.
        fingerprints: of the kept ones, of their inputs.
        shapes: of the arrays of an example.
    """

    step: int
    prefix: str = ""
    kind: str = ""
    loss: float = float("nan")
    text: str = ""
    examples: int = 0
    kept: tuple[int, ...] = ()
    odd: tuple[int, ...] = ()
    losses: tuple[float, ...] | None = None
    indices: tuple[int, ...] | None = None
    fingerprints: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _read: Callable[[], dict[str, np.ndarray]] = field(default=dict, repr=False, compare=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """The kept examples: "inputs", "targets", "sample_weight"; of nested ones "inputs/<name>". Downloads them.

        Raises:
            ValueError: the file is damaged.
        """
        return self._read()


def load_batches(client: Any, run_id: str) -> list[KeptBatch]:
    """The kept batches of a run, in the order of the steps.

    Args:
        client: of the run's store.
        run_id: the run.

    Raises:
        UnreadableError: a file is damaged.
    """
    named = [
        (_NAME.fullmatch(item.path.rpartition("/")[2]), item.path) for item in _list(client, run_id, EVIDENCE)
    ]
    found = [_load(client, run_id, path, *name.groups()) for name, path in named[:_MOST] if name]
    return sorted(found, key=lambda one: (one.step, one.prefix))


def _list(client: Any, run_id: str, path: str) -> list[Any]:
    folder = path.rpartition("/")[0]
    if not any(item.path == path for item in client.list_artifacts(run_id, folder)):
        return []
    return list(client.list_artifacts(run_id, path))


def _load(client: Any, run_id: str, path: str, prefix: str, step: str) -> KeptBatch:
    with temporary.Folder() as folder:
        file = Path(client.download_artifacts(run_id, f"{path}/{ABOUT}", folder))
        about = files.read_json(file)
        with files.named(file):
            return _kept(about, int(step), prefix, lambda: _arrays(client, run_id, f"{path}/{BATCH}"))


def _arrays(client: Any, run_id: str, path: str) -> dict[str, np.ndarray]:
    if not any(item.path == path for item in client.list_artifacts(run_id, path.rpartition("/")[0])):
        return {}
    with temporary.Folder() as folder:
        return read_arrays(Path(client.download_artifacts(run_id, path, folder)))


def _kept(about: Any, step: int, prefix: str, read: Callable[[], dict[str, np.ndarray]]) -> KeptBatch:
    """What a file tells; anybody who may write to the store may have changed it.

    Raises:
        TypeError, ValueError, AttributeError: it tells something else.
    """
    losses, indices = about.get("losses"), about.get("indices")
    return KeptBatch(
        step, prefix, str(about.get("kind", "")), float(about.get("loss", "nan")), str(about.get("text", "")),
        int(about.get("examples", 0)),
        tuple(int(one) for one in about.get("kept", ())), tuple(int(one) for one in about.get("odd", ())),
        None if losses is None else tuple(float(one) for one in losses),
        None if indices is None else tuple(int(one) for one in indices),
        tuple(str(one) for one in about.get("fingerprints", ())),
        {str(name): tuple(int(n) for n in shape) for name, shape in about.get("shapes", {}).items()}, read,
    )  # fmt: skip


def of_step(batches: list[KeptBatch], step: int) -> KeptBatch:
    """The kept batch of a step.

    Raises:
        ValueError: there is none.
    """
    found = [one for one in batches if one.step == step]
    if not found:
        there = ", ".join(str(one.step) for one in batches) or "none"
        raise NotThereError(f"no batch of step {step} is kept in this run; kept: {there}")
    return found[0]


def load_batch(run_id: str, step: int, tracking_uri: str | None = None) -> KeptBatch:
    """The kept batch of a step of a run.

    Raises:
        ValueError: there is none.
        mlflow.MlflowException: there is no such run.
    """
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    check_artifacts(client, client.get_run(run_id).info.artifact_uri)
    return of_step(load_batches(client, run_id), step)


def find_batch(run: RecordedRun | KeptBatch | str, step: int, dataset: Any) -> dict[int, int]:
    """Finds the examples of a kept batch in a dataset, by the fingerprints of their inputs.

    Args:
        run: the run, or its id.
        step: of which the batch is.
        dataset: what the training was given: an array of inputs, (x, y), or a `tf.data.Dataset`, batched or not, in an
            order that can be repeated (without `shuffle`); its inputs as the model gets them.

    Returns:
        The place in the batch -> the place in the dataset (counted in examples) of those that are there; of several
        that are alike, the first.

    Raises:
        ValueError: no batch of that step is kept, or nothing can be compared with the dataset.

    Example:
        >>> mlflow_tfmon.find_batch(run_id, 151, (x, y))
        {0: 8431, 7: 37}
    """
    if isinstance(run, str):
        kept = load_batch(run, step)
    else:
        kept = run if isinstance(run, KeptBatch) else of_step(run.batches, step)
    if not kept.fingerprints:
        raise NotThereError(f"the batch of step {step} has no inputs that were kept: {kept.text}")
    shapes = examples.inputs_of(kept.shapes)
    places: dict[str, int] = {}
    wanted, at = set(kept.fingerprints), 0
    for arrays in _inputs(dataset, next(iter(shapes.values()), ())):
        if sorted(arrays) != sorted(shapes) or any(
            one.shape[1:] != shapes[name] for name, one in arrays.items()
        ):
            there = {name: one.shape[1:] for name, one in arrays.items()}
            raise NotThereError(
                f"the dataset's examples have the shapes {there}, those of the batch {shapes}"
            )
        for row, one in enumerate(examples.fingerprints([arrays[name] for name in shapes])):
            if one in wanted:
                wanted.discard(one)
                places[one] = at + row
        at += len(next(iter(arrays.values())))
        if not wanted:
            break
    return {
        place: places[one] for place, one in zip(kept.kept, kept.fingerprints, strict=False) if one in places
    }


def _inputs(dataset: Any, shape: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of a dataset, some examples at once."""
    if isinstance(dataset, np.ndarray) or (
        isinstance(dataset, (tuple, dict)) and not hasattr(dataset, "element_spec")
    ):
        arrays = examples.inputs_of(examples.arrays_of(dataset))
        count = len(next(iter(arrays.values()))) if arrays else 0
        for at in range(0, count, _AT_ONCE):
            yield {name: one[at : at + _AT_ONCE] for name, one in arrays.items()}
        return
    for element in dataset:
        found = examples.inputs_of(examples.arrays_of(element))
        single = not found or next(iter(found.values())).ndim == len(shape)
        yield examples.inputs_of(examples.arrays_of(element, single=True)) if single else found
