"""Arrays in NumPy's files, which come from a store and are therefore untrusted."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays in a NumPy file: no objects, and none larger than their file.

    Raises:
        OSError: it cannot be read.
        ValueError: the file is invalid.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(one.compress_type == zipfile.ZIP_STORED for one in members)
    if not stored or sum(one.file_size for one in members) > size:  # members may overlap
        raise ValueError(f"{path.name} is compressed")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
