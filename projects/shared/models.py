"""Classifier of handwritten digits that several demos train."""

from __future__ import annotations

import keras


def classifier(shape: tuple[int, ...] = (8, 8, 1)) -> keras.Model:
    """Returns a small convolutional classifier of ten digits that gives logits.

    The layers are named, so that a layer's curves have the same names in all runs.

    Args:
        shape: of an image.
    """
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
            keras.layers.Conv2D(32, 3, activation="relu", name="conv2"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ],
        name="digits",
    )
