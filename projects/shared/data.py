"""Data sets of the demos: real ones that scikit-learn ships, and MNIST if it is cached or can be downloaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

IMAGES = ("digits", "mnist")  # the choices of a demo's parameter `dataset`


@dataclass(frozen=True)
class Split:
    """Examples to train on and to validate with, as NumPy arrays."""

    x: np.ndarray
    y: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray

    @property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """What `fit` takes as `validation_data`."""
        return self.x_val, self.y_val


def images(name: str = "digits") -> Split:
    """Handwritten digits, pixels from 0 to 1, labels 0 to 9.

    Args:
        name: "digits" (scikit-learn's: 1,437 and 360 of 8 x 8 pixels) or "mnist" (60,000 and 10,000 of 28 x 28).
    """
    if name == "digits":
        digits = datasets.load_digits()
        pixels = (digits.images[..., None] / 16).astype("float32")
        return _split(pixels, digits.target, stratify=digits.target)
    try:
        (x, y), (x_val, y_val) = keras.datasets.mnist.load_data()
    except Exception as error:
        sys.exit(f"error: MNIST is neither cached nor can it be fetched ({error}); use dataset=digits")
    return Split(
        *(
            (part[..., None] / 255).astype("float32") if part.ndim > 1 else part
            for part in (x, y, x_val, y_val)
        )
    )


def breast_cancer() -> Split:
    """569 tumours, 30 standardized measures of each, benign (1) or malignant (0)."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return _standardized(_split(x, y.astype("float32"), stratify=y))


def wine() -> Split:
    """178 wines, 13 standardized measures of each, from 3 growers."""
    x, y = datasets.load_wine(return_X_y=True)
    return _standardized(_split(x, y, stratify=y))


def diabetes() -> Split:
    """442 patients, 10 standardized measures of each; the progress of the disease after a year, from 25 to 346."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return _standardized(_split(x, y.astype("float32")))


def classification(seed: int = 1, **settings: Any) -> Split:
    """A synthetic set by scikit-learn's `make_classification`, standardized.

    Args:
        seed: of the random numbers.
        **settings: its arguments, such as `n_samples=2000, weights=[0.95]`.
    """
    x, y = datasets.make_classification(random_state=seed, **settings)
    return _standardized(_split(x, y, stratify=y))


def _split(x: np.ndarray, y: np.ndarray, stratify: np.ndarray | None = None) -> Split:
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.2, stratify=stratify, random_state=1)
    return Split(x, y, x_val, y_val)


def _standardized(split: Split) -> Split:
    """With mean 0 and deviation 1 of each column, as the examples to train on have them."""
    scaler = StandardScaler().fit(split.x)
    x, x_val = (scaler.transform(part).astype("float32") for part in (split.x, split.x_val))
    return Split(x, split.y, x_val, split.y_val)
