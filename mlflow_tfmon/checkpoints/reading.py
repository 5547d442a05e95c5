"""Readers of a checkpoint's files, which come from a store and are therefore untrusted.

Anything not written as this package writes it is rejected before it is used; no class, module, attribute or path named
in a file is ever used.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_tfmon.stream.continuation import Past

_JSON_BYTES = 64 * 2**20
_WHOLE = 2**53  # that JSON's numbers hold exactly
_MERSENNE = 624  # words of the state of MT19937, which Python's and NumPy's random numbers come from
_ENTRY_BYTES = 512  # that a name in a file of weights takes, its group or the header of its array
_WEIGHTS = "model.weights.h5"  # within a .keras file (Keras 3.7 to 3.15)


def read_json(path: Path) -> Any:
    """Returns the JSON in a file of bounded size.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or too long.
    """
    if path.stat().st_size > _JSON_BYTES:
        raise ValueError(f"{path.name} has more than {_JSON_BYTES:,} bytes")
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None


def check(about: Any) -> None:
    """Checks that the JSON of a checkpoint has the form of `state.State.about`.

    Raises:
        ValueError: it does not; the message says where.
    """
    if not isinstance(about, dict):
        raise ValueError("it does not describe a checkpoint")
    for name, is_right in (*_FIELDS.items(), *_MAYBE.items()):
        if name not in about and name in _FIELDS:
            raise ValueError(f"it lacks {name!r}")
        if name in about and not _holds(is_right, about[name]):
            raise ValueError(f"{name!r} is {json.dumps(about[name])[:80]}")


def _holds(is_right: Callable[[Any], bool], value: Any) -> bool:
    try:
        return is_right(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False


def check_numpy(keys: np.ndarray) -> None:
    """Checks an array of NumPy's random state, which NumPy itself reads unchecked (1.26 to 2.3)."""
    if keys.shape != (_MERSENNE,) or keys.dtype.kind not in "ui":
        raise ValueError("the state of NumPy's random numbers is invalid")


def weights_file(path: Path, holder: Path, limit: int) -> Path:
    """Returns a file from which Keras may load weights: it contains them itself, without links to other files.

    Args:
        path: a `.keras` or `.weights.h5` file.
        holder: folder for what is extracted from it.
        limit: largest size of the weights, in bytes.

    Raises:
        ValueError: the file is invalid.
    """
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(_WEIGHTS)
            if member.file_size > limit:
                raise ValueError(
                    f"its weights take {member.file_size:,} bytes, but those of the model at most {limit:,}"
                )
            path = holder / _WEIGHTS
            with archive.open(member) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)
    import h5py  # type: ignore[import-untyped]

    size = 0
    with h5py.File(path, "r") as file:
        try:
            for one in _sizes(file, h5py):
                size += one
                if size > limit:  # seen at once: a group that is in many others, itself too, has no end
                    raise ValueError(
                        f"its weights take {size:,} bytes or more, and the model's {limit:,} at most"
                    )
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    return path


def _sizes(group: Any, h5py: Any) -> Iterator[int]:
    """How many bytes what is in a group takes, one after the other."""
    for name in group:
        yield _ENTRY_BYTES
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")
        one = group[name]
        if isinstance(one, h5py.Group):
            yield from _sizes(one, h5py)
        elif not isinstance(one, h5py.Dataset):
            raise ValueError(f"{name} is not an array")
        elif one.external or one.is_virtual:
            raise ValueError(f"{name} is in another file")
        else:
            yield int(one.nbytes)


def is_number(value: object) -> bool:
    """Whether it is a number, a bool or None."""
    return value is None or isinstance(value, (bool, int, float))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _WHOLE


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_shapes(value: Any) -> bool:
    return isinstance(value, list) and all(
        len(one) == 2 and _is_text(one[0]) and _are_whole(one[1]) for one in value if isinstance(one, list)
    )


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(one) and one >= 0 for one in value)


def _is_streams(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number.isdecimal() and _are_whole(of) for number, of in value.items()
    )


def _is_best(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"metric", "value", "epoch", "more"}
        and (value["metric"] is None or _is_text(value["metric"]))
        and is_number(value["value"])
        and _is_whole(value["epoch"])
        and isinstance(value["more"], bool)
    )


def _is_callbacks(value: Any) -> bool:
    return isinstance(value, list) and all(
        _is_text(one["class"]) and all(is_number(number) for number in one["numbers"].values())
        for one in value
    )


def _is_optimizers(value: Any) -> bool:
    return isinstance(value, list) and all(
        _are_whole(one["of"])
        and _is_shapes(one["shapes"])
        and (one.get("name") is None or _is_text(one["name"]))
        for one in value
    )


def _is_past(value: Any) -> bool:
    Past.from_dict(value)  # rejects anything else
    return True


def _is_random(value: Any) -> bool:
    version, inner, gauss = value["python"]
    kind, position, has_gauss, more = value["numpy"]
    random.Random().setstate((version, tuple(inner), gauss))  # rejects anything else
    return bool(
        (gauss is None or math.isfinite(gauss))
        and kind == "MT19937"
        and 0 <= position <= _MERSENNE
        and has_gauss in (0, 1)
        and math.isfinite(more)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "epoch": _is_whole, "step": _is_whole, "first_epoch": _is_whole, "within": lambda value: isinstance(value, bool),
    "past": _is_past, "streams": _is_streams, "prefix": _is_text, "best": _is_best, "callbacks": _is_callbacks,
    "random": _is_random, "weights": _is_shapes, "optimizer": _is_shapes, "optimizers": _is_optimizers,
}  # fmt: skip
_MAYBE: dict[str, Callable[[Any], bool]] = {
    "began_with": _is_whole,
    "fits": _is_whole,
    "keras": _is_text,
    "place": _is_whole,
    "process": _is_text,
}
