"""Small facts about the graph that is being traced: TensorFlow internals that the probes share."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import tensorflow as tf
from google.protobuf import text_format

from mlflow_tfmon.errors import contained
from mlflow_tfmon.internals import internal
from mlflow_tfmon.probes.alone import alone


def tracing() -> Any | None:
    """The `FuncGraph` that is being traced, or None when executing eagerly."""
    if tf.executing_eagerly():
        return None
    graph = tf.compat.v1.get_default_graph()
    return graph if hasattr(graph, "outer_graph") else None


_here = threading.local()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Has what this thread traces or executes be no part of a recorded training."""
    before, _here.unrecorded = getattr(_here, "unrecorded", False), True
    try:
        yield
    finally:
        _here.unrecorded = before


def can_record() -> bool:
    """Whether ops of ours would run in program order here: eagerly or in a `FuncGraph`, not in a TF 1 graph.

    A function that is traced to be saved (TensorFlow traces each anew for that) is not watched.
    """
    if getattr(_here, "unrecorded", False):
        return False
    saves = internal(
        "tensorflow.python.saved_model.save_context.in_save_context",
        bool,
        "a function that is saved is traced with the probes in it",
    )
    return not saves() and (tf.executing_eagerly() or tracing() is not None)


def enclosing(graph: Any | None) -> Iterator[Any]:
    """A graph and those that it is traced within, innermost first."""
    while graph is not None and hasattr(graph, "outer_graph"):
        yield graph
        graph = graph.outer_graph


def whole() -> Callable[[], Any]:
    """What gives the outermost of the graphs that are being traced, while it lives."""
    return weakref.ref(list(enclosing(tracing()))[-1])


def as_text(graph: Any) -> str:
    """A graph with the functions that it calls, as TensorBoard and others read it (`pbtxt`)."""
    return text_format.MessageToString(graph.as_graph_def(add_shapes=True))


def in_xla() -> bool:
    """Whether what is traced will be compiled by XLA as a whole (`jit_compile=True`), where some ops do not exist."""
    compiled = internal(
        "tensorflow.python.ops.control_flow_util.GraphOrParentsInXlaContext",
        lambda _: True,
        "neither the time of each step nor its wait for input is recorded",
    )
    return bool(compiled(tf.compat.v1.get_default_graph()))


def has_clock() -> bool:
    """Whether what is traced can ask for the time: not in XLA, nor under `enable_op_determinism` (TF 2.16 to 2.21)."""
    deterministic = internal(
        "tensorflow.python.framework.config.is_op_determinism_enabled",
        lambda: True,
        "neither the time of each step nor its wait for input is recorded",
    )
    return not in_xla() and not deterministic()


def is_traced_again(made: Sequence[Any]) -> bool:
    """Whether the function being traced is traced once more before it runs, since it makes variables.

    A `tf.function` whose first trace makes variables sets them to their initial values and then traces anew (TF 2.16 to
    2.21), as for each model whose optimizer is first used within: Keras's `fit` does. Where an initial value depends
    on what the function is given, it keeps both traces, and the first step runs this one.

    Args:
        made: variables that this trace made.
    """
    lifted = internal(
        "tensorflow.python.eager.polymorphic_function.polymorphic_function.UnliftedInitializerVariable",
        (),
        "a training's first step takes longer",
    )
    return any(isinstance(raw(one), lifted) for one in made)


_TICK = 1e-6  # s; a double holds Unix time to a quarter of that


def timestamp() -> tf.Tensor:
    """The time, in a graph later than that which was asked for before: the order of updates is that of the program.

    Nothing else keeps two steps of one function from being timed the other way round, or alike (TF 2.16 to 2.21).
    """
    function = tracing()
    if function is None:
        return tf.timestamp()
    known = notes(function)
    before: tf.Tensor | None = known.get("time")
    with after([] if before is None else [before, *known.get("wrote", [])]):
        now = tf.timestamp()
    known["time"] = now if before is None else tf.maximum(now, before + _TICK)
    return known["time"]


