"""The Keras model that some variables belong to: neither variables nor optimizers know it."""

from __future__ import annotations

import gc

import keras

from mlflow_tfmon.probes import graph


def name_of(keys: frozenset[str]) -> str | None:
    """The name of the smallest living model that has all of these variables, or None.

    Looks through all objects of the process (0.1 s), so ask it once a training.
    """
    found: list[tuple[int, str]] = []
    for thing in gc.get_objects():
        if issubclass(type(thing), keras.Model) and getattr(thing, "built", False):
            own = {graph.key(v) for v in thing.variables}
            if keys <= own:
                found.append((len(own), str(thing.name)))
    return min(found)[1] if found else None
