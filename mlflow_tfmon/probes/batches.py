"""The batches that a training takes, held by reference: of the last steps, until the drain has looked at those steps.

One of them shows what a model's layers give; that of a bad step is kept (`watching.evidence`). Nothing is copied on the
way: what is held is what the step itself works with.
"""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph, replicas
from mlflow_tfmon.stream.ring import Ring

_ROWS = 256  # of a batch, at most, are looked at
_HOST = "CPU:0"  # which takes the batches
_MOST, _MOST_BYTES = (
    1024,
    32 * 2**20,
)  # batches that are held of one kind, and their bytes, unless one has more
_GUESS = 256  # rows of a batch that has not been seen yet
_AT_FIRST = 64  # batches that are held before it is known how many steps there are between two looks
_IDLE_BYTES = (
    4 * 2**20
)  # that are held on when a training ends: a further one would fill them again, an op a batch
_MEASURE_S = 1.0  # s between two looks at the size of batches
_SPARE = 8  # batches that are held beyond those of the steps between two looks
_OUTPUTS = 16  # losses of a batch that are held: a loop may use one batch for ever
_TEXT_BYTES = 64  # of a text, about
_NONE, _UNTIMED = -1, 0  # keys of no batch, and of one that nobody can ask for
_NOT_KEPT = "the batch of a bad step may not be kept"

keeping = True  # whether what is traced from now on holds more than the last batch

_taken: dict[
    int, deque[tuple[float, Any, deque[Any]]]
] = {}  # by thread: when eager code took what, and its losses
_sources: dict[int, weakref.ref[Any] | None] = {}  # by thread: the dataset that eager code took from last
_kept: weakref.WeakKeyDictionary[Ring, tuple[int, Any]] = weakref.WeakKeyDictionary()
_kinds: weakref.WeakValueDictionary[Any, Held] = weakref.WeakValueDictionary()  # those that iterators fill
_unused: deque[tuple[str, tuple[tf.DType, ...]]] = deque()  # names and dtypes of those that are gone
# Names that are free again: TensorFlow keeps kernels for each name, for ever (2.21).
_free: dict[tuple[tf.DType, ...], list[str]] = {}


