"""A recording: all that is measured within one MLflow run, numbered, named and put into the journal in order."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflow_tfmon.errors import say_once
from mlflow_tfmon.stream import bins, records
from mlflow_tfmon.stream.drain import Block
from mlflow_tfmon.stream.past import NOTHING, SEAMS_TAG, Past, PastStream, mark
from mlflow_tfmon.stream.ring import APPLIED, DEEP, HEAD, INPUT, TIME, Ring

ABSENT_TAG = "tfmon.absent"
# Series, and of which columns each is made (any of them will do).
_FROM = {
    "batch/loss": {"loss"},
    "batch/grad_norm": {"grad_norm"},
    "batch/step_time_ms": {"time", "input_time"},
    "batch/examples_per_second": {"examples"},
    "batch/input_wait_share": {"input_wait"},
}
# So long the series of a stream that begins wait for another one, which gives names to both, before they are shown.
_MOMENT = 2.0  # s
DEEP_QUANTITIES = ("weight_norm", "update_ratio", "grad_zero_fraction")
_HEAD = {name: index for index, name in enumerate(HEAD)}


@dataclass
class _Stream:
    """One optimizer's steps within a recording: its number, what it trains, and how far it has come.

    Attributes:
        begins: whether a further optimizer would belong to the same training, and give names to both.
        named: whether the series are shown, under the names that they have now.
        since: when it was opened, monotonic seconds.
        variables: a mark of what it trains.
        carried: whether it has been taken over from a checkpoint, and has not gone on yet.
    """

    number: int
    keys: frozenset[str]
    name: str
    prefix: str
    model: str
    total_steps: int | None
    steps: int = 0
    learning_rate: float | None = None
    opened: records.StreamOpened | None = None
    begins: bool = True
    named: bool = False
    since: float = field(default_factory=time.monotonic)
    variables: str = ""
    carried: bool = False


class Recording:
    """Puts what rings and callbacks tell into the journal of one run.

    Args:
        append: takes records in order (the journal's).
        past: how far earlier recordings of the run had come: their streams go on where the same is trained.
    """

    def __init__(self, append: Callable[[Sequence[records.Record]], None], past: Past = NOTHING) -> None:
        self._append = append
        self._streams = [_carried(stream, past.resumed) for stream in past.streams]
        self._epochs: dict[str, int] = dict(past.epochs)
        self._absent: dict[str, None] = {}  # in the order of appearance
        self._seams: dict[str, None] = dict.fromkeys(past.seams)
        self._lock = threading.RLock()

    # -- streams ---------------------------------------------------------------------------------------------------
    def open_stream(self, ring: Ring, name: str, model: str, total_steps: int | None) -> None:
        """Makes a ring's steps part of the recording.

        A ring over variables that a stream already trains goes on with that stream (the model was compiled anew, or
        layers were frozen); any other gets one of its own, with names of its own.
        """
        with self._lock:
            variables = mark(variable.name for variable in ring.layout.variables)
            self.bind(ring.layout.keys, variables)
            stream = self._of(ring)
            if stream is not None:
                stream.keys |= ring.layout.keys
                if total_steps is not None:
                    stream.total_steps = total_steps + (0 if stream.carried else stream.steps)
                    stream.opened = None
                return
            if len(self._streams) == 1 and self._streams[0].begins:
                self._name(self._streams[0], f"{self._streams[0].name}.")
            known = {s.prefix for s in self._streams}
            prefixes = [f"{name}.", *(f"{name}_{n}." for n in range(2, 2 + len(known)))]
            prefix = next(p for p in prefixes if p not in known) if self._streams else ""
            stream = _Stream(len(self._streams), ring.layout.keys, name, prefix, model, total_steps)
            stream.named, stream.variables = bool(self._streams), variables
            self._streams.append(stream)

    def bind(self, keys: frozenset[str], variables: str) -> None:
        """Has a stream of an earlier recording go on, if it is one of these variables.

        Args:
            keys: of the variables, in this process.
            variables: a mark of them (`past.mark`).
        """
        with self._lock:
            stream = next((s for s in self._streams if not s.keys and s.variables == variables), None)
            if stream is not None:
                stream.keys = keys

    def trained(self) -> dict[int, frozenset[str]]:
        """What each stream trains, by its number."""
        return {stream.number: stream.keys for stream in self._streams}

    def go_on(self, trained: Mapping[int, frozenset[str]]) -> None:
        """Has streams of an earlier recording go on with these variables, whatever their names are now.

        Args:
            trained: as `trained` gives it.
        """
        with self._lock:
            for stream in self._streams:
                stream.keys = stream.keys or trained.get(stream.number, frozenset())

    def carried(self, ring: Ring) -> int:
        """How many steps of a checkpoint a ring goes on from; 0 where it begins, or has gone on."""
        stream = self._of(ring)
        return stream.steps if stream is not None and stream.carried else 0

    def past(self) -> Past:
        """How far it has come."""
        with self._lock:
            streams = tuple(
                PastStream(s.number, s.prefix, s.name, s.model, s.steps, s.variables) for s in self._streams
            )
            return Past(streams, dict(self._epochs), tuple(self._seams))

    def settle(self, waited: bool = False) -> None:
        """Lets streams have the names that they have now.

        Args:
            waited: only those that have been there for a moment.
        """
        with self._lock:
            for stream in self._streams:
                stream.begins &= waited
                if not stream.named and (not waited or time.monotonic() - stream.since > _MOMENT):
                    self._name(stream, stream.prefix)

    def _name(self, stream: _Stream, prefix: str) -> None:
        stream.prefix, stream.named = prefix, True
        if stream.opened is not None:
            opened = dataclasses.replace(stream.opened, prefix=prefix, named=True)
            self._append([opened])
            stream.opened = opened

    def _of(self, ring: Ring) -> _Stream | None:
        keys = ring.layout.keys
        # Two optimizers that share a trunk are two streams; layers frozen or set free are one.
        return next((s for s in self._streams if s.keys and (s.keys <= keys or keys <= s.keys)), None)

    def steps_of(self, keys: frozenset[str]) -> int:
        """How many steps the stream that trains these variables has made (drained so far)."""
        return next((s.steps for s in self._streams if s.keys & keys), 0)

    def begins(self, keys: frozenset[str]) -> bool:
        """Whether a further optimizer would belong to the training of these variables."""
        return next((s.begins for s in self._streams if s.keys & keys), True)

    def prefix_of(self, keys: frozenset[str], model: str) -> str:
        """What precedes the names of the epoch metrics of a model that has these variables."""
        with self._lock:
            own = next((s for s in self._streams if s.keys & keys), None)
            if own is not None:
                return own.prefix
            return f"{model}." if self._streams else ""

    # -- from the drain --------------------------------------------------------------------------------------------
    def take(self, block: Block) -> None:
        """Records a block of rows."""
        with self._lock:
            stream = self._of(block.ring)
            if stream is None:
                return
            out: list[records.Record] = []
            if block.lost:
                out.append(records.Lost(stream.number, stream.steps + 1, stream.steps + block.lost))
            offset = stream.steps + 1 - block.first
            if stream.steps + len(block.rows) > records.BEGINNING:
                stream.begins, stream.named = False, True
            opened = stream.opened
            for part in _runs(block.rows):
                layout, steps = self._steps(stream, block, part, offset)
                out += [steps] if layout == opened else [layout, steps]
                opened = layout
            out += self._absent_from(opened)
            if len(block.deep_rows):
                deep = _deep(block)
                deep[:, 0] += offset
                out.append(records.DeepSteps(stream.number, block.seen, deep))
            if len(block.histograms):
                out.append(records.Histograms(stream.number, block.seen, _histograms(block, offset)))
            self._append(out)
            # Only now: a block that could not be written down comes again.
            stream.opened = opened
            stream.steps += len(block.rows) + block.lost
            stream.carried = False
            if len(block.rows):
                stream.learning_rate = float(block.rows[-1, _HEAD["learning_rate"]])

    def _steps(
        self, stream: _Stream, block: Block, part: slice, offset: int
    ) -> tuple[records.StreamOpened, records.Steps]:
        rows = block.rows[part]
        layout, measured = block.ring.layout, int(rows[0, _HEAD["measured"]])
        columns = {"step": rows[:, _HEAD["step"]] + offset}
        if measured & TIME:
            columns["time"] = rows[:, _HEAD["time"]]
        if measured & INPUT:
            for name in ("input_time", "input_wait", "examples"):
                columns[name] = rows[:, _HEAD[name]]
        if rows[0, _HEAD["losses"]]:
            columns["loss"] = rows[:, _HEAD["loss"]] / rows[:, _HEAD["losses"]]
        columns["learning_rate"] = rows[:, _HEAD["learning_rate"]]
        end = block.ring.width - len(layout.scalars)
        scalars = dict(zip(layout.scalars, rows[:, end:].T, strict=True))
        squares = 2 * rows[:, len(HEAD) : end]  # the ring holds halves
        for norm, halves in zip(layout.norms, np.split(squares, len(layout.norms), axis=1), strict=True):
            if APPLIED in scalars and norm == "grad_norm_clipped":
                halves[scalars[APPLIED] == 0] = np.nan  # nothing was clipped there
            columns[norm] = np.sqrt(halves.sum(axis=1))
        for name, values in scalars.items():
            if name not in layout.parts:
                columns[name] = values
            elif "loss" in columns:
                columns[name] = values / rows[:, _HEAD["losses"]]
        if "loss_scale" in scalars:  # Keras's rule for leaving a step out
            columns["skipped"] = 1.0 - np.isfinite(columns["grad_norm"])
        columns["traces"] = np.full(len(rows), float(block.ring.traces))
        columns |= {name: values[part] for name, values in block.more.items()}
        opened = records.StreamOpened(
            stream.number, stream.prefix, layout.variables, tuple(columns), layout.norms,
            DEEP_QUANTITIES,
            stream.total_steps, stream.model, stream.named,
        )  # fmt: skip
        values = np.column_stack([*columns.values(), np.sqrt(squares)])
        return opened, records.Steps(stream.number, block.seen, values)

    def _absent_from(self, layout: records.StreamOpened | None) -> list[records.Record]:
        """What tells, once, which series a stream can't have in the way that it is trained."""
        if layout is None:
            return []
        absent = {f"{layout.prefix}{name}" for name, of in _FROM.items() if not of & set(layout.columns)}
        if absent <= self._absent.keys():
            return []
        self._absent |= dict.fromkeys(sorted(absent))
        names = ", ".join(self._absent)
        say_once(
            f"absent {names}", f"mlflow_tfmon: can't be measured in this training: {names}.", logging.INFO
        )
        return [records.Facts(tags={ABSENT_TAG: names}, time=time.time())]

    # -- from callbacks and from the user --------------------------------------------------------------------------
    def epoch_ended(self, epoch: int, metrics: dict[str, float], keys: frozenset[str], prefix: str) -> None:
        """Records an epoch's metrics, with the learning rate of its last step."""
        with self._lock:
            stream = next((s for s in self._streams if s.keys & keys), None)
            if stream is not None and stream.learning_rate is not None:
                metrics = {"learning_rate": stream.learning_rate} | metrics
            self._epochs[prefix] = epoch + 1
            steps = stream.steps if stream is not None else 0
            self._append([records.EpochEnded(epoch, steps, time.time(), metrics, prefix)])

    def seam(self, keys: frozenset[str]) -> list[records.Record]:
        """What tells that another fit of these variables begins: of the run's steps those that are the first of one."""
        with self._lock:
            stream = next((s for s in self._streams if s.keys & keys), None)
            if stream is None or stream.steps == 0 or stream.carried:
                return []
            self._seams[f"{stream.prefix}{stream.steps + 1}"] = None
            return [records.Facts(tags={SEAMS_TAG: ", ".join(self._seams)}, time=time.time())]

    @property
    def steps(self) -> int:
        """How many optimizer steps have been made, by all streams together."""
        return sum(stream.steps for stream in self._streams)

    @property
    def epochs(self) -> int:
        """How many epochs have been made, by the model that has made most."""
        return max(self._epochs.values(), default=0)

    def epochs_done(self, prefix: str) -> int:
        """How many epochs a model has made within the run."""
        return self._epochs.get(prefix, 0)

    def logged(self, values: dict[str, float], keys: frozenset[str]) -> None:
        """Records figures of the user's own at the current step."""
        with self._lock:
            stream = next(
                (s for s in self._streams if s.keys & keys), self._streams[0] if self._streams else None
            )
            number, step = (stream.number, stream.steps) if stream is not None else (0, 0)
            self._append([records.Logged(number, step, time.time(), values)])

    def append(self, *out: records.Record) -> None:
        """Records anything else."""
        with self._lock:
            self._append(list(out))


def _carried(stream: PastStream, resumed: bool) -> _Stream:
    """A stream of an earlier recording, which goes on once it is known who trains its variables."""
    return _Stream(
        stream.number, frozenset(), stream.name, stream.prefix, stream.model, None, stream.steps,
        begins=False, named=True, variables=stream.variables, carried=resumed,
    )  # fmt: skip


def _runs(rows: np.ndarray) -> list[slice]:
    """Splits rows where what they measure changes (another trace of the same training)."""
    measured = np.stack([rows[:, _HEAD["measured"]], rows[:, _HEAD["losses"]] > 0], axis=1)
    edges = np.flatnonzero(np.diff(measured, axis=0).any(axis=1)) + 1
    bounds = [0, *edges.tolist(), len(rows)]
    return [slice(start, end) for start, end in itertools.pairwise(bounds) if end > start]


def with_batches(block: Block, batches: Callable[[float], np.ndarray]) -> Block:
    """Adds to a block which batches eager code took: for each step the last that it had taken before its end.

    Args:
        block: as it was read.
        batches: tells what the thread's eager code took from datasets until a time, and since it was asked last.
    """
    measured = block.rows[:, _HEAD["measured"]].astype(int)
    lacking = (measured & TIME != 0) & (measured & INPUT == 0)
    if not lacking.any():
        return block
    rows = block.rows.copy()
    times = rows[lacking, _HEAD["time"]]
    taken = batches(float(times[-1]))
    if not len(taken):
        return block
    last = np.searchsorted(taken[:, 0], times, side="right") - 1
    fresh = np.diff(last, prepend=-1) > 0  # a step that took no batch of its own has no figures of its own
    columns = [_HEAD[name] for name in ("input_time", "input_wait", "examples")]
    rows[np.ix_(lacking, columns)] = np.where(fresh[:, None], taken[np.maximum(last, 0)], np.nan)
    rows[lacking, _HEAD["measured"]] += INPUT
    return dataclasses.replace(block, rows=rows)


def _histograms(block: Block, offset: int) -> np.ndarray:
    """The histograms of a block, with the zeros that sparse gradients leave out."""
    rows = block.histograms.copy()
    rows[:, 0] += offset
    one = rows[:, 1:].reshape(len(rows), len(bins.KINDS), -1, bins.WIDTH)
    sizes = np.array([variable.size for variable in block.ring.layout.variables], float)
    left_out = sizes - one[..., : bins.COUNT + 1].sum(axis=-1)
    one[..., bins.MIDDLE] += left_out
    zeros, least, most = (one[..., at] for at in (-3, -2, -1))
    zeros += left_out
    np.minimum(least, 0, out=least, where=left_out > 0)
    np.maximum(most, 0, out=most, where=left_out > 0)
    return rows


def _deep(block: Block) -> np.ndarray:
    """The deep rows of a block with the quantities instead of what they are made of.

    The update ratio is ||after - before|| / ||before||, NaN for weights that were all zero. The elements that a sparse
    gradient leaves out are zeros as well.
    """
    sizes = np.array([np.prod(variable.shape) for variable in block.ring.layout.variables], np.float64)
    cuts = 1 + len(sizes) * np.arange(len(DEEP))
    step, after, before, change, nonzero = np.split(block.deep_rows, cuts, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(before > 0, np.sqrt(change / before), np.nan)
        zeros = (sizes - nonzero) / sizes
    return np.concatenate([step, np.sqrt(2 * after), ratios, zeros], axis=1)
