"""Arguments of a call of `fit`, by name, however they were passed."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from mlflow_tfmon import kerases


@dataclass(frozen=True, eq=False)
class FitArguments:
    """A call of `fit`: each argument by name, defaults filled in.

    Attributes:
        args: positional arguments as they were passed, without the model.
        kwargs: keyword arguments as they were passed.
        values: every parameter of `fit` and its value, in the order of its signature.
        model: the model that is fitted.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: dict[str, Any] = field(repr=False)
    model: Any = field(repr=False)

    x: Any = field(default=None, repr=False)
    y: Any = field(default=None, repr=False)
    sample_weight: Any = field(default=None, repr=False)
    validation_data: Any = field(default=None, repr=False)
    validation_split: float = 0.0
    batch_size: int | None = None
    epochs: int = 1
    initial_epoch: int = 0
    steps_per_epoch: int | None = None
    callbacks: Any = None

    @property
    def callback_list(self) -> list[Any]:
        """The user's callbacks as a new flat list, whether given as None, one, a list, a tuple or a `CallbackList`."""
        if isinstance(self.callbacks, kerases.every("callbacks.CallbackList")):
            return list(self.callbacks.callbacks)
        return list(tf.nest.flatten(self.callbacks)) if self.callbacks else []

    def with_callbacks(
        self, added: Iterable[Any], before: Iterable[Any] = ()
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with callbacks added after the user's; the user's own list stays as it is.

        Args:
            added: Keras callbacks.
            before: those that go before the user's.

        Returns:
            Positional and keyword arguments to call `fit` with (without the model).

        Example:
            >>> args, kwargs = arguments.with_callbacks([watcher])
            >>> original_fit(model, *args, **kwargs)
        """
        callbacks = self._joined(list(before), list(added))
        position = list(self.values).index("callbacks")
        if position < len(self.args):
            return (*self.args[:position], callbacks, *self.args[position + 1 :]), dict(self.kwargs)
        return self.args, {**self.kwargs, "callbacks": callbacks}

    def _joined(self, before: list[Any], added: list[Any]) -> Any:
        if not isinstance(self.callbacks, kerases.every("callbacks.CallbackList")):
            return [*before, *self.callback_list, *added]
        # fit takes a CallbackList as it comes, setting no model or params on it; copied, the user's own stays whole.
        joined = copy.copy(self.callbacks)
        joined.callbacks = [*before, *self.callbacks.callbacks, *added]
        joined._futures = []
        for callback in (*before, *added):
            callback.set_model(self.model)
            callback.set_params(self.callbacks.params)
        return joined


_NAMED = ("x", "y", "sample_weight", "validation_data", "validation_split", "batch_size", "epochs", "initial_epoch",
          "steps_per_epoch", "callbacks")  # fmt: skip


@functools.lru_cache(maxsize=8)
def _parameters(fit: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(p for p in inspect.signature(fit).parameters.values() if p.name != "self")


def bind_fit(
    original_fit: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> FitArguments:
    """Names the arguments of a call of `fit`.

    Args:
        original_fit: Keras's `fit`, as a function (whose first parameter is `self`) or bound to the model.
        model: the model.
        args: positional arguments, without the model.
        kwargs: keyword arguments.

    Returns:
        The arguments by name. Nothing of them is read, copied or changed.

    Raises:
        TypeError: the arguments do not fit the signature; `fit` itself would raise the same.

    Example:
        >>> bind_fit(keras.Model.fit, model, (x, y), {"epochs": 3}).epochs
        3
    """
    parameters = _parameters(inspect.unwrap(getattr(original_fit, "__func__", original_fit)))
    bound = inspect.Signature(parameters).bind(*args, **kwargs)
    bound.apply_defaults()
    values = dict(bound.arguments)
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            values.update(values.pop(parameter.name))
    values.setdefault("callbacks", None)
    named = {name: values[name] for name in _NAMED if name in values}
    return FitArguments(args=tuple(args), kwargs=dict(kwargs), values=values, model=model, **named)
