"""The examples of a batch: arrays by name, a fingerprint of each example, and which of them stands out.

Nothing in here knows TensorFlow or MLflow.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

PNG = "data:image/png;base64,"  # what the address of a picture begins with
INPUTS, TARGETS, WEIGHTS = "inputs", "targets", "sample_weight"
_PARTS = (INPUTS, TARGETS, WEIGHTS)
_OUTLIER = 8.0  # times as far from the batch's median as the next example
T = TypeVar("T")
_NUMBERS = 2**21  # of a batch, about, that are compared
_FIRST = 3  # values of an example that are named
_BLOCK = 64  # rows that are compared at a time
_LEAST, _LARGEST = 8, 1024  # pixels of a picture's side
_CANDIDATES, _COLUMNS = 64, 8  # columns that are looked at, and those by which rows are told apart at first


@dataclass(frozen=True)
class Odd:
    """Examples of a batch that stand out, the oddest first.

    Attributes:
        examples: their places in the batch.
        why: what is odd about the first one, such as "feature 3 is NaN"; "" if none stands out.
    """

    examples: tuple[int, ...] = ()
    why: str = ""


def arrays_of(element: Any, single: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a batch: "inputs", "targets", "sample_weight"; of nested ones "inputs/<name>", "inputs/1".

    Args:
        element: (x,), (x, y), (x, y, sample_weight) or anything else, of arrays. What has no rows is left out.
        single: whether it is one example, not a batch of them.
    """
    parts = element if isinstance(element, tuple) else (element,)
    found: dict[str, np.ndarray] = {}
    for at, part in enumerate(parts):
        for path, value in _leaves(part):
            name = "/".join((_PARTS[at] if at < len(_PARTS) else f"more/{at}", *path))
            array = _plain(value, single)
            if array is not None:
                found[name] = array
    rows = len(next(iter(found.values()))) if found else 0
    return {name: array for name, array in found.items() if len(array) == rows}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        return [leaf for name, one in value.items() for leaf in _leaves(one, (*path, str(name)))]
    if isinstance(value, (tuple, list)):
        return [leaf for at, one in enumerate(value) for leaf in _leaves(one, (*path, str(at)))]
    return [(path, value)]


def _plain(value: Any, single: bool) -> np.ndarray | None:
    """An array that NumPy can write without objects; None if it has no rows."""
    if value is None:
        return None
    try:
        array = np.asarray(value)[None] if single else np.asarray(value)
    except (TypeError, ValueError, NotImplementedError):  # ragged, sparse, on several replicas
        return None
    if array.dtype.kind == "O":
        array = array.astype("S")
    elif array.dtype.kind not in "biufcSU":  # bfloat16
        array = array.astype(np.float32)
    return array if array.ndim else None


def inputs_of(arrays: Mapping[str, T]) -> dict[str, T]:
    """Those of the inputs."""
    return {name: one for name, one in arrays.items() if name.split("/")[0] == INPUTS}


