"""The objective of a step: what its loss compares with what, as far as the graph of the step tells.

A custom loop tells nobody what its loss is. But it is made of ops: from what the tape differentiates back to a
cross-entropy or a squared difference, and to the predictions and targets that go into it. Keras's losses are noted as
they are called. All of it is looked at while the step is traced, or once of eager code: no step costs anything.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import tensorflow as tf

from mlflow_tfmon.detectors.premises import CROSS_ENTROPIES, OVER_EXAMPLES
from mlflow_tfmon.errors import contained
from mlflow_tfmon.probes import graph, replicas
from mlflow_tfmon.probes.broadcast import broadcast
from mlflow_tfmon.probes.goal import Goal, goal_of
from mlflow_tfmon.probes.origin import constant, op_of, outermost, outward

# The same numbers, arranged anew or some of them.
_SAME = frozenset(
    {
        "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "StridedSlice", "CheckNumerics", "StopGradient",
        "Snapshot", "Transpose", "IdentityN", "EnsureShape", "Pad",
    }
)  # fmt: skip
_WEIGHTS = frozenset({"MatMul", "BatchMatMulV2", "Conv2D", "Einsum", "BiasAdd", "AddV2", "Add"})
_GIVEN = frozenset({"Placeholder", "IteratorGetNext", "OptionalGetValue"})  # what a step is given
_RANDOM = frozenset(
    {
        "RandomStandardNormal", "RandomUniform", "TruncatedNormal", "StatelessRandomNormal", "StatelessRandomUniform",
        "StatelessRandomNormalV2", "StatelessRandomUniformV2", "StatelessTruncatedNormal", "StatelessTruncatedNormalV2",
    }
)  # fmt: skip
_ACTIVATIONS = {
    "Softmax": "softmax", "Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softplus": "softplus",
    "Exp": "exponential", "Relu6": "relu6", "Elu": "elu", "Softsign": "softsign",
}  # fmt: skip
_KERNELS = frozenset({"MatMul", "BatchMatMulV2", "Conv2D", "Conv3D", "Einsum"})
_SQUARES = frozenset({"Square", "Mul", "Pow"})
_NAMES_CLASS = frozenset({"ArgMax", "TopKV2", "InTopKV2"})
_MOST_OPS = 2000  # of a step are looked at
_MOST_CORES = 4  # distances from targets that are measured
# Of what a generator makes; of a loss the distance from targets alone.
SPREAD, DATA = "output_spread", "data_loss"
_SQUARED, _ABSOLUTE = "mean_squared_error", "mean_absolute_error"
_SPARSE, _ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"
_BINARY = "binary_crossentropy"


class Kind(NamedTuple):
    """Dtype and shape of the examples of a tensor that a step is given, by which it is found in a batch."""

    dtype: tf.DType
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Objective:
    """What a step makes small.

    Attributes:
        loss: Keras's name of it, in snake case; "" if unknown.
        goal: what the loss of Keras is, where it is one.
        from_logits: whether it takes logits.
        factor: how many times the mean over the examples it is, if it is that and no more, but for the divergence of a
            variational autoencoder; else NaN.
        divergence: whether that is a part of it.
        maximized: whether all of it has a minus sign.
        broadcast: two shapes that it broadcasts to each other, or "".
        activation: that the predictions come out of; "" if unknown.
        units: the size of their last axis; 0 if unknown.
        kernel: the variable of the last layer, if nothing but an activation comes after it; "" if unknown.
        targets: kind of the tensor with the targets, where they are as the step is given them.
        numbered: whether these are numbers of classes, of which the step makes indicators.
        inputs: the same of the inputs, where there is one tensor with them.
        scales: whether inputs go through something before the first kernel.
        unreached: kernels for which the tape gave no gradient.
        cut: whether one of these was asked for before one that has a gradient.
        made: kind of what a generator makes, where its loss is what another network says of that.
        apart: whether the distance to targets is measured apart from the other terms of the loss.
    """

    loss: str = ""
    goal: Goal | None = None
    from_logits: bool = False
    factor: float = math.nan
    divergence: bool = False
    maximized: bool = False
    broadcast: str = ""
    activation: str = ""
    units: int = 0
    kernel: str = ""
    targets: Kind | None = None
    numbered: bool = False
    inputs: Kind | None = None
    scales: bool = True
    unreached: tuple[str, ...] = ()
    cut: bool = False
    made: Kind | None = None
    apart: bool = False


class _Core(NamedTuple):
    """A distance of predictions from targets, whose mean is the loss or a part of it."""

    loss: str
    targets: Any
    predictions: Any
    of_keras: Any = None
    from_logits: bool = False
    weighted: bool = False
    mean: Any = None


class _Other(NamedTuple):
    """Another term of a loss: the type of the op that gives it ("" if unknown), and the tensor."""

    kind: str
    tensor: Any


class _Called(NamedTuple):
    """A call of a loss of Keras: what it gave, and what it was given."""

    result: Any
    of_keras: Any
    targets: Any
    predictions: Any
    weighted: bool


class _Reads(NamedTuple):
    """What a tensor depends on: weights that are trained, others, data, and whether some of these also go past."""

    mine: bool = False
    others: bool = False
    data: frozenset[int] = frozenset()
    past: bool = False


class _Last(threading.local):
    """The last call in eager code: its result, and what is held of it as long as that lives."""

    result: weakref.ref[Any] | None = None
    held: Sequence[_Called] = ()


_eager = _Last()
# By the ids of variables; of eager code also the loss object of Keras.
_known: dict[int, tuple[Callable[[], Any], Objective, Callable[[], Any] | None]] = {}


def watch_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `Loss.__call__` of Keras."""

    def __call__(self: Any, y_true: Any, y_pred: Any, sample_weight: Any = None, **how: Any) -> Any:
        result = original(self, y_true, y_pred, sample_weight, **how)
        with contained("noting a loss", "some problems may not be found"):
            if tf.is_tensor(result) and tf.is_tensor(y_pred):
                function = graph.tracing()
                if function is not None:
                    call = _Called(result, self, y_true, y_pred, sample_weight is not None)
                    graph.notes(function).setdefault("called", {})[id(result)] = call
                elif tf.executing_eagerly():  # until a tape is asked, or nobody has the result any more
                    held = [_Called(None, self, None, y_pred, sample_weight is not None)]
                    _eager.result = weakref.ref(result, functools.partial(_let_go, held))
                    _eager.held = held
        return result

    return __call__


