"""The batches of a run's bad steps: of the first one that is not finite, and of the worst spikes of the loss."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.errors import contained, logger, say_once
from mlflow_tfmon.facts import examples
from mlflow_tfmon.facts.premises import in_memory
from mlflow_tfmon.probes import batches
from mlflow_tfmon.stream import records, rows
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tracking.names import evidence_folder

MOST, MOST_BYTES = 8, 8 * 2**20  # batches that are kept of a training, and the bytes of each
_NOT_FINITE, _SPIKE = "not_finite", "spike"
_WINDOW, _FEWEST = 64, 20  # losses before a step by which it is judged
_DEVIATIONS = (
    10.0  # from their median, so many of theirs (median absolute deviations, scaled as for a normal one)
)
_RISE = 2.0  # so many times as high as the median, and as the loss before
_ANY, _WORSE = 3, 1.5  # so many spikes are kept whatever they are, each further one is so many times as high
_LOOKED_UP, _LOOKED_AT = 8, 8_000_000  # examples that are looked for in the data, and comparisons for it
_TOLD = 4096  # examples of a batch of which fingerprint and loss are kept


@dataclass(frozen=True)
class _Bad:
    """A bad step: what was held of it when it was seen."""

    ring: Ring
    step: int
    prefix: str
    kind: str
    loss: float
    usual: float
    element: Any = field(repr=False)
    losses: Sequence[Any] = field(repr=False)


@dataclass
class _Seen:
    """What was seen of a stream: its last losses, whether it was not finite, the spikes that were kept."""

    losses: np.ndarray = field(default_factory=lambda: np.empty(0))
    broke: bool = False
    spoilt: bool = False  # the step was made: what follows is its consequence
    spikes: int = 0
    highest: float = 0.0


class Evidence:
    """Keeps batches of one run.

    Args:
        append: takes records (the recording's).
        data_of: gives the inputs that a ring's training was called with, as arrays, or None.
    """

    def __init__(
        self, append: Callable[[records.Record], None], data_of: Callable[[Ring], Any] = lambda _: None
    ) -> None:
        self._append, self._data_of = append, data_of
        self._seen: dict[int, _Seen] = {}
        self._bad: deque[_Bad] = deque()
        self._count = 0

    def look(self, reading: Reading, part: slice, layout: records.StreamOpened, steps: records.Steps) -> None:
        """Takes hold of the batches of bad steps among some that are being recorded.

        Args:
            reading: with the rows.
            part: which of them.
            layout: of the steps.
            steps: the steps that they are.
        """
        with contained("looking for bad steps", "their batches are not kept"):
            seen = self._seen.setdefault(steps.stream, _Seen())
            columns = dict(zip(layout.columns, steps.values.T, strict=False))
            loss = columns.get("loss")
            none = np.zeros(len(steps.values))
            # A step that loss scaling leaves out is expected, unless the loss itself is not finite.
            skipped = columns.get("skipped", none) > 0
            bad = ~np.isfinite(columns.get("grad_norm", none)) & ~skipped
            found: list[tuple[int, str, float]] = []
            if loss is not None:
                bad |= ~np.isfinite(loss)
                found = self._spikes(seen, loss)
            spoils = np.flatnonzero(bad & ~skipped)
            until = 0 if seen.spoilt else spoils[0] if len(spoils) else len(bad)
            found = [one for one in found if one[0] < until]
            seen.spoilt |= len(spoils) > 0
            first = int(bad.argmax())
            if bad[first] and not seen.broke and self._count < MOST:
                found.append((first, _NOT_FINITE, float("nan")))
            times = rows.column(reading, "input_time")[part]
            for at, kind, usual in found:
                number = int(rows.steps(reading)[part][at])
                element, losses = batches.find(reading.ring, number, float(times[at]))
                seen.broke |= kind == _NOT_FINITE
                self._count += 1
                self._bad.append(_Bad(
                    reading.ring, int(columns["step"][at]), layout.prefix, kind,
                    float("nan") if loss is None else float(loss[at]), usual, element, losses,
                ))  # fmt: skip

    def _spikes(self, seen: _Seen, loss: np.ndarray) -> list[tuple[int, str, float]]:
        """The spikes among some losses that are worth keeping, each with the median before it."""
        before, finite = len(seen.losses), np.isfinite(loss)
        curve = np.concatenate([seen.losses, np.where(finite, loss, np.nan)])
        seen.losses = curve[np.isfinite(curve)][-_WINDOW:]
        found: list[tuple[int, str, float]] = []
        previous = np.concatenate([curve[before - 1 : before] if before else [np.nan], loss[:-1]])
        for at in np.flatnonzero(finite & (loss > _RISE * np.abs(previous))):  # few, of which more is asked
            window = curve[max(0, before + at - _WINDOW) : before + at]
            window = window[np.isfinite(window)]
            if len(window) < _FEWEST:
                continue
            median = float(np.median(window))
            spread = 1.4826 * float(np.median(np.abs(window - median)))
            height = (float(loss[at]) - median) / max(spread, 1e-12)
            worst = height >= (_WORSE * seen.highest if seen.spikes >= _ANY else _DEVIATIONS)
            room = self._count + len(found) < MOST - (not seen.broke)
            if loss[at] > _RISE * abs(median) and worst and height >= _DEVIATIONS and room:
                seen.spikes, seen.highest = seen.spikes + 1, max(seen.highest, height)
                found.append((int(at), _SPIKE, median))
        return found

    def keep(self) -> None:
        """Records what was found; two threads may at once."""
        while True:
            try:
                bad = self._bad.popleft()
            except IndexError:
                return
            with contained("keeping the batch of a bad step", "it is not kept"):
                self._keep(bad)

    def _keep(self, bad: _Bad) -> None:
        arrays = {} if bad.element is None else examples.arrays_of(bad.element)
        folder = evidence_folder(bad.prefix, bad.step)
        if not arrays:
            seen = bad.ring.batch is not None or bad.ring.held or bad.element is not None
            why = (
                "it was not held any more: batches are large, or this machine is busy"
                if seen
                else "the step takes its data where Python does not see them (within XLA, or a dataset's own function)"
            )
            say_once(
                f"no batch {why}", f"mlflow_tfmon: the batch of step {bad.step} is not kept, since {why}."
            )
            if bad.kind == _NOT_FINITE:
                text = f"The batch of step {bad.step} could not be kept."
                about = {
                    "step": bad.step,
                    "kind": bad.kind,
                    "loss": _number(bad.loss),
                    "text": text,
                    "why": why,
                }
                self._append(records.Evidence(bad.step, time.time(), about, b"", bad.prefix))
            return
        count = len(next(iter(arrays.values())))
        losses = _losses(bad.losses, count, bad.loss)
        odd = examples.odd(arrays, losses)
        chosen = examples.picked(arrays, odd.examples, MOST_BYTES)
        kept = {name: array[chosen] for name, array in arrays.items()}
        inputs = list(examples.inputs_of(kept).values())
        places = self._places(bad.ring, inputs, chosen, odd.examples)
        where = [places.get(one, -1) for one in chosen] if places else None
        about = {
            "step": bad.step, "kind": bad.kind, "loss": _number(bad.loss), "usual_loss": _number(bad.usual),
            "examples": count, "kept": chosen, "shapes": {name: list(one.shape[1:]) for name, one in arrays.items()},
            "odd": list(odd.examples[:20]), "why_odd": odd.why,
            "losses": None if losses is None else [_number(one) for one in losses[:_TOLD].tolist()],
            "fingerprints": examples.fingerprints(inputs)[:_TOLD], "indices": where,
            "text": _text(bad, odd, places, folder if chosen else ""),
        }  # fmt: skip
        batch = examples.packed(kept) if chosen else b""
        self._append(records.Evidence(bad.step, time.time(), about, batch, bad.prefix))
        if bad.kind == _SPIKE:
            rose = f"the loss rose from {bad.usual:.3g} to {bad.loss:.3g} at step {bad.step}"
            logger.log(logging.INFO, "mlflow_tfmon: %s. %s", rose, about["text"])

    def _places(
        self, ring: Ring, inputs: Sequence[np.ndarray], chosen: Sequence[int], odd: Sequence[int]
    ) -> dict[int, int]:
        """Where some examples are in the data of the fit: the oddest, since whoever trains may wait meanwhile."""
        data = self._data_of(ring)
        arrays = list(examples.inputs_of(examples.arrays_of((data,))).values()) if data is not None else []
        if not arrays:
            return {}
        most = max(1, min(_LOOKED_UP, _LOOKED_AT // max(1, len(arrays[0]))))
        at = {example: place for place, example in enumerate(chosen)}
        some = [one for one in odd if one in at][:most]
        found = examples.places([one[[at[e] for e in some]] for one in inputs], arrays) if some else []
        return {example: place for example, place in zip(some, found, strict=False) if place >= 0}


def data_of(arguments: Any) -> Any:
    """The inputs of a call of fit as arrays, if they are in memory; None if not, or of no fit."""
    if arguments is None:
        return None
    x = in_memory(arguments.x)[0]
    leaves = tf.nest.flatten(x)
    return x if all(isinstance(one, np.ndarray) or hasattr(one, "numpy") for one in leaves) else None


def _text(bad: _Bad, odd: examples.Odd, places: dict[int, int], folder: str) -> str:
    """What is said of a batch, in a sentence or two."""
    kept = f"; kept in {folder}" if folder else "; too large to be kept"
    if not odd.examples or not odd.why:
        return f"No example of the batch of step {bad.step} stands out by its values{kept}."
    first = odd.examples[0]
    at = f", x[{places[first]}]" if places.get(first, -1) >= 0 else ""
    return f"Example {first} of the batch of step {bad.step}{at}: {odd.why}{kept}."


def _losses(values: Sequence[Any], count: int, loss: float) -> np.ndarray | None:
    """The loss of each example, that of all outputs together; None if they are not known to be those of the step."""
    total = np.zeros(count)
    for value in values:
        array = np.asarray(value, np.float64)
        if len(array) != count:
            return None
        total += array.reshape(count, -1).mean(axis=1)
    mean = total.mean()
    # Others may have been computed on the way; weights and regularization are no part of these.
    same = not np.isfinite(loss) or not np.isfinite(mean) or abs(mean - loss) <= max(abs(mean), abs(loss)) / 2
    return total if values and same else None


def _number(value: float) -> float | str:
    """A number as JSON has it; one that is not finite is a text."""
    return value if np.isfinite(value) else str(value)
