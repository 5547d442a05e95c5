"""Faults in the delivery process: any function of its modules can be made to fail, before or after its work.

A function is made to fail by its code, not by its name: so it does for whoever has imported it, whatever the way.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sqlite3
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
    "delivery.waiting",
    "delivery.left",
    "tracking.runs",
}
# What they use of others.
BESIDE = (
    "checkpoints.registry", "journal.homes", "journal.journal", "journal.life", "locks", "private", "stream.bins",
    "stream.coding", "stream.counted", "stream.past", "temporary", "uris",
)  # fmt: skip
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
    if isinstance(function, types.FunctionType) and function.__code__.co_filename == module.__file__:
        found[name] = function


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
    function.__code__ = stub.__code__
    try:
        yield
    finally:
        function.__code__ = code
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
    """Counts how often each function is called.

    Attributes:
        calls: name -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = dict.fromkeys(functions(), 0)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Has all of them counted."""
        with ExitStack() as stack:
            for name, function in functions().items():

                def by(real: Callable[..., Any], name: str = name) -> Callable[..., Any]:
                    def counts(*args: Any, **kwargs: Any) -> Any:
                        self.calls[name] += self._on
                        return real(*args, **kwargs)

                    return counts

                stack.enter_context(replaced(function, by))
            yield
