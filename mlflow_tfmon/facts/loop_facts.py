"""Facts about a custom loop: its loss, read off the graph of its step, and samples of the batches that it takes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.detectors.premises import CROSS_ENTROPIES, OVER_EXAMPLES, UNKNOWN, Layer, Premises
from mlflow_tfmon.detectors.sample import Sample, mixed
from mlflow_tfmon.facts.premises import class_of, rate_of
from mlflow_tfmon.probes import batches, ledger, objective
from mlflow_tfmon.probes.objective import Kind, Objective
from mlflow_tfmon.stream.ring import Ring

_ENOUGH = 2048  # examples of a sample
_MOST_BYTES = 8 * 2**20  # of each part of a sample
_TEXT_BYTES = 64  # of a text, about
_MOST_LOOKS = 20  # at batches in which nothing is found
_GLANCE = 4  # batches that are looked at where none had anything before
_FEWEST = 64  # examples from which on something is told of a sample
_PER_CLASS = 10  # examples a class of which the frequencies are told
_PILED = 5  # steps whose gradient was that of the step before and more, until it is taken for a habit
_DRIFT = 1.4  # ratio of standard deviations from which on targets are others, as a model's own become
_SHIFT = 0.5  # of a standard deviation, by which their mean has moved then
_REPEATED = 20  # batches in a row that were the same, until that is taken for a habit
_MARKED = 2**16  # numbers of a batch, at most, that is to be known again
_COMPARED = 256  # numbers from which on two samples of targets are compared


class LoopFacts:
    """Gathers what is known of a loop, while it trains.

    Args:
        ring: of its steps.
        known: what is known of its model.
        rings: gives all that the loop writes to: a discriminator's step gets the data that a generator imitates.
        optimizers: how many have trained the same variables by now.
    """

    def __init__(
        self, ring: Ring, known: Premises, rings: Callable[[], Sequence[Ring]], optimizers: int = 1
    ) -> None:
        self._ring, self._rings, self._known = ring, rings, known
        self._objective = objective.of(ring.weights)
        self._found = dataclasses.replace(self._static(known), optimizers=optimizers)
        self._mark, self._alike = b"", 0  # of the only batch so far, and how often it came
        self._glanced = 0.0  # when the last batch came that was looked at
        self._told = False
        self._rows: dict[str, list[np.ndarray]] = {"inputs": [], "targets": [], "real": []}
        self._examples, self._next = 0, 1  # how many were gathered, and from how many on it is told again
        self._seen = 0  # steps whose batches were looked at
        self._steps = 0  # at which the targets are looked at next
        self._drifts = False
        self._fruitless = 0  # looks in a row that found nothing
        self._waits = 0  # the step until which there is no other

    def look(self, known: Premises) -> Premises | None:
        """What is known, if something is new since the last call; to be called now and then, on any thread.

        Args:
            known: what else is known by now.
        """
        news, self._told = not self._told, True
        if not self._found.piles and ledger.piled(self._ring) >= _PILED:
            self._found, news = dataclasses.replace(self._found, piles=True), True
        repeated = self._repeats()
        if repeated != self._found.repeated:
            self._found, news = dataclasses.replace(self._found, repeated=repeated), True
        if self._objective is not None and not self._drifts and self._gather():
            self._found, news = self._sampled(), True
        if not news:
            return None
        own = {
            name: value
            for name, value in vars(self._found).items()
            if value is not getattr(self._known, name)
        }
        return dataclasses.replace(known, **{**own, "more": True})

    # -- what the graph tells --------------------------------------------------------------------------------------
    def _static(self, known: Premises) -> Premises:
        optimizer = self._ring.optimizer()
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        clips = any(getattr(inner, name, None) for name in ("clipnorm", "clipvalue", "global_clipnorm"))
        found = dataclasses.replace(
            known, optimizer=class_of(inner), learning_rate=rate_of(optimizer), clips=clips
        )
        one = self._objective
        if one is None:
            return dataclasses.replace(found, graph=known.graph and bool(known.layers))
        name, from_logits, plain = one.loss, one.from_logits, one.factor > 0 or one.apart
        goal = one.goal
        if goal is not None:
            name, from_logits, plain = goal.name, goal.from_logits, plain and goal.plain and not goal.ignores
        if one.numbered and name == "categorical_crossentropy":
            name = "sparse_categorical_crossentropy"  # which is the same of numbers of classes
        self._loss = name
        return dataclasses.replace(
            found,
            # Targets that a step computes itself may be a model's own predictions: then a loss may well rise.
            loss=name if name in CROSS_ENTROPIES else "",
            from_logits=from_logits, weighted=not plain, layers=_layers(known, one),
            graph=known.graph and bool(known.layers), normalizes=known.normalizes or one.scales,
            broadcast=one.broadcast, factor=one.factor if plain and not one.apart else 1.0,
            in_order=True, divergence=one.divergence, maximized=one.maximized and bool(name), unreached=one.unreached,
            cut=one.cut,
        )  # fmt: skip

    # -- what the batches tell -------------------------------------------------------------------------------------
    def _gather(self) -> bool:
        """Takes more examples; whether there is something to tell of them."""
        full, at = self._examples >= _ENOUGH, self._ring.seen
        if at < (self._steps if full else self._waits) or self._fruitless >= _MOST_LOOKS:
            return False
        new: dict[str, list[Any]] = {"inputs": [], "targets": [], "real": []}
        since, self._seen = at - self._seen, at
        if since <= 0:
            return False
        if self._fruitless:
            since = min(since, _GLANCE)
        made = self._objective is not None and self._objective.made is not None
        for ring in self._rings() if made else (self._ring,):
            for element in batches.recent(ring, since):
                for name, tensor in self._parts(element).items():
                    new[name].append(tensor)
        count = sum(int(one.shape[0]) for one in new["targets"] or new["inputs"] or new["real"])
        if not count:
            self._fruitless += 1
            self._waits = self._steps = at + 2**self._fruitless
            return False
        self._fruitless = 0
        if full:
            self._steps = 2 * at
            self._drifts = self._differ(_arrays(new["targets"], _MOST_BYTES))
            return self._drifts
        for name, kept in self._rows.items():
            kept += _arrays(new[name], _MOST_BYTES - sum(one.nbytes for one in kept))
        self._examples += count
        if self._examples < max(_FEWEST, self._next):
            return False
        self._next, self._steps = 2 * self._examples, 2 * self._ring.seen
        self._drifts = self._differ(self._rows["targets"][len(self._rows["targets"]) // 2 :])
        return True

    def _repeats(self) -> int:
        """How many batches the dataset has of which the loop takes the same one again and again; 0 if it does not.

        Once two were different, no further one is looked at.
        """
        if self._alike < 0:
            return 0
        new = batches.taken(self._ring, self._glanced)[-_REPEATED:]
        for self._glanced, element in new:
            mark = _mark_of(element)
            if not mark or (self._alike and mark != self._mark):
                self._alike = -1
                return 0
            self._mark, self._alike = mark, self._alike + 1
        if not new or self._alike < _REPEATED:
            return self._found.repeated
        size = batches.source_size(self._ring)
        return size if size > 1 else 0

    def _parts(self, element: Any) -> dict[str, Any]:
        """Inputs and targets in what a loop took, or was called with."""
        assert self._objective is not None
        leaves = [one for one in tf.nest.flatten(element) if isinstance(one, tf.Tensor) and one.shape.rank]
        one = self._objective
        found: dict[str, Any] = {}
        inputs, targets = _like(leaves, one.inputs), _like(leaves, one.targets)
        if one.made is not None:  # of a generator, which is given none of the data that it imitates
            real = _like(leaves, one.made)
            return {"real": real[0]} if len(real) == 1 else {}
        # Of two tensors of a kind it can't be told which is which.
        same = one.inputs == one.targets  # an autoencoder's
        if len(inputs) == 1 and (same or all(inputs[0] is not other for other in targets)):
            found["inputs"] = inputs[0]
        if len(targets) == 1 and (same or all(targets[0] is not other for other in inputs)):
            found["targets"] = targets[0]
        elif (
            one.targets is None
            and isinstance(element, tuple)
            and len(element) > 1
            and isinstance(element[1], tf.Tensor)
            and element[1].shape.rank
        ):
            found["targets"] = element[1]
        return found

    def _differ(self, late: Sequence[np.ndarray]) -> bool:
        """Whether targets are not distributed any more as those before: then they may be a model's own."""
        early = self._rows["targets"][: max(1, len(self._rows["targets"]) // 2)]
        if not early or not late or late[-1].dtype.kind != "f":
            return False
        before, after = (
            np.concatenate([one.ravel() for one in some]).astype(float) for some in (early, late)
        )
        if min(len(before), len(after)) < _COMPARED:
            return False
        least, most = sorted((before.std(), after.std()))
        return bool(most > _DRIFT * least or abs(before.mean() - after.mean()) > _SHIFT * least)

    def _sampled(self) -> Premises:
        if self._drifts or self._objective is None:
            loss = self._found.loss if self._found.loss in CROSS_ENTROPIES else ""
            return dataclasses.replace(self._found, loss=loss, targets=None, fed=None, weighted=True)
        real = self._rows["real"]
        if real:
            spread = float(np.concatenate(real).astype(float).std(axis=0).mean())
            return dataclasses.replace(self._found, spread=spread)
        x, y = (_sample(self._rows[name], name == "targets") for name in ("inputs", "targets"))
        found = dataclasses.replace(self._found, inputs=x if self._objective.inputs is not None else None)
        if y is None:
            return found
        known = self._objective.targets is not None or (self._loss in CROSS_ENTROPIES and self._are_labels(y))
        if not known or not self._loss:
            return dataclasses.replace(found, fed=y) if not self._loss else found
        few = self._loss in CROSS_ENTROPIES and y.count < _PER_CLASS * self._objective.units
        return dataclasses.replace(found, loss=self._loss, targets=None if few else y)

    def _are_labels(self, y: Sample) -> bool:
        """Whether what comes second in the batches fits the outputs, where it is not known to be the targets."""
        assert self._objective is not None
        units = self._objective.units
        indicators, numbers = y.one_hot and y.columns == units, y.columns == 1 and y.most < max(2, units)
        return y.whole and y.least >= 0 and (indicators or numbers)


def _layers(known: Premises, one: Objective) -> tuple[Layer, ...]:
    """The layers of the model if it is known, with what its predictions come out of in the loop; else the last one."""
    activation = one.activation or UNKNOWN
    if known.layers:
        return tuple(
            dataclasses.replace(layer, activation=activation)
            if layer.is_output and layer.activation != OVER_EXAMPLES
            else layer
            for layer in known.layers
        )
    if not one.units:
        return ()
    name = one.kernel.rpartition(".")[0] or "the last layer"
    return (Layer(name, "", activation, one.units, one.kernel, is_output=True),)


def _like(leaves: Sequence[Any], kind: Kind | None) -> list[Any]:
    if kind is None:
        return []
    shape = tf.TensorShape(kind.shape)
    return [one for one in leaves if one.dtype == kind.dtype and one.shape[1:].is_compatible_with(shape)]


def _arrays(tensors: Sequence[Any], room: int) -> list[np.ndarray]:
    """As many of the examples as have room, bytes: only these are copied."""
    found: list[np.ndarray] = []
    for tensor in tensors:
        rows, numbers = int(tensor.shape[0]), int(tensor.shape.num_elements() or 1)
        size = numbers * (_TEXT_BYTES if tensor.dtype == tf.string else tensor.dtype.size)
        most = rows if size <= room else max(0, room) * rows // size
        if most <= 0:
            continue
        found.append((tensor if most == rows else tensor[:most]).numpy())
        room -= size
    return found


def _mark_of(element: Any) -> bytes:
    """By which a batch is known again; none if a part of it is neither numbers nor texts, or it is large."""
    leaves = tf.nest.flatten(element)
    told = all(isinstance(one, tf.Tensor) and one.dtype not in (tf.variant, tf.resource) for one in leaves)
    if not told or sum(int(tf.size(one)) for one in leaves) > _MARKED:
        return b""
    mark = hashlib.blake2b()
    for one in leaves:
        values = one.numpy()
        texts = one.dtype == tf.string
        mark.update(repr((one.shape, np.ravel(values).tolist())).encode() if texts else values.tobytes())
    return mark.digest()


def _sample(arrays: Sequence[np.ndarray], targets: bool) -> Sample | None:
    if not arrays or len({one.shape[1:] for one in arrays}) > 1:
        return None
    found = Sample.of(np.concatenate(arrays), targets)
    labels = bool(found.class_counts) and (found.columns == 1 or found.one_hot)
    # Where among the data an example is that is not finite, its place in the sample does not tell.
    return dataclasses.replace(found, nonfinite_at=-1, mixed=mixed(arrays) if labels else float("nan"))
