"""Faults in the delivery process: any function of its modules can be made to fail, before or after its work.

A function is made to fail by its code, not by its name: so it does for whoever has imported it, whatever the way.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import os
import pkgutil
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mlflow.exceptions import MlflowException

import mlflow_tfmon.delivery
import mlflow_tfmon.tracking
import mlflow_tfmon.translation

# Modules of these packages that do not work in the delivery process, but in the trainer's or in a command's. The loop
# of `main` is tried as a whole: its process is killed (test_delivery_dies.py).
ELSEWHERE = {
    "delivery.process",
    "delivery.daemon",
    "delivery.ending",
    "delivery.main",
    "delivery.sync",
    "delivery.backlog",
    "delivery.packing",
    "tracking.runs",
}
# What they use of others.
BESIDE = (
    "checkpoints.registry", "journal.homes", "journal.journal", "journal.life", "locks", "trusted_paths", "stream.bins",
    "stream.coding", "stream.counted", "stream.continuation", "temporary", "uris",
)  # fmt: skip
# What modules import that touch neither a disk nor a store.
_COMPUTES = {
    "__future__", "base64", "bisect", "collections", "dataclasses", "enum", "functools", "heapq", "itertools", "json",
    "math", "mlflow_tfmon", "numpy", "operator", "re", "typing", "zlib",
}  # fmt: skip
FAULTS: dict[str, Callable[[], BaseException]] = {
    "MemoryError": MemoryError,
    "KeyboardInterrupt": KeyboardInterrupt,
    "OSError": lambda: OSError(28, "No space left on device"),
    "sqlite3.Error": lambda: sqlite3.OperationalError("database is locked"),
    "MlflowException": lambda: MlflowException("it does not go"),
    "UnicodeEncodeError": lambda: UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
    "RecursionError": lambda: RecursionError("maximum recursion depth exceeded"),
}


def modules() -> Iterator[types.ModuleType]:
    """The modules that do the work of the delivery process."""
    for package in (mlflow_tfmon.delivery, mlflow_tfmon.translation, mlflow_tfmon.tracking):
        for one in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if one.name.removeprefix("mlflow_tfmon.") not in ELSEWHERE:
                yield importlib.import_module(one.name)
    for name in BESIDE:
        yield importlib.import_module(f"mlflow_tfmon.{name}")


def functions() -> dict[str, types.FunctionType]:
    """All functions and methods of these modules, those that come tomorrow too."""
    found: dict[str, types.FunctionType] = {}
    for module in modules():
        short = module.__name__.removeprefix("mlflow_tfmon.")
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for method, of in vars(value).items():
                    function = of.fget if isinstance(of, property) else getattr(of, "__func__", of)
                    _add(found, f"{short}.{name}.{method}", function, module)
            else:
                _add(found, f"{short}.{name}", value, module)
    return found


def _add(found: dict[str, types.FunctionType], name: str, value: Any, module: types.ModuleType) -> None:
    function = inspect.unwrap(value) if callable(value) else None
    if isinstance(function, types.FunctionType) and code_of(function).co_filename == module.__file__:
        found[name] = function


_codes: dict[types.FunctionType, types.CodeType] = {}  # of those that are replaced


def code_of(function: types.FunctionType) -> types.CodeType:
    """A function's own code, also while it is replaced."""
    return _codes.get(function, function.__code__)