def _let_go(held: list[_Called], gone: Any) -> None:
    held.clear()


def _taken(losses: Sequence[Any]) -> _Called | None:
    """The last call in eager code, if it gave what is differentiated."""
    result, held = _eager.result, list(_eager.held)
    _eager.result, _eager.held = None, ()
    return held[0] if held and len(losses) == 1 and result is not None and result() is losses[0] else None


def note(losses: Sequence[Any], asked: Sequence[tuple[Any, Any]]) -> dict[str, list[Any]]:
    """Notes the objective of a step as a tape is asked for its gradients; of eager code, that of the first step.

    Args:
        losses: what is differentiated.
        asked: the variables that gradients are asked of, each with its gradient, or None.

    Returns:
        What is to be measured at each step, by name: how far apart the examples are that the variables make for
        another network to judge; the distances from targets that the loss has terms of, where it has other terms too.
    """
    function = graph.tracing()
    call = _taken(losses)
    first = next((graph.raw(v) for v, g in asked if g is not None), None)
    if first is None or (function is None and not _is_news(first, call)):
        return {}
    given = [graph.raw(v) for v, g in asked if g is not None]
    kernels = [(graph.name(v), g is not None) for v, g in asked if len(v.shape) > 1]
    unreached = tuple(name for name, reached in kernels if not reached)
    cut = any(
        not reached and any(later for _, later in kernels[at:]) for at, (_, reached) in enumerate(kernels)
    )
    terms: list[tuple[float, _Core | _Other]] = []
    found = _of_graph(function, losses, given, terms) if function is not None else _of_eager(call)
    parts = _measured(terms, given, found) if replicas.count() == 1 else {}
    alone = function is None or found.get("targets") is not None or replicas.count() > 1
    made = None if alone else made_of(losses, asked)
    kind = None if made is None else Kind(made.dtype, tuple(made.shape[1:]))
    apart = DATA in parts
    one = Objective(**{**found, "unreached": unreached, "cut": cut, "made": kind, "apart": apart})
    loss = None if function is not None or call is None else _weakly(call.of_keras)
    for variable in given:
        gone = functools.partial(_known.pop, id(variable))  # called with the reference, the default
        _known[id(variable)] = weakref.ref(variable, gone), one, loss
    return parts if made is None else {**parts, SPREAD: [spread(made)]}


