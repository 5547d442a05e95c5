"""Check that one more call of a user's function would have no observable effect.

What can't be seen to be so is taken not to be: only numbers, functions of the same kind, and what TensorFlow, Keras and
NumPy offer may be used.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

_KNOWN = ("keras", "tf_keras", "tensorflow", "numpy", "math", "builtins", "operator", "functools")
_PLAIN = (int, float, str, bool, complex, type(None), np.generic, np.ndarray, tf.DType, tf.TensorShape)
_STORES = {"STORE_GLOBAL", "STORE_ATTR", "STORE_SUBSCR", "STORE_DEREF", "DELETE_SUBSCR", "DELETE_ATTR"}
_ACTS = {
    "getattr",
    "setattr",
    "exec",
    "eval",
    "open",
    "input",
    "next",
    "print",
    "globals",
    "vars",
    "__import__",
}


def leaves_nothing(function: Any) -> bool:
    """Whether a loss (a function, or an object with a `call`) keeps nothing between its calls, nor tells of them.

    Example:
        >>> leaves_nothing(lambda y, p: (y - p) ** 2)
        True
    """
    inner = getattr(function, "fn", None)  # of what Keras makes of a function
    return _plain(function if inner is None else inner, set())


def _plain(value: Any, seen: set[int]) -> bool:
    if id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, _PLAIN) or tf.is_tensor(value):
        return not hasattr(value, "assign")
    if isinstance(value, (tuple, frozenset)):
        return all(_plain(one, seen) for one in value)
    if isinstance(value, types.ModuleType):
        return _of(value.__name__)
    if isinstance(value, functools.partial):
        return all(_plain(one, seen) for one in (value.func, value.args, *value.keywords.values()))
    if isinstance(value, types.MethodType):
        return _plain(value.__func__, seen) and _plain(value.__self__, seen)
    if isinstance(value, types.FunctionType) and not _of(value.__module__):
        return _plain_function(value, None, seen)
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)):
        return _of(getattr(value, "__module__", None) or "builtins") and value.__name__ not in _ACTS
    if callable(getattr(type(value), "call", None)) and not hasattr(value, "trainable_variables"):
        return _plain_function(type(value).call, value, seen)
    return False


def _plain_function(function: Any, owner: Any, seen: set[int]) -> bool:
    """A function, with all that it names: of its module, of what is around it, of the object that it belongs to."""
    if not isinstance(function, types.FunctionType) or _of(function.__module__):
        return isinstance(function, types.FunctionType)
    codes = list(_codes(function.__code__))
    if any(step.opname in _STORES for code in codes for step in dis.get_instructions(code)):
        return False
    names = {name for code in codes for name in code.co_names}
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    held += [function.__globals__[name] for name in names if name in function.__globals__]
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    of_owner = [inspect.getattr_static(owner, name, None) for name in names]
    of_owner = [one.fget if isinstance(one, property) else getattr(one, "__func__", one) for one in of_owner]
    methods = [one for one in of_owner if isinstance(one, types.FunctionType) and id(one) not in seen]
    seen |= {id(one) for one in methods}  # which may name each other, and what their object holds
    return (
        not names & _ACTS
        and all(_plain(one, seen) for one in (*held, *of_owner))
        and all(_plain_function(one, owner, seen) for one in methods)
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions within it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _codes(one)


def _of(module: str) -> bool:
    return module.split(".")[0] in _KNOWN