@contextmanager
def replaced(function: types.FunctionType, by: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """Has a function do something else: `by` gets it as it was, and gives what is called in its place."""
    code = function.__code__
    real = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    real.__kwdefaults__ = function.__kwdefaults__
    key = f"_fault_{id(function)}"
    function.__globals__[key] = by(real)
    cells = ", ".join(code.co_freevars)
    # As many cells as it has: those of a method that calls `super()`, say.
    lines = [f"def outer({cells}):", "    def stub(*args, **kwargs):", f"        {cells or 'None'}"]
    lines += [f"        return {key}(*args, **kwargs)", "    return stub"]
    namespace: dict[str, Any] = {}
    exec("\n".join(lines), namespace)
    stub = namespace["outer"](*([None] * len(code.co_freevars)))
    _codes[function] = code
    function.__code__ = stub.__code__
    try:
        yield
    finally:
        function.__code__ = _codes.pop(function)
        del function.__globals__[key]


class Meanwhile:
    """What happens to functions while delivery works, and not to those who write recordings and look at the store."""

    def __init__(self) -> None:
        self._on = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """While this lasts it happens."""
        self._on = True
        try:
            yield
        finally:
            self._on = False


class Fault(Meanwhile):
    """Makes a function fail.

    Attributes:
        raised: how often it has.

    Args:
        make: makes the exception.
        at: at which of its calls, from 0; None: at each.
        after: whether it does its work before.
    """

    def __init__(self, make: Callable[[], BaseException], at: int | None, after: bool) -> None:
        super().__init__()
        self.raised = 0
        self._make, self._at, self._after = make, at, after
        self._calls = 0

    def __call__(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*args: Any, **kwargs: Any) -> Any:
            now = self._on and self._at in (None, self._calls)
            self._calls += self._on
            if now and not self._after:
                self.raised += 1
                raise self._make()
            result = real(*args, **kwargs)
            if now:
                self.raised += 1
                raise self._make()
            return result

        return fails


class Count(Meanwhile):
    """Counts how often each function is called, and notes what would catch a fault there.

    Attributes:
        calls: name -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = dict.fromkeys(functions(), 0)
        self._ways: dict[str, list[Ways]] = {name: [] for name in self.calls}

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Has all of them counted."""
        with ExitStack() as stack:
            for name, function in functions().items():

                def by(real: Callable[..., Any], name: str = name) -> Callable[..., Any]:
                    def counts(*args: Any, **kwargs: Any) -> Any:
                        if self._on:
                            self.calls[name] += 1
                            self._ways[name].append(ways(sys._getframe(2)))
                        return real(*args, **kwargs)

                    return counts

                stack.enter_context(replaced(function, by))
            yield

    def kinds(self, name: str, at: int | None) -> list[list[str]]:
        """The kinds of fault, those together that nobody can tell apart.

        Args:
            name: of a function.
            at: which of its calls fails, None if each does.
        """
        calls = self._ways[name] if at is None else [self._ways[name][at]]
        together: dict[Any, list[str]] = {}
        for kind in FAULTS:
            together.setdefault(tuple(call[kind] for call in calls), []).append(kind)
        return list(together.values())

    def is_undone(self, name: str) -> bool:
        """Whether it comes to the same if a function fails before its work and after it.

        So it does in a module that touches neither a disk nor a store, if nothing but the deliverer catches the fault,
        which drops all that it has in memory.
        """
        deliverer = importlib.import_module("mlflow_tfmon.delivery.deliverer").__file__
        file = code_of(functions()[name]).co_filename
        caught = {way[0][0] if way else "" for call in self._ways[name] for way, _ in call.values()}
        return caught == {deliverer} and _in_memory(file)


def _in_memory(file: str) -> bool:
    """Whether a module imports nothing but what computes."""
    named: set[str] = set()
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            named |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add((node.module or "").partition(".")[0])
    return named <= _COMPUTES and f"{os.sep}delivery{os.sep}" not in file


# -- which faults are caught in the same places ------------------------------------------------------------------------
Way = tuple[tuple[tuple[str, int], ...], tuple[bool, ...]]  # handlers, and what they ask
Ways = dict[str, Way]


def ways(frame: types.FrameType | None) -> Ways:
    """The way of each kind of fault from a frame outwards, through whatever catches it.

    It is the handlers that catch it, one after the other, up to one that does not raise it again as it is, and what
    these ask of it (`isinstance`, in the handler or in a function that it is given to).
    """
    where = []
    while frame is not None:
        where.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return _ways(tuple(where))


@functools.cache
def _ways(where: tuple[tuple[types.CodeType, int], ...]) -> Ways:
    found: Ways = {}
    for kind, make in FAULTS.items():
        fault = make()
        way: list[tuple[str, int]] = []
        for one in where:
            caught, ends = _caught(*one, kind)
            way += caught
            if ends:
                break
        asked = tuple(isinstance(fault, tested) for tested in _tested(frozenset(way)))
        found[kind] = tuple(way), asked
    return found


@functools.cache
def _caught(code: types.CodeType, line: int, kind: str) -> tuple[list[tuple[str, int]], bool]:
    """The handlers, by file and line, that catch a fault from a line of a function; whether it ends at the last."""
    found: list[tuple[str, int]] = []
    if (function := _tree(code)) is None:
        return found, False
    fault = FAULTS[kind]()
    for handlers, names in reversed(list(_around(function, line, code.co_filename))):
        for types_, body, at in handlers:
            if isinstance(fault, _value(types_, names)):
                found.append(at)
                if not any(isinstance(one, ast.Raise) and one.exc is None for one in _within(body)):
                    return found, True
                break
    return found, False


Handler = tuple[ast.expr | None, list[ast.stmt], tuple[str, int]]


def _around(function: ast.AST, line: int, file: str) -> Iterator[tuple[list[Handler], dict[str, Any]]]:
    """What protects a line of a function, the outermost first: the handlers, and what their names mean."""
    names = vars(_module(file))
    for node in _within([function]):
        if isinstance(node, (ast.Try, ast.With)):
            if not node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0):
                continue
            if isinstance(node, ast.Try):
                yield [(one.type, one.body, (file, one.lineno)) for one in node.handlers], names
                continue
            for item in node.items:
                call = item.context_expr
                of = _meant(call.func, names) if isinstance(call, ast.Call) else None
                if of is contextlib.suppress:
                    yield [(one, [], (file, call.lineno)) for one in call.args], names  # type: ignore[union-attr]
                elif isinstance(of, types.FunctionType) and "mlflow_tfmon" in of.__module__:
                    within = code_of(inspect.unwrap(of))
                    tree = _tree(within)
                    assert tree is not None, f"{of} is not understood"
                    for one in _within([tree]):
                        if isinstance(one, ast.Yield):
                            yield from _around(tree, one.lineno, within.co_filename)