def _measured(
    terms: Sequence[tuple[float, _Core | _Other]], weights: Sequence[tf.Variable], found: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """The distances from targets that a loss of several terms has, by name: one, or those of several outputs."""
    cores = [core for _, core in terms if isinstance(core, _Core)]
    if any(core.mean is None or core.weighted for core in cores) or len(cores) > _MOST_CORES:
        return {}
    if len(cores) == 1:
        rest = [one.tensor for _, one in terms if isinstance(one, _Other)]
        # Beside a critic's squared error there may be the loss of what acts: the error may well stay as it is.
        goal = found["goal"]
        penalties = (found["loss"] or (goal and goal.name)) in CROSS_ENTROPIES or not any(
            map(_is_of_data, rest)
        )
        other = math.isnan(found["factor"]) and rest and penalties
        return {DATA: [tf.reduce_mean(cores[0].mean)]} if other else {}
    names = [_kernel(_activation(core.predictions)[1], weights).rpartition(".")[0] for core in cores]
    if len({*names} - {""}) < len(cores):
        names = [f"term_{at}" for at in range(1, len(cores) + 1)]
    each = zip(names, cores, strict=True)
    return {f"{name.replace('.', '_')}_loss": [tf.reduce_mean(core.mean)] for name, core in each}


def _weakly(loss: Any) -> Callable[[], Any] | None:
    try:
        return weakref.ref(loss)
    except TypeError:
        return None


def _is_news(variable: Any, call: _Called | None) -> bool:
    """Whether eager code trains a variable with a loss of Keras that is not known of it."""
    one = _objective(variable)
    if one is None or call is None:
        return one is None
    _, _, loss = _known[id(variable)]
    # A step may well make its loss anew each time.
    return (loss is None or loss() is not call.of_keras) and one.goal != _goal(call.of_keras)


def _goal(loss: Any) -> Goal:
    return goal_of(SimpleNamespace(loss=loss))


def of(variables: Sequence[tf.Variable]) -> Objective | None:
    """The objective by which variables are trained; None if none was noted."""
    return next((one for one in map(_objective, variables) if one is not None), None)


def made_of(losses: Sequence[Any], asked: Sequence[tuple[Any, Any]]) -> Any:
    """What the variables that are trained make for others to judge (a generator's examples); None if they do not.

    The tensor that depends on them and on no other weights, and goes into what depends on others. None where the other
    network is given some of the same data: a teacher's, or a critic's, which is told the state that an actor acts in.
    """
    own = {id(graph.raw(v).handle) for v, _ in asked if hasattr(graph.raw(v), "handle")}
    reads: dict[int, _Reads] = {}  # by the ids of tensors
    found: list[Any] = []
    kept: list[Any] = []  # so that ids stay those of their tensors
    others: set[int] = set()  # what goes into other weights and into none of their own
    pending = [outward(one) for one in losses]
    while pending:
        if len(reads) >= _MOST_OPS:
            return None
        at = pending[-1]
        op = op_of(at)
        if id(at) in reads or op is None:
            reads.setdefault(id(at), _Reads())
            pending.pop()
            continue
        kept.append(at)
        if op.type == "ReadVariableOp":
            mine = id(outermost(op.inputs[0])) in own
            reads[id(at)] = _Reads(mine, not mine and at.dtype.is_floating)
            continue
        if op.type in _GIVEN or op.type in _RANDOM or op.type == "Shape":
            reads[id(at)] = _Reads(data=frozenset() if op.type == "Shape" else frozenset({id(at)}))
            continue
        inputs = [outward(one) for one in op.inputs if one.dtype not in (tf.resource, tf.variant)]
        unknown = [one for one in inputs if id(one) not in reads and op_of(one) is not None]
        if unknown:
            pending += unknown
            continue
        each = [reads.get(id(one), _Reads()) for one in inputs]
        makes = [one for one in each if one.mine and not one.others]
        beside = frozenset[int]().union(*(one.data for one in each if not one.mine))
        reads[id(at)] = _Reads(
            any(one.mine for one in each),
            any(one.others for one in each),
            frozenset[int]().union(*(one.data for one in each)),
            # Data that go past their own weights: the next network is given them too.
            any(one.past for one in each) or any(one.data & beside for one in makes),
        )
        if reads[id(at)].others and not reads[id(at)].mine:
            others |= reads[id(at)].data
        if reads[id(at)].mine and reads[id(at)].others:
            judged = [one for one, read in zip(inputs, each, strict=True) if read in makes and read.data]
            if judged and any(one.data for one in each if one not in makes):
                return None  # it is compared with what the others make of data
            found += judged
    examples = [one for one in found if one.shape.rank and one.shape.rank > 1 and one.dtype.is_floating]
    if len({id(one) for one in examples}) != 1:
        return None
    made = reads[id(examples[0])]
    return None if made.past or made.data & others else examples[0]


def spread(made: tf.Tensor) -> tf.Tensor:
    """The standard deviation of each number of the examples over the batch, in the mean."""
    return tf.reduce_mean(tf.math.reduce_std(tf.cast(made, tf.float32), axis=0))


def _objective(variable: Any) -> Objective | None:
    known = _known.get(id(variable))
    return known[1] if known is not None and known[0]() is variable else None


def _of_eager(call: _Called | None) -> dict[str, Any]:
    if call is None:
        return {}
    return {
        "goal": _goal(call.of_keras),
        "factor": math.nan if call.weighted else 1.0,
        "activation": _by_values(call.predictions),
        "units": _units(call.predictions),
    }


def _units(predictions: Any) -> int:
    """The size of the last axis of a batch's predictions; 1 if each is one number."""
    rank = predictions.shape.rank
    return int(predictions.shape[-1] or 0) if rank and rank > 1 else 1


def _by_values(predictions: Any) -> str:
    """What predictions can't but have come out of: "linear" for some outside of 0 to 1, else unknown."""
    outside = tf.reduce_any((predictions < 0) | (predictions > 1))
    return "linear" if bool(outside) else ""


def _is_of_data(tensor: Any) -> bool:
    """Whether a tensor is computed from what a step is given, or draws: not from weights alone."""
    pending, seen = [tensor], set[int]()
    while pending and len(seen) < _MOST_OPS:
        at = outward(pending.pop())
        op = op_of(at)
        if op is None or op.type in _GIVEN or op.type in _RANDOM:
            return not (op is not None and at.dtype == tf.resource)
        if id(op) not in seen:
            seen.add(id(op))
            pending += [] if op.type == "ReadVariableOp" else list(op.inputs)
    return len(seen) >= _MOST_OPS


def _of_graph(
    function: Any,
    losses: Sequence[Any],
    weights: Sequence[tf.Variable],
    terms: list[tuple[float, _Core | _Other]],
) -> dict[str, Any]:
    """What the graph of a step tells, and the terms of its loss."""
    called: dict[int, _Called] = {}
    for outer in graph.enclosing(function):
        called |= graph.notes(outer).get("called", {})
    shapes = broadcast(losses)
    left = [_MOST_OPS]
    # What is differentiated of several numbers is their sum.
    sizes = [loss.shape.num_elements() for loss in losses]
    each = zip(losses, [math.nan if size is None else float(size) for size in sizes], strict=True)
    terms += [one for loss, size in each for one in _terms(loss, size, called, left)]
    if left[0] <= 0:
        terms.clear()
    known = [(factor, core) for factor, core in terms if isinstance(core, _Core)]
    if len(known) != 1:
        return {"broadcast": shapes}
    factor, core = known[0]
    others = sorted(one.kind for _, one in terms if isinstance(one, _Other))
    # 1 + log(variance) - mean^2 - variance, of which the 1 is left out.
    divergence = len(others) == 3 and "Exp" in others and bool(_SQUARES & set(others))
    whole = (not others or divergence) and not core.weighted
    predictions = core.predictions
    activation, at = _activation(predictions)
    kernel = _kernel(at, weights)
    if activation == OVER_EXAMPLES and not kernel:  # similarities of examples, say
        activation = ""
    inputs = list(_inputs(at))
    return {
        "loss": core.loss,
        "goal": None if core.of_keras is None else _goal(core.of_keras),
        "from_logits": core.from_logits,
        "factor": factor if whole else math.nan,
        "divergence": divergence,
        "maximized": not others and factor < 0,
        "broadcast": shapes,
        "activation": activation,
        "units": _units(predictions),
        "kernel": kernel,
        "targets": _given(core.targets),
        "numbered": _is_numbered(core.targets),
        "inputs": inputs[0][0] if len(inputs) == 1 else None,
        "scales": any(scaled for _, scaled in inputs),
    }


def _terms(
    tensor: Any, factor: float, called: Mapping[int, _Called], left: list[int], depth: int = 0
) -> Iterator[tuple[float, _Core | _Other]]:
    """The terms that a loss is the sum of, each with its factor (NaN if unknown): distances, and others.

    Of a tensor that is used again and again the terms are many: `left` is how many ops may yet be looked at.
    """
    left[0] -= 1
    if left[0] <= 0:
        return
    tensor = outward(tensor)
    call = called.get(id(tensor))
    if call is not None:
        # Of a sum over the examples it is not known how many there were.
        mean = call.result if call.result.shape.rank or _goal(call.of_keras).plain else None
        yield factor, _Core("", call.targets, call.predictions, call.of_keras, False, call.weighted, mean)
        return
    op = op_of(tensor)
    core = None if op is None or depth > 40 else _core(op)
    if op is not None and core is not None:
        mean = tensor
        if op.type == "Mul" and core.loss == _ONE_HOT:  # which is summed over the classes
            classes = core.predictions.shape[-1] or math.nan
            factor, mean = -factor / classes, None
        yield factor, core._replace(mean=mean)
        return
    inputs = [] if op is None else list(op.inputs)
    within: list[tuple[float, Any]] = []
    if op is None or depth > 40:
        pass
    elif op.type in _SAME or op.type == "Mean":
        within = [(factor, inputs[0])]
    elif op.type == "Sum":
        within = [(factor * _summed(op), inputs[0])]
    elif op.type == "Neg":
        within = [(-factor, inputs[0])]
    elif op.type in ("Add", "AddV2", "AddN"):
        within = [(factor, one) for one in inputs if constant(one) is None]
    elif op.type == "Sub":
        within = [
            (sign * factor, one) for sign, one in zip((1, -1), inputs, strict=True) if constant(one) is None
        ]
    elif op.type == "Mul" and any(constant(one) is not None for one in inputs):
        number, other = inputs if constant(inputs[0]) is not None else inputs[::-1]
        within = [(factor * (constant(number) or 0.0), other)]
    elif op.type in ("RealDiv", "DivNoNan"):
        divisor = constant(inputs[1])
        within = [(factor / divisor if divisor else math.copysign(math.nan, factor), inputs[0])]
    if not within:
        yield factor, _Other("" if op is None else str(op.type), tensor)
    for share, one in within:
        yield from _terms(one, share, called, left, depth + 1)


def _summed(op: Any) -> float:
    """How many numbers are added up to one."""
    shape, axes = op.inputs[0].shape, tf.get_static_value(op.inputs[1])
    if shape.rank is None or axes is None:
        return math.nan
    sizes = [shape[int(axis)] for axis in axes.reshape(-1)]
    return math.nan if None in sizes else float(math.prod(sizes))


def _core(op: Any) -> _Core | None:
    """The distance that an op computes of each example, or of each of its numbers."""
    inputs = list(op.inputs)
    if op.type == "SparseSoftmaxCrossEntropyWithLogits":
        return _softmax(inputs[0], inputs[1], _SPARSE)
    if op.type == "SoftmaxCrossEntropyWithLogits":
        return _softmax(inputs[0], inputs[1], _ONE_HOT)
    if op.type in ("AddV2", "Add") and op.name.split("/")[-1].startswith("logistic_loss"):
        # tf.nn.sigmoid_cross_entropy_with_logits: relu(x) - x * z + log(1 + exp(-abs(x))) (TF 2.16 to 2.21)
        below = [op_of(one) for one in getattr(op_of(inputs[0]), "inputs", ())]
        product = next((one for one in below if one is not None and one.type == "Mul"), None)
        return None if product is None else _Core(_BINARY, product.inputs[1], product.inputs[0], None, True)
    if op.type == "Mul":
        for one, other in (inputs, inputs[::-1]):
            log = op_of(_same(other))
            if log is not None and log.type in ("Log", "LogSoftmax") and _given(one) is not None:
                logits = log.type == "LogSoftmax"
                p = log.inputs[0] if logits else _bounded(log.inputs[0])
                of_classes = (p.shape.rank or 0) > 1 and (p.shape[-1] or 0) > 1
                over_others = getattr(op_of(p), "type", "") == "Transpose"  # a softmax over another axis
                return _Core(_ONE_HOT, one, p, None, logits) if of_classes and not over_others else None
    pair = _difference(op)
    if pair is not None:
        for y, p in (pair, pair[::-1]):
            if _given(y) is not None and _given(p) is None:
                return _Core(_ABSOLUTE if op.type == "Abs" else _SQUARED, y, p)
    return None


def _softmax(logits: Any, labels: Any, loss: str) -> _Core:
    """A cross-entropy of logits, or of the logarithms of probabilities, as Keras computes that of probabilities."""
    log = op_of(_same(logits))
    if log is not None and log.type == "Log":
        return _Core(loss, labels, _bounded(log.inputs[0]))
    return _Core(loss, labels, logits, None, True)


def _difference(op: Any) -> tuple[Any, Any] | None:
    """The two that an op gives the squared, or absolute, difference of."""
    if op.type == "SquaredDifference":
        return op.inputs[0], op.inputs[1]
    squares = op.type == "Mul" and outward(op.inputs[0]) is outward(op.inputs[1])
    squares |= op.type == "Pow" and constant(op.inputs[1]) == 2.0
    if op.type not in ("Square", "Abs") and not squares:
        return None
    inner = op_of(_same(op.inputs[0]))
    return (inner.inputs[0], inner.inputs[1]) if inner is not None and inner.type == "Sub" else None


def _bounded(tensor: Any) -> Any:
    """What was kept away from 0 (and 1), or made to add up to 1, before its logarithm was taken."""
    while (op := op_of(outward(tensor))) is not None:
        keeps = op.type in ("ClipByValue", "Minimum", "Maximum") or (
            op.type in ("AddV2", "Add") and constant(op.inputs[1]) is not None
        )
        shares = op.type == "RealDiv" and (below := op_of(op.inputs[1])) is not None and below.type == "Sum"
        if not keeps and not shares:
            break
        tensor = op.inputs[0]
    return tensor


def _same(tensor: Any) -> Any:
    """The tensor that has a tensor's numbers, before they were arranged anew."""
    tensor = outward(tensor)
    while (op := op_of(tensor)) is not None and op.type in _SAME and op.inputs:
        tensor = outward(op.inputs[getattr(tensor, "value_index", 0) if op.type == "IdentityN" else 0])
    return tensor


def _given(tensor: Any) -> Kind | None:
    """The kind of what a step is given, if a tensor is that, arranged anew or as indicators of classes."""
    if not tf.is_tensor(tensor):
        return None
    tensor = _same(tensor)
    op = op_of(tensor)
    if op is not None and op.type == "OneHot":
        tensor = _same(op.inputs[0])
        op = op_of(tensor)
    if op is None or op.type not in _GIVEN or not tensor.shape.rank:
        return None
    return Kind(tensor.dtype, tuple(tensor.shape[1:]))


def _is_numbered(tensor: Any) -> bool:
    op = op_of(_same(tensor)) if tf.is_tensor(tensor) else None
    return op is not None and op.type == "OneHot"


def _activation(predictions: Any) -> tuple[str, Any]:
    """What predictions come out of, and the tensor that went into it."""
    at = _same(predictions)
    op = op_of(at)
    if op is None:
        return "", at
    before = op_of(op.inputs[0]) if op.type == "Softmax" else None
    if before is not None and before.type == "Transpose" and op.inputs[0].shape.rank == 2:
        return OVER_EXAMPLES, before.inputs[0]  # tf.nn.softmax(x, axis=0) (TF 2.16 to 2.21)
    if op.type in _WEIGHTS and at.shape.rank == 2:  # Keras takes the loss from what goes into the softmax
        turned = [one.outputs[0] for one in at.consumers() if one.type == "Transpose"]
        softmaxes = [
            one.outputs[0] for tensor in turned for one in tensor.consumers() if one.type == "Softmax"
        ]
        # That of the loss goes nowhere else; another one is computed with, as in attention.
        if any(_leads_nowhere(one) for one in softmaxes):
            return OVER_EXAMPLES, at
    if op.type in _ACTIVATIONS:
        return _ACTIVATIONS[op.type], op.inputs[0]
    return ("linear" if op.type in _WEIGHTS else ""), at


def _leads_nowhere(tensor: Any) -> bool:
    """Whether nothing is computed of a tensor but what is measured: the class that it names."""
    return all(
        one.type in _NAMES_CLASS or (one.type in _SAME and all(map(_leads_nowhere, one.outputs)))
        for one in tensor.consumers()
    )


def _kernel(tensor: Any, weights: Sequence[tf.Variable]) -> str:
    """The variable by which a tensor was made, if only a bias was added since."""
    for _ in range(4):
        op = op_of(_same(tensor))
        if op is None or op.type not in _WEIGHTS:
            return ""
        if op.type in _KERNELS:
            return next((graph.name(v) for one in op.inputs for v in weights if _is_read(one, v)), "")
        tensor = op.inputs[0]
    return ""


def _is_read(tensor: Any, variable: tf.Variable) -> bool:
    op = op_of(_same(tensor))
    return op is not None and op.type == "ReadVariableOp" and outermost(op.inputs[0]) is variable.handle


def _inputs(tensor: Any) -> Iterator[tuple[Kind, bool]]:
    """Of each tensor given to a step that goes into a tensor its kind, and whether it comes to a kernel changed."""
    pending: list[tuple[Any, bool]] = [(tensor, True)]
    seen, found = set[int](), dict[int, tuple[Any, Kind, bool]]()  # by the ids of tensors, which are kept
    while pending and len(seen) < _MOST_OPS:
        at, scaled = pending.pop()
        at = outward(at)
        op = op_of(at)
        if op is not None and op.type in _GIVEN:
            if at.dtype not in (tf.resource, tf.variant) and at.shape.rank:
                kind = Kind(at.dtype, tuple(at.shape[1:]))
                found[id(at)] = at, kind, scaled or (id(at) in found and found[id(at)][2])
            continue
        if op is None or id(at) in seen:
            continue
        seen.add(id(at))
        passes = op.type in _SAME
        pending += [(one, scaled if passes else op.type not in _KERNELS) for one in op.inputs]
    yield from ((kind, scaled) for _, kind, scaled in found.values())