class Held:
    """The last batches that traced functions took.

    A staging area of TensorFlow: each step puts its batch in and takes the oldest out, two ops however many tensors it
    has (TF 2.16 to 2.21). It holds `depth` batches at any time, at first empty ones: so nobody ever waits for one.

    Args:
        like: the structure of a batch, with its tensors.
        key: dtype of what a batch is found by.
    """

    def __init__(self, like: Any, key: tf.DType) -> None:
        tensors = tf.nest.flatten(like)
        self._like = tf.nest.map_structure(lambda _: None, like)  # no tensor, which would hold its graph
        self._dtypes = (key, *(t.dtype for t in tensors))
        give_back()
        free = _free.get(self._dtypes)
        self._name = free.pop() if free else f"mlflow_tfmon/{uuid.uuid4().hex}"
        self.depth, self._bytes, self._measured = 0, 0, 0.0
        self._lock = threading.RLock()  # one who looks at a place that is gone would wait for ever
        self._usual = _usual(tensors)
        self.resize(self._usual if keeping else 1)
        weakref.finalize(self, _unused.append, (self._name, self._dtypes)).atexit = False

    def put(self, key: tf.Tensor, batch: Any) -> None:
        """Traced: a step's batch comes in."""
        with tf.device(_HOST):
            values = [key, *tf.nest.flatten(batch)]
            with graph.after(tf.raw_ops.Stage(values=values, shared_name=self._name)):
                tf.raw_ops.Unstage(dtypes=self._dtypes, shared_name=self._name)

    def resize(self, depth: int) -> None:
        """Holds so many batches from now on, at least one."""
        with self._lock, tf.init_scope(), tf.device(_HOST):
            while self.depth < depth:
                nothing = [tf.zeros([0], dtype) for dtype in self._dtypes[1:]]
                key = tf.constant(_NONE, self._dtypes[0])
                tf.raw_ops.Stage(values=[key, *nothing], shared_name=self._name)
                self.depth += 1
            while self.depth > max(1, depth):
                self.depth -= 1
                tf.raw_ops.Unstage(dtypes=self._dtypes, shared_name=self._name)

    def follow(self, steps: int) -> None:
        """Holds as many as there are steps between two looks, within the bound."""
        size = self._largest()
        most = _MOST_BYTES // size if size else _MOST
        self.resize(min(_MOST, most, max(self.depth, 2 * steps + _SPARE)))

    def rest(self) -> None:
        """A training ends."""
        if self._bytes:  # else none was looked at
            self.resize(min(self.depth, _IDLE_BYTES // self._bytes))

    def usual(self) -> None:
        """A training begins."""
        self.resize(max(self.depth, self._usual))

    def _largest(self) -> int:
        """Bytes of the largest batch that was seen at a look: an epoch's last one may have a single row."""
        if self._bytes and time.monotonic() < self._measured + _MEASURE_S:
            return self._bytes
        self._measured = time.monotonic()
        with self._lock:
            last = [self._peek(at)[1] for at in range(max(0, self.depth - 2), self.depth)]
        self._bytes = max([self._bytes, *(_size(tf.nest.flatten(one)) for one in last if one is not None)])
        return self._bytes

    def newest(self) -> Any:
        """The last batch; None if there is none yet."""
        with self._lock:
            return self._peek(self.depth - 1)[1]

    def last(self, most: int) -> list[Any]:
        """The last batches, so many at most, as far as there are any."""
        with self._lock:
            found = [self._peek(at)[1] for at in range(max(0, self.depth - most), self.depth)]
        return [one for one in found if one is not None]

    def find(self, key: float) -> Any:
        """The batch with a key; None if it is held no more."""
        with self._lock:
            # From the last on: meanwhile, each step moves all of them towards the first.
            for at in reversed(range(self.depth)):
                found, batch = self._peek(at)
                if found == key and batch is not None:
                    return batch
        return None

    def _peek(self, at: int) -> tuple[float, Any]:
        with tf.device(_HOST):
            index = tf.constant(at, tf.int32)
            key, *tensors = tf.raw_ops.StagePeek(index=index, dtypes=self._dtypes, shared_name=self._name)
        number = float(key)
        return number, None if number == _NONE else tf.nest.pack_sequence_as(self._like, tensors)


def give_back() -> None:
    """Gives back what is held for functions that are gone: TensorFlow would keep it."""
    while _unused:
        name, dtypes = _unused.popleft()
        with tf.init_scope(), tf.device(_HOST):
            tf.raw_ops.StageClear(dtypes=dtypes, shared_name=name)
        _free.setdefault(dtypes, []).append(name)


def hold(function: Any, element: Any, time: tf.Tensor | None) -> None:
    """In a function that takes a batch from an iterator: holds it.

    Args:
        function: which is being traced.
        element: what it took.
        time: when, as the step's row will say; None if it says nothing.
    """
    batch = element if _dense(tf.nest.flatten(element)) else _inputs(element)
    if batch is None:
        return
    notes, tensors = graph.notes(function), tf.nest.flatten(batch)
    like = tf.nest.map_structure(lambda _: None, batch)
    kind = str(like), *(t.dtype for t in tensors)  # further traces of a function have the same
    held = notes["batch"] = _kinds.get(kind) or Held(batch, tf.float64)
    _kinds[kind] = held
    if keeping:
        held.usual()
    graph.keep_alive(held)
    with tf.device(_HOST):
        held.put(tf.constant(_UNTIMED, tf.float64) if time is None else time, batch)


def took(element: Any, time: float, iterator: Any = None) -> None:
    """In eager code that took a batch from an iterator: holds it."""
    thread = threading.get_ident()
    dataset = getattr(iterator, "_dataset", None)  # of an OwnedIterator (TF 2.16 to 2.21)
    _sources[thread] = None if dataset is None else weakref.ref(dataset)
    taken = _taken.get(thread)
    if taken is None:
        leaves = tf.nest.flatten(element)
        taken = _taken[thread] = deque(maxlen=_usual(leaves) if keeping and _dense(leaves) else 1)
    taken.append((time, element, deque(maxlen=_OUTPUTS)))


def watch_losses(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps Keras's `reduce_weighted_values`, which makes one number of the losses of a batch's examples."""

    def reduce_weighted_values(values: Any, *args: Any, **kwargs: Any) -> Any:
        with contained("the losses of the examples", _NOT_KEPT):
            function = graph.tracing()
            if keeping and tf.is_tensor(values) and values.shape.rank:
                taken = _taken.get(threading.get_ident())
                if function is not None:
                    graph.notes(function).setdefault("losses", []).append(values)
                elif taken and tf.executing_eagerly():
                    taken[-1][2].append(values)
        return original(values, *args, **kwargs)

    return reduce_weighted_values


def hold_step(ring: Ring, done: tf.Tensor) -> None:
    """In a function that makes a step: holds the losses of its examples, and its batch if nothing else does.

    That of a loop over arrays is what the function is called with. Where the weights are on another device, or XLA
    compiles the step, neither can be had without a wait.

    Args:
        ring: of the step.
        done: steps before it.
    """
    function = graph.tracing()
    if function is None or not keeping:
        return
    noted = graph.notes(function).pop("losses", [])
    if graph.in_xla() or ring.layout.split or replicas.count() > 1:
        return
    losses = [one for one in noted if one.graph is tf.compat.v1.get_default_graph()]
    given = None if in_reach() is not None else _arguments(function)
    if given is not None and _is_taken(tf.nest.flatten(given)):
        given = None
    batch = {"batch": given or (), "losses": losses}
    if not given and not losses:
        return
    kind = str(tf.nest.map_structure(lambda t: t.dtype, batch))
    held = ring.held.get(kind)
    if held is None:
        held = ring.held[kind] = Held(batch, done.dtype)
    held.put(done, batch)


def _arguments(function: Any) -> Any:
    """What the traced function around was called with, as (x, y, sample_weight), if that are tensors of as many rows.

    Of more than three it can't be told which is what: they are the inputs.
    """
    kinds = [(type(one).__name__, one) for one in graph.enclosing(function)]
    at = next((at for at, (kind, _) in enumerate(kinds) if kind == "FuncGraph"), None)
    # Of a function that loops over what it is called with, no step's batch is known.
    if at is None or any("While" in kind for kind, _ in kinds[:at]):
        return None
    around = kinds[at][1]
    captured = {id(t) for t in around.internal_captures}
    given = {
        t.op.name: t for t in around.inputs
        if id(t) not in captured and t.shape.rank and t.dtype not in (tf.resource, tf.variant)
    }  # fmt: skip
    if not given or len({t.shape[0] for t in given.values()} - {None}) > 1:
        return None
    return tuple(given.values()) if len(given) <= 3 else (given,)


def _is_taken(given: Sequence[tf.Tensor]) -> bool:
    """Whether these are what eager code takes from an iterator and hands over."""
    taken = _taken.get(replicas.user_thread())
    leaves = [t for t in tf.nest.flatten(taken[-1][1]) if tf.is_tensor(t)] if taken else []
    return all(
        any(t.dtype == one.dtype and t.shape[1:].is_compatible_with(one.shape[1:]) for one in leaves)
        for t in given
    )


def forget() -> None:
    """Lets go of what eager code took."""
    _taken.clear()
    _sources.clear()


def in_reach() -> Held | None:
    """The batches of the function that feeds what is being traced, or None if they come from elsewhere."""
    found = (graph.notes(function).get("batch") for function in graph.enclosing(graph.tracing()))
    return next((batch for batch in found if batch is not None), None)


def begin(ring: Ring) -> None:
    """A training begins whose bad steps are kept: more than its last batch is held."""
    for held in _all(ring):
        held.usual()


def end(ring: Ring) -> None:
    """Nobody looks at a ring's steps from now on: few bytes are held, or one batch."""
    for held in _all(ring):
        held.rest()
    _taken.pop(ring.thread, None)


def _all(ring: Ring) -> list[Held]:
    return [*([] if ring.batch is None else [ring.batch]), *ring.held.values()]


def glance(ring: Ring, steps: int, follow: bool) -> None:
    """Keeps the inputs of the batch that a ring's training took last, if it has more rows than those kept before.

    An epoch's last batch may have a single row, which tells little: so this is called now and then, on any thread.

    Args:
        ring: of the training.
        steps: how many there are since the last call.
        follow: whether as many batches are to be held.
    """
    with contained("keeping a batch", "activations may not be recorded"):
        most, _ = kept(ring)
        taken = _taken.get(ring.thread)
        last = None
        if most < _ROWS:  # before more are held, the first of which are empty
            last = (taken[-1][1] if taken else None) if ring.batch is None else ring.batch.newest()
        if follow:
            for held in _all(ring):
                held.follow(steps)
            if taken and ring.batch is None and _dense(tf.nest.flatten(taken[-1][1])):
                size = max(_size(tf.nest.flatten(one)) for _, one, _ in list(taken)[-2:])
                bound = min(_MOST, max(1, _MOST_BYTES // max(1, size)))
                wanted = min(bound, max(taken.maxlen or 1, 2 * steps + _SPARE))
                if wanted != taken.maxlen:
                    _taken[ring.thread] = deque(taken, maxlen=wanted)
        if last is None or (inputs := _inputs(last)) is None:
            return
        inputs = tf.nest.map_structure(lambda t: t[:_ROWS], inputs)
        rows = {int(t.shape[0]) for t in tf.nest.flatten(inputs)}
        if len(rows) == 1 and max(rows) > most:
            _kept[ring] = rows.pop(), inputs


def kept(ring: Ring) -> tuple[int, Any]:
    """How many rows are kept, and they: inputs of a model that a ring's training took from its dataset, or None."""
    return _kept.get(ring, (0, None))


def recent(ring: Ring, most: int) -> list[Any]:
    """The last batches that a ring's training took, or its step was called with: so many at most, and as are held."""
    most = min(most, _AT_FIRST)
    if most <= 0:
        return []
    if ring.batch is not None:
        return ring.batch.last(most)
    taken = _taken.get(ring.thread)
    if taken:
        return [element for _, element, _ in list(taken)[-most:]]
    given = [one["batch"] for held in ring.held.values() for one in held.last(most)]
    return [one for one in given if one]


def taken(ring: Ring, after: float) -> list[tuple[float, Any]]:
    """The batches that a ring's thread took in eager code after a time, as far as they are held, each with its time."""
    return [(time, element) for time, element, _ in list(_taken.get(ring.thread, ())) if time > after]


def source_size(ring: Ring) -> int:
    """How many batches the dataset has that a ring's thread took from last; below 0 for endless, or unknown."""
    source = _sources.get(ring.thread)
    dataset = None if source is None else source()
    return -1 if dataset is None else int(dataset.cardinality())


def find(ring: Ring, step: int, time: float) -> tuple[Any, list[Any]]:
    """The batch of a step, and the losses of its examples, each as far as it is still held: else None, and none.

    Args:
        ring: of the step.
        step: the ring's own number of it.
        time: when its batch was there, as its row says.
    """
    losses: list[Any] = []
    for held in ring.held.values():
        found = held.find(step - 1)
        if found is not None:
            losses = list(found["losses"])
            if found["batch"]:
                return found["batch"], losses
    for held in list(_kinds.values()) if time > 0 else ():
        batch = held.find(time)
        if batch is not None:
            return batch, losses
    for then, element, of_eager in reversed(list(_taken.get(ring.thread, ()))):
        if then == time:
            return element, losses or list(of_eager)
    return None, losses


def _usual(tensors: Sequence[Any]) -> int:
    """How many batches are held until it is known how large they are, and how many steps there are between looks."""
    return min(_AT_FIRST, max(1, _MOST_BYTES // max(1, _size(tensors))))


def _size(tensors: Sequence[Any]) -> int:
    """Bytes of a batch, which may not be there yet."""
    return sum(
        (_TEXT_BYTES if t.dtype == tf.string else t.dtype.size)
        * (tf.TensorShape([_GUESS if n is None else n for n in t.shape]).num_elements() or 0)
        for t in tensors
    )


def _dense(tensors: Sequence[Any]) -> bool:
    return bool(tensors) and all(isinstance(t, tf.Tensor) and t.shape.rank is not None for t in tensors)


def _inputs(element: Any) -> Any:
    """The model's part of an element (x, (x,), (x, y), (x, y, sample_weight)) if it is made of dense tensors."""
    inputs = element[0] if isinstance(element, tuple) and element else element
    tensors = tf.nest.flatten(inputs)
    if not tensors or not all(isinstance(t, tf.Tensor) and t.shape.rank for t in tensors):
        return None
    return inputs