def _canonical(array: np.ndarray) -> np.ndarray:
    """Rows as they are compared: what Keras casts on the way is the same before and after (float64 is float32)."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        array = np.where(np.isnan(array), np.float32(np.nan), array) + np.float32(0)  # one NaN, one zero
    elif array.dtype.kind in "biu":
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)


def fingerprints(arrays: Sequence[np.ndarray]) -> list[str]:
    """A fingerprint of each example: 16 digits that depend on its values alone, not on where it stands.

    Args:
        arrays: the inputs, examples along the first axis.

    Example:
        >>> fingerprints([np.array([[1.0, 2.0]])]) == fingerprints([np.array([[1.0, 2.0]], "float32")])
        True
    """
    plain = [_canonical(array) for array in arrays]
    found = []
    for row in range(len(plain[0]) if plain else 0):
        digest = hashlib.blake2b(digest_size=8)
        for array in plain:
            one = array[row]
            digest.update(bytes(one) if array.dtype.kind in "SU" and not one.shape else one.tobytes())
        found.append(digest.hexdigest())
    return found


def places(batch: Sequence[np.ndarray], data: Sequence[np.ndarray]) -> list[int]:
    """Where the examples of a batch are in arrays, -1 for those that are not.

    Each takes a pass over a few columns of the data: some 30 ms of a million examples.

    Args:
        batch: the inputs of some examples.
        data: arrays in the same order, of all examples.
    """
    if len(batch) != len(data) or not all(map(len, batch)):
        return []
    pairs = [(_canonical(a), b) for a, b in zip(batch, data, strict=True)]
    if any(a.shape[1:] != b.shape[1:] or a.dtype != _canonical(b[:1]).dtype for a, b in pairs):
        return []
    told, first = pairs[0][0].reshape(len(batch[0]), -1), data[0].reshape(len(data[0]), -1)
    # A few columns tell most rows apart; all the rest is compared of those that are left.
    some = np.unique(np.linspace(0, told.shape[1] - 1, _CANDIDATES).astype(int))
    columns = some[np.argsort([-len(np.unique(told[:, one])) for one in some], kind="stable")[:_COLUMNS]]
    keys = _bytes(_canonical(first[:, columns]))
    found = []
    for row in range(len(told)):
        same = np.flatnonzero((keys == _bytes(told[row : row + 1, columns])).all(axis=1))
        found.append(_first(same, [(a[row : row + 1], b) for a, b in pairs]))
    return found


def _first(candidates: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """The first of some rows that equals another in all arrays; -1 if none does."""
    for begin in range(0, len(candidates), _BLOCK):  # sparse data may nearly all agree in a few columns
        same = candidates[begin : begin + _BLOCK]
        for a, b in pairs if len(same) else ():
            same = same[(_bytes(_canonical(b[same])) == _bytes(a)).all(axis=1)]
        if len(same):
            return int(same[0])
    return -1


def _bytes(rows: np.ndarray) -> np.ndarray:
    """Rows as their bytes, by which NaN equals NaN."""
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)


def odd(arrays: Mapping[str, np.ndarray], losses: np.ndarray | None = None) -> Odd:
    """Which examples of a batch stand out: by values or losses that are not finite, else outliers, else large losses.

    Args:
        arrays: of the batch.
        losses: of each example, where they are known.
    """
    for name, array in arrays.items():
        if array.dtype.kind in "fc":
            bad = ~np.isfinite(array.reshape(len(array), -1))
            rows = np.flatnonzero(bad.any(axis=1))
            if len(rows):
                order = rows[np.argsort(-bad[rows].sum(axis=1), kind="stable")]
                more = f" (and values of {len(rows) - 1} more examples)" if len(rows) > 1 else ""
                return Odd(tuple(order.tolist()), _of_bad(name, array[order[0]]) + more)
    if losses is not None and not np.isfinite(losses).all():
        rows = np.flatnonzero(~np.isfinite(losses))
        why = f"its loss is {'NaN' if np.isnan(losses[rows[0]]) else 'infinite'}"
        return Odd(tuple(rows.tolist()), why) if len(rows) < len(losses) else Odd()
    far = [(score, row, text) for name, one in arrays.items() for score, row, text in _farthest(name, one)]
    score, row, text = max(far, default=(0.0, -1, ""))
    order = np.argsort(-losses, kind="stable").tolist() if losses is not None else []
    if score >= _OUTLIER:
        return Odd((row, *(one for one in order if one != row)), text)
    if losses is not None and len(losses) > 1:
        most, usual = float(losses[order[0]]), float(np.median(losses))
        if most > 3 * usual:
            return Odd(tuple(order), f"its loss is {most:.3g}, the batch's median {usual:.3g}")
    return Odd(tuple(order))


def _of_bad(name: str, example: np.ndarray) -> str:
    at = np.argwhere(~np.isfinite(example))
    named = [_place(name, tuple(one)) for one in at[:_FIRST].tolist()]
    values = {"NaN" if np.isnan(example[tuple(one)]) else "infinite" for one in at[:_FIRST]}
    more = f" and {len(at) - len(named)} more" if len(at) > len(named) else ""
    verb = "is" if len(at) == 1 else "are"
    return f"{', '.join(named)}{more} {verb} {' or '.join(sorted(values))}"


def _place(name: str, at: tuple[int, ...]) -> str:
    if name == INPUTS and len(at) == 1:
        return f"feature {at[0]}"
    if not at or (name == TARGETS and at == (0,)):
        return f"the {name.rstrip('s') if name == TARGETS else name}"
    return f"{name}[{', '.join(map(str, at))}]"


def _farthest(name: str, array: np.ndarray) -> list[tuple[float, int, str]]:
    """The example that is farthest off in some value, by how far the next one is off there, and in words."""
    if array.dtype.kind not in "iuf" or len(array) < 4:
        return []
    stride = 1 + array.size // _NUMBERS  # of a picture, each pixel need not be looked at
    values = array.reshape(len(array), -1)[:, ::stride].astype(np.float64)
    distance = np.abs(values - np.median(values, axis=0))
    usual = distance[distance > 0]
    if not len(usual):
        return []
    top = np.partition(distance, -2, axis=0)
    # Where the others hardly differ, by how far values of the array are off at all.
    score = top[-1] / np.maximum(top[-2], np.median(usual))
    column = int(score.argmax())
    row, place = int(distance[:, column].argmax()), np.unravel_index(column * stride, array.shape[1:] or (1,))
    where = _place(name, tuple(int(n) for n in place) if array.ndim > 1 else ())
    text = f"{where} is {score[column]:.0f} times as far from the batch's median as that of any other example"
    return [(float(score[column]), row, text)]


def picked(arrays: Mapping[str, np.ndarray], first: Sequence[int], most: int) -> list[int]:
    """The examples that fit into so many bytes, in their order; those that come first are taken first.

    Args:
        arrays: of the batch.
        first: examples to prefer.
        most: bytes.
    """
    rows = len(next(iter(arrays.values())))
    size = sum(array.nbytes for array in arrays.values()) / max(1, rows)
    if size * rows <= most:
        return list(range(rows))
    order = dict.fromkeys([*first, *range(rows)])
    return sorted(list(order)[: int(most // size)])


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as a `.npz` file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def picture(example: np.ndarray, most: int = _LARGEST) -> str:
    """An example as the `data:` address of a PNG; "" if it is no picture.

    Bytes and shares from 0 to 1 are shown as they are, all else from its least value to its largest.

    Args:
        example: of the shape (height, width), with 1, 3 or 4 colours after it or none.
        most: pixels of its longer side; one that is larger is made smaller.
    """
    shape, grey = example.shape, example.ndim == 2 or example.shape[2:] == (1,)
    colours = example.ndim == 3 and shape[2] in (3, 4)
    sides = min(shape[:2], default=0) >= _LEAST and max(shape[:2], default=0) <= _LARGEST
    if not (grey or colours) or not sides or example.dtype.kind not in "biuf":
        return ""
    from PIL import Image  # of matplotlib, which MLflow needs

    values = example.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if example.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif low >= 0 and 0.25 < high <= 1:
        low, high = 0.0, 1.0
    scaled = np.nan_to_num((values - low) / (high - low or 1.0), nan=0.0, posinf=1.0, neginf=0.0)
    pixels = (255 * scaled.clip(0, 1)).astype(np.uint8)
    drawn = Image.fromarray(pixels.reshape(shape[:2]) if grey else pixels)
    drawn.thumbnail((most, most))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return png(file.getvalue())


def png(content: bytes) -> str:
    """The `data:` address of a PNG."""
    return f"{PNG}{base64.b64encode(content).decode()}"
