"""A recording: all that is measured within one MLflow run, numbered, named and put into the journal in order."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.stream import bins, records, rows
from mlflow_tfmon.stream.continuation import NOTHING, Past, PastStream, mark
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.stream.streams import Stream
from mlflow_tfmon.tags import ABSENT_TAG, SEAMS_TAG

# So long the series of a stream that begins wait for another one, which gives names to both, before they are shown.
_MOMENT = 2.0  # s
_ABSENT = (
    1000  # letters of the tag that names what is absent, before names that tell nothing new are left out
)
_MAX_STREAMS = 64  # streams of a recording
_SEAMS = 4000  # letters of the tag that names the seams: MLflow takes no more, and nobody reads more


class Recording:
    """Puts what rings and callbacks tell into the journal of one run.

    Args:
        append: takes records in order (the journal's).
        past: how far earlier recordings of the run had come: their streams go on where the same is trained.
        look: is told of rows that were recorded: the reading, which part of it, and the steps that they are.
    """

    def __init__(
        self,
        append: Callable[[Sequence[records.Record]], None],
        past: Past = NOTHING,
        look: Callable[[Reading, slice, records.StreamOpened, records.Steps], None] = lambda *_: None,
    ) -> None:
        self._append = append
        self._look = look
        self._streams = [Stream.carried_on(stream, past.resumed) for stream in past.streams]
        self._epochs: dict[str, int] = dict(past.epochs)
        self._absent: dict[str, None] = {}  # in the order of appearance
        self._seams: dict[str, None] = dict.fromkeys(past.seams)
        self._lock = threading.RLock()
        self._waiting: dict[Ring, tuple[str, str, int | None, bool]] = {}  # those that may make no step

    # -- streams ---------------------------------------------------------------------------------------------------
    def open_stream(
        self,
        ring: Ring,
        name: str,
        model: str,
        total_steps: int | None,
        *,
        compiled: bool = False,
        waits: bool = False,
    ) -> None:
        """Makes a ring's steps part of the recording.

        A stream is an optimizer, and what takes its place over the same variables (the model was compiled anew); any
        other gets one of its own, with names of its own.

        Args:
            ring: the ring.
            name: of what is trained.
            model: name of the model.
            total_steps: how many steps are expected, or None.
            compiled: whether the optimizer is the one that the model is compiled with.
            waits: whether a new stream is opened at the ring's first step alone. A ring that was there before the
                training may be of another optimizer: there would be a stream without steps.
        """
        with self._lock:
            variables = mark(variable.name for variable in ring.layout.variables)
            self.bind(ring.layout.keys, variables)
            stream = self._of(ring) or next((s for s in self._streams if s.is_of(ring)), None)
            if stream is None and waits:
                self._waiting[ring] = (name, model, total_steps, compiled)
                return
            if stream is None:  # of several, that which was there last
                stream = next((s for s in self._streams[::-1] if s.goes_on_with(ring, compiled)), None)
            if stream is not None:
                stream.keys |= ring.layout.keys
                self._open(stream, ring)
                if total_steps is not None:
                    stream.total_steps = total_steps + (0 if stream.carried else stream.steps)
                    stream.opened = None
                return
            if len(self._streams) >= _MAX_STREAMS:
                say_once(
                    "many optimizers",
                    f"mlflow_tfmon: of the optimizers of one training the first {_MAX_STREAMS} are recorded, no more "
                    "(one for each example?).",
                )
                return
            if len(self._streams) == 1 and self._streams[0].begins:
                self._name(self._streams[0], f"{self._streams[0].name}.")
            known = {s.prefix for s in self._streams}
            prefixes = [f"{name}.", *(f"{name}_{n}." for n in range(2, 2 + len(known)))]
            prefix = next(p for p in prefixes if p not in known) if self._streams else ""
            stream = Stream(len(self._streams), ring.layout.keys, name, prefix, model, total_steps)
            stream.named, stream.variables = bool(self._streams), variables
            self._streams.append(stream)
            self._open(stream, ring)

    def _open(self, stream: Stream, ring: Ring) -> None:
        stream.optimizer = ring.optimizer
        if not any(known is ring for known in stream.rings):
            stream.rings.append(ring)

    def close_rings(self, rings: Sequence[Ring]) -> None:
        """Lets go of rings, of which nothing is to come."""
        with self._lock:
            for ring in rings:
                self._waiting.pop(ring, None)
            for stream in self._streams:
                gone = [one for one in stream.rings if any(one is ring for ring in rings)]
                if gone:
                    for reading in [one for one in stream.readings if any(one.ring is ring for ring in gone)][
                        -1:
                    ]:
                        self._take(stream, reading, last=True)
                    stream.rings = [one for one in stream.rings if not any(one is ring for ring in gone)]

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

    def _name(self, stream: Stream, prefix: str) -> None:
        stream.prefix, stream.named = prefix, True
        if stream.opened is not None:
            opened = dataclasses.replace(stream.opened, prefix=prefix, named=True)
            self._append([opened])
            stream.opened = opened

    def _of(self, ring: Ring) -> Stream | None:
        return next((s for s in self._streams if any(one is ring for one in s.rings)), None)

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
    def take(self, reading: Reading) -> None:
        """Records what was read of rows."""
        with self._lock:
            if reading.ring in self._waiting:
                # All that have made steps: what trains together gets its names together.
                for ring in [one for one in self._waiting if one.written() > one.taken]:
                    name, model, total_steps, compiled = self._waiting.pop(ring)
                    self.open_stream(ring, name, model, total_steps, compiled=compiled)
            stream = self._of(reading.ring)
            if stream is not None:
                self._take(stream, reading)

    def _take(self, stream: Stream, reading: Reading, last: bool = False) -> None:
        ready, left = stream.in_order(reading, last)
        for one in ready:
            self._record(stream, one)
        stream.readings = left

    def _record(self, stream: Stream, reading: Reading) -> None:
        out: list[records.Record] = []
        if reading.lost:
            out.append(records.Lost(stream.number, stream.steps + 1, stream.steps + reading.lost))
        offset = stream.steps + 1 - reading.first
        if stream.steps + len(reading.rows) > records.BEGINNING:
            stream.begins, stream.named = False, True
        opened = stream.opened
        parts = [(part, *stream.read(reading, part, offset)) for part in rows.runs(reading)]
        for _, layout, steps in parts:
            out += [steps] if layout == opened else [layout, steps]
            opened = layout
            if (
                "loss" not in layout.columns
            ):  # of some steps alone, where it can't be told which loss is theirs
                out += self._absent_from(layout)
        out += self._absent_from(opened)
        if len(reading.deep.rows):
            out.append(records.DeepSteps(stream.number, reading.seen, rows.deep_steps(reading, offset)))
        histograms = rows.histograms(reading, offset)
        if len(histograms):
            out.append(records.Histograms(stream.number, reading.seen, histograms))
        if reading.deep.lost or reading.histograms.lost:
            out.append(records.Overwritten(stream.number, reading.deep.lost, reading.histograms.lost))
        self._append(out)
        # Only now: a block that could not be written down comes again.
        stream.opened = opened
        stream.steps += len(reading.rows) + reading.lost
        stream.last_histogram = int(histograms[-1, 0]) if len(histograms) else stream.last_histogram
        stream.carried = False
        if len(reading.rows):
            stream.learning_rate = rows.learning_rate(reading)
        for part, layout, steps in parts:
            self._look(reading, part, layout, steps)

    def _absent_from(self, layout: records.StreamOpened | None) -> list[records.Record]:
        """What tells, once, which series a stream can't have in the way that it is trained."""
        if layout is None:
            return []
        lacking = sorted(f"batch/{name}" for name in signals.absent(layout.columns))
        absent = {f"{layout.prefix}{name}" for name in lacking}
        known = {name for name in lacking if any(one.endswith(name) for one in self._absent)}
        names = ", ".join([*self._absent, *sorted(absent - self._absent.keys())])
        # A training of many optimizers has as many names; those of the first will do.
        if absent <= self._absent.keys() or (set(lacking) <= known and len(names) > _ABSENT):
            return []
        self._absent |= dict.fromkeys(sorted(absent))
        said = names if len(self._streams) == 1 else ", ".join(lacking)
        say_once(
            f"absent {said}",
            f"mlflow_tfmon: can't be measured in this training, or not at each step: {said}.",
            logging.INFO,
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

    def weights(self, ring: Ring, counted: Callable[[], np.ndarray]) -> None:
        """Records the histograms of the weights as they are now, unless their last step has some.

        Args:
            ring: with the steps that they come of.
            counted: gives a row of `bins.WIDTH` a variable.
        """
        stream = self._of(ring)
        last = stream.opened if stream is not None else None
        if stream is None or last is None or last.variables != ring.layout.variables:
            return  # of several rings of a stream the last counts
        if stream.last_histogram < stream.steps:
            values = np.concatenate([[stream.steps], counted().ravel()])[None]
            with self._lock:
                stream.last_histogram = stream.steps
                self._append([records.Histograms(stream.number, time.time(), values, bins.KINDS[:1])])

    def seam(self, keys: frozenset[str], after: int | None = None) -> list[records.Record]:
        """What tells that another fit of these variables begins: of the run's steps those that are the first of one.

        Args:
            keys: of the variables.
            after: the step before it; default: the last.
        """
        with self._lock:
            stream = next((s for s in self._streams if s.keys & keys), None)
            if stream is None or stream.steps == 0 or stream.carried:
                return []
            seam = f"{stream.prefix}{(stream.steps if after is None else after) + 1}"
            text = ", ".join([*self._seams, seam])
            if len(text) > _SEAMS:
                return []
            self._seams[seam] = None
            return [records.Facts(tags={SEAMS_TAG: text}, time=time.time())]

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

    def system(self, values: Mapping[str, float]) -> None:
        """Records what the training takes of the machine, at the current step."""
        with self._lock:
            step = max((stream.steps for stream in self._streams), default=0)
            if step:
                self._append([records.System(step, time.time(), dict(values))])

    def append(self, *out: records.Record) -> None:
        """Records anything else."""
        with self._lock:
            self._append(list(out))
