"""Objects of a running `fit` that no callback gets, read from its frames (Keras 3.7 to 3.15)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from mlflow_tfmon import kerases


def callbacks() -> list[Any]:
    """All callbacks of the fit that is calling this one, in order."""
    container = _container()
    return [] if container is None else list(container.callbacks)


def append(callback: Any, model: Any) -> bool:
    """Has the fit that is calling one callback call another after all others; returns whether it will.

    It calls it at once for what it is just calling all of them for.
    """
    container = _container()
    if container is None:
        return False
    callback.set_model(model)
    callback.set_params(container.params)
    # The list may be the user's, with one in it that a fit has left there which an exception ended.
    container.callbacks[:] = [one for one in container.callbacks if type(one) is not type(callback)]
    container.callbacks.append(callback)
    return True


def drop(callback: Any) -> None:
    """Has the fit call one no more that was appended, and is being called."""
    container = _container()
    if container is not None and container.callbacks[-1] is callback:
        container.callbacks.pop()


def _container() -> Any:
    containers = kerases.every("callbacks.CallbackList")
    return next((one for one in _locals("self") if isinstance(one, containers)), None)


def build(model: Any) -> None:
    """Builds a model that its first batch would build, from what is known of the data of the fit that is calling.

    Keras does so itself under a strategy; else the first step does (3.7 to 3.15). A model that cannot be built so, one
    that is made of others and trains them in a `train_step` of its own, stays as it is.
    """
    data = getattr(next(_locals("epoch_iterator"), None), "_distributed_dataset", None)
    if data is not None and not model.built:
        with contextlib.suppress(Exception):
            model._symbolic_build(data_batch=data.element_spec)


# Others may give each batch once, or have threads at work that a reading in between would disturb (Keras 3.7 to 3.15).
_REREAD = ("ArrayDataAdapter", "TFDatasetAdapter", "TensorLikeDataAdapter", "DatasetAdapter")


def dataset() -> Any | None:
    """The dataset of the fit that is calling, where it can be read without harm: of arrays or of `tf.data`.

    Keras 2 has it in another place.
    """
    reader = next(_locals("epoch_iterator"), None) or next(_locals("data_handler"), None)
    adapter = getattr(reader, "data_adapter", None) or getattr(reader, "_adapter", None)
    if type(adapter).__name__ not in _REREAD:
        return None
    return getattr(reader, "_distributed_dataset", None) or getattr(reader, "_dataset", None)


def first_epoch() -> int:
    """The `initial_epoch` of the fit that is calling."""
    return int(next(_locals("initial_epoch"), 0))


def pass_epochs(epochs: int) -> None:
    """Has the dataset of the fit that is calling give the order that it gives after so many epochs.

    A dataset that shuffles anew each time counts its iterators; Keras 3 makes two an epoch, Keras 2 one (2.16 to 2.21).
    """
    iterator: Any = next(_locals("epoch_iterator"), None)
    handler: Any = next(_locals("data_handler"), None)
    adapter: Any = getattr(handler, "_adapter", None)
    dataset = getattr(iterator, "_distributed_dataset", None)
    if dataset is not None and getattr(iterator, "steps_per_epoch", None) is None:
        for _ in range(2 * epochs):
            iter(dataset)
    elif type(adapter).__name__ == "DatasetAdapter" and adapter.should_recreate_iterator():
        for _ in range(epochs):
            iter(handler._dataset)


def _locals(name: str) -> Iterator[Any]:
    """The values of a variable in the frames that led here, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if name in frame.f_locals:
            yield frame.f_locals[name]
        frame = frame.f_back