def wrote(row: tf.Operation) -> None:
    """Notes what writes the row of a step: that of a later one in the same graph is not read before it."""
    function = tracing()
    if function is not None:
        notes(function)["wrote"] = [row]


def in_pfor() -> bool:
    """Whether this is the body of `tf.vectorized_map` or of `tape.jacobian`, where no state can be changed.

    TensorFlow has no mark but the name of the scope (2.16 to 2.21).
    """
    return any(
        part.split("_while")[0].startswith("loop_body") for part in tf.get_current_name_scope().split("/")
    )


class _Kept(list[Any]):
    """Things that a traced function needs; a list that can be referred to weakly."""

    __slots__ = ("__weakref__",)


_KEPT, _HANDED_OVER, _NOTES = "_mlflow_tfmon_kept", "_mlflow_tfmon_handed_over", "_mlflow_tfmon_notes"


def keep_alive(thing: object) -> None:
    """Ties the life of a thing to that of the function being traced.

    A `FuncGraph` holds its variables weakly; a traced function whose ring was gone would fail in the user's training.
    """
    for outer in enclosing(tracing()):
        kept = getattr(outer, _KEPT, None)
        if kept is None:
            kept = _Kept()
            setattr(outer, _KEPT, kept)
        kept.append(thing)


def notes(function: Any) -> dict[str, Any]:
    """What the probes want to remember of a graph for as long as it is being traced."""
    found: dict[str, Any] | None = getattr(function, _NOTES, None)
    if found is None:
        found = {}
        setattr(function, _NOTES, found)
    return found


