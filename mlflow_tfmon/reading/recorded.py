"""The complete recording of a run, as pandas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_tfmon import temporary
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.errors import InputError, NotThereError, logger
from mlflow_tfmon.journal import here
from mlflow_tfmon.reading import files, frames, joined
from mlflow_tfmon.reading.batches import KeptBatch, load_batches
from mlflow_tfmon.reading.card import card, verdict_of
from mlflow_tfmon.reading.predictions import Predicted, load_predictions
from mlflow_tfmon.tags import DELIVERY_TAG, SEAMS_TAG
from mlflow_tfmon.tracking.credentials import check_artifacts
from mlflow_tfmon.tracking.findings import FILE as PROBLEMS
from mlflow_tfmon.tracking.names import HISTOGRAMS, TELEMETRY

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_TRIES = 5
_PAUSE_SECONDS = 0.25


@dataclass(frozen=True)
class Seam:
    """First step of a training that continues an earlier one within the run: "further fit" or "resumed"."""

    step: int
    what: str


_ACTIVATIONS = [
    "epoch", "step", "time", "examples", "layer", "activation", "units", "output", "mean", "std", "zero_fraction",
    "dead_fraction", "saturated_fraction",
]  # fmt: skip


class RecordedRun:
    """A monitored run; each table is read on first access.

    If a run has several streams (a GAN's two optimizers), the columns of `steps` and the variables of `layers` begin
    with the stream's prefix, like its metrics in MLflow: `generator.loss`, `generator.dense.kernel`.

    Attributes:
        run_id: the run.
        complete: whether everything recorded has arrived in MLflow.
        seams: where one training of the run ends and the next begins, in the order of the steps.
        predicted: gives the predictions of so many epochs (None: all), which `predictions` has as a table.
        ended: whether the run is complete and MLflow marks it as finished: neither running, failed nor killed.
    """

    def __init__(
        self, run_id: str, complete: bool, folder: Path, problems: list[Problem], seams: Sequence[Seam] = (),
        ended: bool = False,
    ) -> None:  # fmt: skip
        self.run_id = run_id
        self.complete = complete
        self.problems = problems
        self.seams = tuple(seams)
        self.ended = ended
        self._folder = folder
        self._fetch_batches: Callable[[], list[KeptBatch]] = list
        self.predicted: Callable[[int | None], list[Predicted]] = lambda most: []
        self._fetch_histograms = lambda: folder.parent / "histograms"  # large: downloaded only on request

    def __repr__(self) -> str:
        problems = ", ".join(dict.fromkeys(one.kind for one in self.problems)) or "none"
        return f"RecordedRun({self.run_id!r}, streams={self.streams!r}, problems: {problems}, complete={self.complete})"

    def _repr_html_(self) -> str:
        """The run as a card, which a notebook shows."""
        curves, facts = {}, [f"{len(self.steps):,} steps, {len(self.epochs):,} epochs"]
        for prefix in self.streams[:2]:
            for column, name in (("loss", "loss of the step"), ("grad_norm", "gradient norm")):
                if prefix + column in self.steps:
                    values = self.steps[prefix + column].to_numpy(float)
                    curves[prefix + name] = values[np.isfinite(values)]
        losses = [name for name in self.epochs if name.rpartition(".")[2] in ("loss", "val_loss")]
        for name in [name for name in losses if name.endswith("val_loss")] or losses:
            values = self.epochs[name].dropna()
            if len(values):
                least = (
                    f"least {name} {values.min():.4g} at epoch {values.idxmin() + 1} of {len(self.epochs)}"
                )
                facts.append(least)
        return card(f"run {self.run_id}", verdict_of(self.problems, self.complete), facts, curves)

    @cached_property
    def streams(self) -> list[str]:
        """The prefixes of the streams, in the order of their numbers: [""] where there is only one."""
        return list({about["stream"]: about["prefix"] for _, about in self.parts("steps-*")}.values())

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row per optimizer step, index "step" (1, 2, 3, …).

        Columns, as far as they were measured: loss, learning_rate, grad_norm, grad_norm_clipped, time (Unix seconds),
            step_time_ms, examples_per_second, input_wait_share (0 to 1), each of several losses (<output>_loss,
            unweighted), regularization_loss, loss_scale, skipped (1 if loss scaling skipped the update), applied (0 if
            a step did not update the weights, as with gradient accumulation), and the user's own metrics.
        """
        return frames.steps(self.parts("steps-*"), self.parts("logged-*"))

    def measured_at(self, column: str) -> np.ndarray:
        """The steps at which a column of `steps` was measured; a NaN at another one is no number of the training."""
        return frames.measured_at(self.parts("steps-*"), self.parts("logged-*"), column)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """A row per step and variable: step, variable, grad_norm, weight_norm, update_ratio, grad_zero_fraction.

        Values that are only measured every few steps are NaN at the others.
        """
        return frames.layers([self.parts("steps-*"), self.parts("deep-*")])

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row per epoch, index "epoch" (0, 1, …): the epoch's metrics as Keras names them."""
        parts = [files.table(path).to_pandas() for path, _ in self.parts("epochs-*")]
        if not parts:
            return pd.DataFrame(index=pd.Index([], name="epoch"))
        table = pd.concat(parts, ignore_index=True)
        table["name"] = table["prefix"].astype(str) + table["name"].astype(str)
        return frames.wide(table, "epoch")

    @cached_property
    def epoch_ends(self) -> pd.DataFrame:
        """When the epochs ended: epoch, prefix (of the stream), step, time (Unix seconds)."""
        parts = [files.table(path).to_pandas() for path, _ in self.parts("epochs-*")]
        columns = ["epoch", "prefix", "step", "time"]
        if not parts:
            return pd.DataFrame(columns=columns)
        table = pd.concat(parts, ignore_index=True)[columns]
        return table.drop_duplicates(["epoch", "prefix"], ignore_index=True)

    @cached_property
    def variables(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """The shape of each variable, and whether it is a kernel, by its name in `layers`."""
        return {
            about["prefix"] + name: (tuple(shape), is_kernel)
            for _, about in self.parts("steps-*")
            for name, shape, is_kernel in about["variables"]
        }

    def layer_blocks(
        self, stems: Sequence[str] = ("steps", "deep")
    ) -> Iterator[tuple[list[str], np.ndarray, dict[str, np.ndarray]]]:
        """Yields the content of `layers` in blocks of bounded size, for runs that do not fit into memory.

        Args:
            stems: "steps" for what is recorded at each step, "deep" for what is every few steps.

        Yields:
            The variables, the steps, and for each quantity an array of shape (steps, variables).
        """
        for stem in stems:
            for path, about in self.parts(f"{stem}-*"):
                yield frames.wide_block(path, about)

    @cached_property
    def system(self) -> pd.DataFrame:
        """A row per sample, index "step": what the training took of the machine, each ten seconds.

        Columns: time (Unix seconds), process_cpu_percent (of one core), process_memory_mb, memory_free_mb, and with
            an NVIDIA GPU gpu_percent and gpu_memory_mb.
        """
        parts = [files.table(path).to_pandas() for path, _ in self.parts("system-*")]
        if not parts:
            return pd.DataFrame(columns=["time"], index=pd.Index([], name="step"))
        table = pd.concat(parts, ignore_index=True)
        table["name"] = table["name"].astype(str).str.removeprefix("system/")
        steps = table.drop_duplicates("time").set_index("time").step
        found = frames.wide(table, "time")
        return found.reset_index().set_index(pd.Index(steps.loc[found.index], name="step"))

    @cached_property
    def activations(self) -> pd.DataFrame:
        """A row per epoch and layer: the layer's outputs, after its activation, for a batch of the training.

        Columns: epoch, step, time, examples (rows of the batch), layer, activation, units, output (whether it is the
        model's output), mean, std, zero_fraction, dead_fraction (of units that are zero for the whole batch),
        saturated_fraction (of elements with less than 5% of a sigmoid's or tanh's largest slope; NaN for others).
        """
        parts = [files.table(path).to_pandas() for path, _ in self.parts("activations-*")]
        if not parts:
            return pd.DataFrame(columns=_ACTIVATIONS)
        table = pd.concat(parts, ignore_index=True)
        table["layer"] = table.pop("prefix").astype(str) + table["layer"].astype(str)
        return table

    @cached_property
    def histograms(self) -> pd.DataFrame:
        """A row per histogram of a variable's weights after a step, or of its gradient before clipping.

        Columns: step, variable, kind ("weight" or "gradient"), edges and counts (arrays; a bin includes its left edge;
            from the first to the last non-empty bin of the fixed bins of `mlflow_tfmon.stream.bins`), zeros,
        nonfinite, min, max, and the quantiles q05, q25, q50, q75, q95, exact to the width of a bin.
        """
        return frames.histograms(_parts(self._fetch_histograms(), "histograms-*"))

    @cached_property
    def batches(self) -> list[KeptBatch]:
        """The kept batches of steps that were not finite, or at which the loss had a spike; see `KeptBatch`."""
        return self._fetch_batches()

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row per epoch and example of the setting `predictions`: what the model predicted at the epoch's end.

        Columns: epoch, step, example, what is shown of it ("input", "target", "prediction"; texts, pictures as the
            `data:` address of a PNG), and right (whether the prediction is; None where that can't be told).
        """
        rows = [row for one in self.predicted(None) for row in one.rows()]
        return pd.DataFrame(
            rows, columns=None if rows else ["epoch", "step", "example", "prediction", "right"]
        )

    @cached_property
    def norm_histograms(self) -> pd.DataFrame:
        """The distribution of the norms of all variables: a row per deep step and kind of norm.

        Columns: step, prefix (of the stream), kind ("weight_norm" or "grad_norm"), edges and counts (arrays, four bins
            per octave), zeros and nonfinite (norms in no bin).
        """
        return frames.norm_histograms(self.parts("deep-*"), self.parts("steps-*"))

    def parts(self, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Returns the files of a kind, such as "steps-*", in order, with their metadata."""
        return _parts(self._folder, pattern)

    def cut(self, after: Mapping[str, int]) -> None:
        """Limits later reads to so many steps (by the prefixes of the streams)."""
        joined.cut(self._folder, after)

    def files(self, pattern: str) -> list[Path]:
        """Returns further telemetry files, by the pattern of their names."""
        return sorted(self._folder.glob(pattern))


def _parts(folder: Path, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob(f"{pattern}.parquet")):
        yield path, files.about(path)


def load_run(run_id: str, tracking_uri: str | None = None) -> RecordedRun:
    """Loads the complete recording of a monitored run.

    For a running training, the data are a few seconds old; load it again to see more. Waits for at most a minute for
    recordings on this machine that are being delivered.

    Args:
        run_id: the MLflow run.
        tracking_uri: the run's store; default: MLflow's current tracking URI.

    Raises:
        ValueError: the run was not monitored, nothing of it has arrived yet, a file (named in the message) is damaged,
            or its files are on a server that the credentials are not for.
        mlflow.MlflowException: there is no such run.

    Example:
        >>> run = mlflow_tfmon.load_run(mlflow.last_active_run().info.run_id)
        >>> run.steps["loss"].plot()
    """
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    run = client.get_run(run_id)
    check_artifacts(client, run.info.artifact_uri)
    left = here.wait(here.of_run(run_id), f"run {run_id}")
    until = time.monotonic() + here.PATIENCE_SECONDS
    while not client.list_artifacts(run_id, TELEMETRY):
        left = here.recordings(here.of_run(run_id))
        if not any(one.comes for one in left) or time.monotonic() > until:
            raise _nothing(run_id, client.get_run(run_id).data.tags.get(DELIVERY_TAG), left)
        time.sleep(_PAUSE_SECONDS)
    if left:
        logger.warning(
            "mlflow_tfmon: run %s: not everything is in MLflow yet, so what is loaded is incomplete: %s. `mlflow-tfmon "
            "sync` delivers the rest.",
            run_id, "; ".join(map(str, left)),
        )  # fmt: skip
    return read_run(client, run_id)


def read_run(client: MlflowClient, run_id: str) -> RecordedRun:
    """Reads what has arrived of a run.

    Args:
        client: of its store.
        run_id: the MLflow run.

    Raises:
        ValueError: a file (named in the message) is damaged, or on a server that the credentials are not for.
        mlflow.MlflowException: there is no such run, or nothing of it has arrived.
    """
    run = client.get_run(run_id)
    check_artifacts(client, run.info.artifact_uri)
    state = run.data.tags.get(DELIVERY_TAG)
    # The files live as long as the object, since they are read on first access of a table.
    holder = temporary.Folder()
    folder = _download(client, run_id, holder.name, final=state == "complete")
    later = joined.cuts(folder)
    joined.join(folder, later)
    final = state == "complete"
    problems = _problems(client, run_id, Path(holder.name))
    seams = _seams(run.data.tags.get(SEAMS_TAG, ""), later)
    ended = final and run.info.status == "FINISHED"
    recorded = RecordedRun(run_id, final, folder, problems, seams, ended)
    recorded._holder = holder  # type: ignore[attr-defined]

    def histograms() -> Path:
        found = _download(client, run_id, holder.name, final, HISTOGRAMS)
        joined.join(found, later)
        return found

    recorded._fetch_histograms = histograms
    recorded._fetch_batches = lambda: load_batches(client, run_id)
    recorded.predicted = lambda most: load_predictions(client, run_id, most)
    return recorded


def _nothing(run_id: str, state: str | None, left: Sequence[here.Here]) -> ValueError:
    """Returns why there is no data of a run to load."""
    if left:
        return NotThereError(
            f"run {run_id} was recorded on this machine, but none of its telemetry files has arrived in MLflow yet: "
            f"{'; '.join(map(str, left))}. `mlflow-tfmon sync` delivers the rest."
        )
    if state is None:
        return InputError(
            f"run {run_id} has no recording: it was not monitored (call mlflow_tfmon.autolog() before the training, "
            "or train within mlflow_tfmon.Monitor(model)), or it is undelivered on another machine "
            "(run `mlflow-tfmon sync` there)."
        )
    return NotThereError(
        f"run {run_id} is monitored, but none of its telemetry files has arrived yet (tag tfmon.delivery={state!r}): "
        "the first steps of a running training arrive within seconds, so try again; after a crash or an outage, run "
        "`mlflow-tfmon sync` on the machine that trained."
    )


def _download(client: Any, run_id: str, folder: str, final: bool, artifacts: str = TELEMETRY) -> Path:
    """Downloads a folder of files; a file that is still growing is downloaded again if it cannot be read."""
    from mlflow.exceptions import MlflowException

    tries = 0
    while True:
        tries += 1
        try:
            if artifacts != TELEMETRY and not client.list_artifacts(run_id, artifacts):
                return Path(folder, artifacts)
            found = Path(client.download_artifacts(run_id, artifacts, folder))
            if not final:
                # Older parts of a file no longer change.
                last = {path.name.rpartition("-")[0]: path for path in sorted(found.glob("*.parquet"))}
                for path in last.values():
                    files.table(path)
            return found
        except (MlflowException, files.UnreadableError, OSError):
            # MLflow 3.1 overwrites a local artifact in place, so that half of it may be read; 3.17 replaces it.
            if final or tries == _TRIES:
                raise
            time.sleep(0.2)


def _seams(tag: str, later: joined.Cuts) -> list[Seam]:
    """Returns the seams of a run: further fits, from its tag, and steps at which a recording resumes another."""
    found = {int(one.rpartition(".")[2]): "further fit" for one in tag.split(", ") if one}
    for _, after in later:
        for steps in after.values():
            found.setdefault(steps + 1, "resumed")
    return [Seam(step, found[step]) for step in sorted(found)]


def _problems(client: Any, run_id: str, folder: Path) -> list[Problem]:
    if not any(item.path == PROBLEMS for item in client.list_artifacts(run_id, "tfmon")):
        return []
    path = Path(client.download_artifacts(run_id, PROBLEMS, str(folder)))
    with files.named(path):
        return [Problem.from_dict(one) for one in files.read_json(path)]