@functools.cache
def _tested(way: frozenset[tuple[str, int]]) -> tuple[Any, ...]:
    """The types that handlers ask for, or functions that they give the fault to."""
    found: list[Any] = []
    for file, line in sorted(way):
        names = vars(_module(file))
        for handler in ast.walk(_parsed(file)):
            if not isinstance(handler, ast.ExceptHandler) or handler.lineno != line or handler.name is None:
                continue
            found += _asked(handler, names)
            for call in ast.walk(handler):
                if isinstance(call, ast.Call) and any(
                    isinstance(one, ast.Name) and one.id == handler.name for one in call.args
                ):
                    called = (
                        call.func.attr
                        if isinstance(call.func, ast.Attribute)
                        else getattr(call.func, "id", "")
                    )
                    for name, function in functions().items():
                        if (
                            name.rpartition(".")[2] == called
                            and (tree := _tree(code_of(function))) is not None
                        ):
                            found += _asked(tree, function.__globals__)
    return tuple(found)


def _asked(tree: ast.AST, names: dict[str, Any]) -> list[Any]:
    calls = (
        one
        for one in ast.walk(tree)
        if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "isinstance"
    )
    return [_value(one.args[1], names) for one in calls]


def _within(body: list[Any]) -> Iterator[ast.AST]:
    """The nodes of a function, the outer ones first, without those of the functions in it."""
    waiting = list(body)
    while waiting:
        node = waiting.pop(0)
        yield node
        waiting += [
            one
            for one in ast.iter_child_nodes(node)
            if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda))
        ]


@functools.cache
def _tree(code: types.CodeType) -> ast.FunctionDef | None:
    """A function of this package; None for one of another, and for what can catch nothing."""
    if "mlflow_tfmon" not in (_module_name(code.co_filename) or ""):
        return None
    for node in ast.walk(_parsed(code.co_filename)):
        if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
            continue
        if code.co_firstlineno in (node.lineno, *(one.lineno for one in node.decorator_list)):
            return node
    assert code.co_name.startswith("<"), f"{code} is not found"
    return None


@functools.cache
def _parsed(file: str) -> ast.Module:
    with open(file, encoding="utf-8") as source:
        return ast.parse(source.read())


@functools.cache
def _module_name(file: str) -> str | None:
    found = (name for name, one in list(sys.modules.items()) if getattr(one, "__file__", None) == file)
    return next(found, None)


def _module(file: str) -> types.ModuleType:
    return sys.modules[_module_name(file) or ""]


def _value(tree: ast.expr | None, names: dict[str, Any]) -> Any:
    """What stands there: exceptions' types."""
    if tree is None:
        return BaseException
    return eval(compile(ast.Expression(tree), "handler", "eval"), names)


def _meant(tree: ast.expr, names: dict[str, Any]) -> Any:
    try:
        return _value(tree, names)
    except (NameError, AttributeError):  # a method, of `self`
        return None