def watch_function(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps the making of a function that can be run: what its graph has kept is the function's from then on.

    TensorFlow's registry of gradients holds a graph with a custom gradient in it for ever, Keras's train step among
    them (2.16 to 2.21), with all that the probes have put into it. What can be run goes with its last user; with that
    the registry lets go of the graph, of which no gradient is asked any more.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        with contained("handing over what a function needs", "memory is not given back after a training"):
            _hand_over(self._cached_graph, self)

    return __init__


def _hand_over(graph: Any, function: Any) -> None:
    if hasattr(graph, _NOTES):
        delattr(graph, _NOTES)
    kept = getattr(graph, _KEPT, None)
    if kept is not None:
        delattr(graph, _KEPT)
        setattr(graph, _HANDED_OVER, weakref.ref(kept))
        weakref.finalize(kept, _forget, _custom_gradients(graph)).atexit = False
    elif hasattr(graph, _HANDED_OVER):  # a further function of one graph: one with a gradient
        kept = getattr(graph, _HANDED_OVER)()
    if kept is not None:
        setattr(function, _KEPT, kept)


def _custom_gradients(graph: Any) -> list[str]:
    """The names under which the custom gradients of a graph are registered: each is of one op of it."""
    names = []
    for op in graph.get_operations():
        if op.type == "IdentityN":  # by which `tf.custom_gradient` marks them (TF 2.16 to 2.21)
            with contextlib.suppress(ValueError):
                names.append(op.get_attr("_gradient_op_type").decode())
    return [name for name in names if name.startswith("CustomGradient-")]


def _forget(gradients: list[str]) -> None:
    registry = internal(
        "tensorflow.python.framework.ops.gradient_registry", None, "memory is not given back after a training"
    )
    for name in gradients:
        getattr(registry, "_registry", {}).pop(name, None)


def _drop(graph: Callable[[], Any], functions: Iterable[str], branching: Iterable[str]) -> None:
    """Lets go of what a graph holds of the branches of ours, once nothing that was made of it can be run."""
    found = graph()
    if found is None:
        return
    for name in functions:
        found._functions.pop(name, None)
    for name in branching:
        op = found.get_operation_by_name(name)
        op._true_graph = op._false_graph = None  # which the gradient of the op would be made of


def rarely(
    condition: bool | tf.Tensor, do: Callable[[], Any], otherwise: Callable[[], Any], whole: bool = True
) -> Any:
    """`tf.cond` for a branch that is seldom taken; no cond where it is known while tracing which is taken.

    TensorFlow lowers a cond to a Switch per captured tensor, which all run at every step: 44 us a step for the two
    conds of a model of 6 variables, against 14 us for an If op that is left whole (TF 2.21, two cores). One op can't be
    placed where its variables are on several devices: that one is lowered.

    Args:
        condition: a boolean, or a tensor of one.
        do: gives what it gives if that holds.
        otherwise: the same if it does not.
        whole: whether the variables within are all on one device.
    """
    if isinstance(condition, bool):
        return do() if condition else otherwise()
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    functions = getattr(graph, "_functions", {})
    known = set(functions)
    result = tf.cond(condition, do, otherwise)
    branching = [op.name for op in graph.get_operations()[before:] if op.type in ("If", "StatelessIf")]
    kept = getattr(graph, _KEPT, None)
    if kept is not None:  # the branches are not to stay where a graph does, see `watch_function`
        new = functions.keys() - known
        weakref.finalize(kept, _drop, weakref.ref(graph), new, branching).atexit = False
    for op in graph.get_operations()[before:]:
        if whole and op.type in ("If", "StatelessIf"):
            with contained("leaving a branch whole", "each step costs a little more"):
                op._set_attr("_lower_using_switch_merge", tf.compat.v1.AttrValue(b=False))
    return result


def stop_recording() -> contextlib.AbstractContextManager[None]:
    """Keeps the user's tapes from what is done within."""
    stop = internal(
        "tensorflow.python.eager.record.stop_recording",
        contextlib.nullcontext,
        "a tape that is recording follows the probes as well",
    )
    return stop()


def host_of(device: str) -> str:
    """The processor of the machine that has a device, on which time is told."""
    return str(tf.DeviceSpec.from_string(device).replace(device_type="CPU", device_index=0).to_string())


class Once:
    """A function of tensors that is traced once for their dtypes, whatever their shapes, and then called.

    Tracing some ops for each variable takes as long as tracing the user's own step; a call is one op. (A `tf.function`
    called directly would look at each argument anew, and warn the user of its tracings when many models are trained.)

    Args:
        function: of tensors; the shapes that it sees are unknown.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._traced: dict[tuple[tf.DType, ...], Any] = {}

    def __call__(self, *tensors: tf.Tensor) -> Any:
        dtypes = tuple(tensor.dtype for tensor in tensors)
        with stop_recording():  # of the user's tapes, which would have a gradient of it traced
            if dtypes not in self._traced:
                with tf.init_scope():  # so that it belongs to no function of the user's
                    # Inlined into its caller, it would be optimized anew for each variable.
                    attributes = {"_noinline": True}
                    function = tf.function(
                        self._function, autograph=False, experimental_attributes=attributes
                    )
                    specs = [tf.TensorSpec(None, dtype) for dtype in dtypes]
                    self._traced[dtypes] = function.get_concrete_function(*specs)
            return self._traced[dtypes](*tensors)


class Traced:
    """A function for eager code, which pays for each op: all of it is one, traced for each kind of arguments.

    A `tf.function` called directly would warn the user of its tracings when many models are trained. Functions of one
    kind are traced once and called with the variables of each: a script may make an optimizer for each example.

    Args:
        function: of nested tensors, None and variables; how many rows a tensor has it is not told.
        state: the variables that it uses.
        kind: what its trace depends on but for the arguments, the dtypes and shapes of `state` included; None if it is
            the only one of its kind.
    """

    _shared: ClassVar[dict[Any, dict[Any, Any]]] = {}  # those used last come last

    def __init__(self, function: Callable[..., Any], state: Sequence[Any] = (), kind: Any = None) -> None:
        self._function = function
        self._state = list(state)
        self._traced: dict[Any, Any] = {}
        if kind is not None:
            self._traced = self._shared[kind] = self._shared.pop(kind, {})
            for oldest in list(self._shared)[:-_KINDS]:  # what it holds on to may be large
                del self._shared[oldest]

    def __call__(self, *args: Any) -> Any:
        leaves = tf.nest.flatten(args)
        sparse = tuple(isinstance(one, tf.IndexedSlices) for one in leaves)
        if any(sparse):
            leaves = tf.nest.flatten(args, expand_composites=True)
        fixed = [one if isinstance(one, _FIXED) else _TENSOR for one in leaves]
        tensors = [
            tf.convert_to_tensor(one) for one, kind in zip(leaves, fixed, strict=True) if kind is _TENSOR
        ]
        specs = [
            tf.TensorSpec([None, *one.shape[1:]] if one.shape.rank else [], one.dtype) for one in tensors
        ]
        key = (sparse, tuple(specs), tuple(one if isinstance(one, (bool, int)) else id(one) for one in fixed))
        if key not in self._traced:

            def function(*given: tf.Tensor) -> Any:
                left = iter(given)
                whole = [next(left) if kind is _TENSOR else kind for kind in fixed]
                return self._function(*tf.nest.pack_sequence_as(args, whole, expand_composites=True))

            made = tf.function(function, autograph=False).get_concrete_function(*specs)
            handles = {id(one.handle): at for at, one in enumerate(self._state)}
            captured = [handles.get(id(one), one) for one in made.captured_inputs]
            self._traced[key] = made, captured, fixed
        made, captured, _ = self._traced[key]
        given = [self._state[one].handle if isinstance(one, int) else one for one in captured]
        with stop_recording():
            # As a call of `made` does where no tape looks on, with variables of its own (TF 2.16 to 2.21).
            return made._inference_function.call_preflattened([*tensors, *given])


_TENSOR = object()
_FIXED = (type(None), bool, int, tf.Variable)  # what an argument may be that is no tensor
_KINDS = 8


class Reader:
    """Reads variables as they are at one moment, into the machine's own memory, on the thread that trains.

    All are read by one call: each call of its own would wait for the interpreter, for 5 ms while another thread runs.
    On a CPU a value shares its memory with the variable until that is next written to: then TensorFlow gives the
    variable other memory.

    Example:
        >>> kernel, bias = Reader().read([layer.kernel.value, layer.bias.value])
    """

    def __init__(self) -> None:
        self._variables: list[Any] = []
        self._read: Any = None

    def read(self, variables: Sequence[Any]) -> tuple[tf.Tensor, ...]:
        """What some of TensorFlow's variables hold."""
        if self._read is None or [id(one) for one in variables] != [id(one) for one in self._variables]:
            self._variables = list(variables)
            function = tf.function(self._read_all, autograph=False, jit_compile=False)
            # Called directly it would warn, after some models, of being traced for each.
            with alone():
                self._read = function.get_concrete_function()
        return tuple(self._read()) if self._variables else ()

    def _read_all(self) -> list[tf.Tensor]:
        with tf.device("CPU:0"):
            return [tf.identity(one) for one in self._variables]


@contextlib.contextmanager
def after(what: Any) -> Iterator[None]:
    """Ops made in here run after these ops, or after these tensors are there."""
    things = [t for t in tf.nest.flatten(what) if tf.is_tensor(t) or isinstance(t, tf.Operation)]
    with tf.control_dependencies(things):
        yield


def effects(function: Any) -> list[tf.Operation]:
    """The ops of a function so far that do something besides computing their outputs."""
    return [op for op in function.get_operations() if op._is_stateful]


def raw(variable: Any) -> tf.Variable:
    """The `tf.Variable` behind a Keras variable."""
    return getattr(variable, "value", variable) if hasattr(variable, "path") else variable


def tensor(gradient: Any) -> Any:
    """A gradient as a tensor or slices of one: a script may give the variables in which it has added them up."""
    given = raw(gradient)
    return tf.convert_to_tensor(given) if isinstance(given, tf.Variable) else gradient


def put(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assigns a value to a variable of ours; Keras's tests of sparse updates allow no call of `assign`."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def key(variable: Any) -> str:
    """An identifier of a variable that is unique within the process."""
    return str(getattr(raw(variable), "_unique_id", id(variable)))


def name(variable: Any) -> str:
    """A variable's path with '.' for '/', such as `dense.kernel`."""
    path = getattr(variable, "path", None) or str(getattr(variable, "name", "variable")).split(":")[0]
    return str(path).replace("/", ".")
