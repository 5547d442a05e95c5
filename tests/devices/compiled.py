"""Comparison of XLA's result for a training step, with and without monitoring: `python -m tests.devices.compiled FILE`.

XLA is to dump what it compiles (`XLA_FLAGS=--xla_dump_to=… --xla_dump_hlo_as_text`). Of the function that is executed
last, an ordinary step's, the optimized program is read: conditionals, copies, bytes of temporaries.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

from tests.devices.audit import XLA, executed, flag, functions_of, graphs, training
from tests.devices.audited import watch

FEATURES, LAYERS, CLASSES, BATCH, STEPS = 1000, 3, 3, 16, 4  # 12 MB of weights
_random = np.random.default_rng(0)
X = _random.normal(size=(BATCH * STEPS, FEATURES)).astype("float32")
Y = _random.integers(0, CLASSES, BATCH * STEPS)
BYTES = {
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f16": 2,
    "bf16": 2,
    "pred": 1,
    "s8": 1,
    "u8": 1,
}


def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(FEATURES, activation="relu") for _ in range(LAYERS)]
    return keras.Sequential([keras.Input((FEATURES,)), *hidden, keras.layers.Dense(CLASSES)])


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit() -> None:
    net = model()
    net.compile(keras.optimizers.SGD(0.01), loss(), jit_compile=True)
    net.fit(X, Y, batch_size=BATCH, verbose=0)


def loop() -> None:
    net, optimizer, loss_of = model(), keras.optimizers.SGD(0.01), loss()
    optimizer.build(net.trainable_variables)

    @tf.function(jit_compile=True)
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = loss_of(y, net(x, training=True))
        optimizer.apply(tape.gradient(value, net.trainable_variables), net.trainable_variables)

    for x, y in zip(np.split(X, STEPS), np.split(Y, STEPS), strict=True):
        step(tf.constant(x), tf.constant(y))


WAYS: dict[str, Callable[[], None]] = {"fit": fit, "loop": loop}


def compiled_by(function: Any) -> str:
    """The name of the function that XLA compiles in one that eager code calls: itself, or one that it calls."""
    if flag(function.cached_definition.attr, XLA):
        return str(function.cached_definition.signature.name)
    names = {
        inner.cached_definition.signature.name
        for graph in graphs(function.graph)
        for op in graph.get_operations()
        for _, inner in functions_of(op)
        if flag(inner.cached_definition.attr, XLA)
    }
    assert len(names) == 1, f"XLA compiles {names or 'nothing'} in {function.name}"
    return str(names.pop())


def program(folder: Path, function: str) -> dict[str, Any]:
    """What is in the dump of a function: conditionals, copies of 1 kB and more by shape, bytes of temporaries."""
    module = re.sub(r"^_+", "", function)
    texts = list(folder.glob(f"*{module}_*after_optimizations.txt"))
    reports = list(folder.glob(f"*{module}_*memory-usage-report.txt"))
    assert texts and reports, f"no dump of {function} among {sorted(path.name for path in folder.iterdir())}"
    text = texts[-1].read_text()
    return {
        # Those within a branch are for deep steps alone.
        "conditionals": len(re.findall(r" conditional\(", text[text.index("\nENTRY ") :])),
        "copies": _copies(text),
        "copies outside of branches": _copies(text[text.index("\nENTRY ") :]),
        "temporary bytes": sum(
            float(size) * 1024 ** " KMG".index(unit or " ")
            for size, unit in re.findall(
                r"\nallocation \d+: size ([\d.]+)([KMG]?)i?B, preallocated-temp", reports[-1].read_text()
            )
        ),
    }


def _copies(text: str) -> dict[str, int]:
    shapes = re.findall(r"= (\w+\[[\d,]*\])\S* copy\(", text)
    return dict(Counter(shape for shape in shapes if _size(shape) >= 1024))


def _size(shape: str) -> int:
    kind, _, numbers = shape.rstrip("]").partition("[")
    return BYTES.get(kind, 4) * int(np.prod([int(n) for n in numbers.split(",") if n] or [1]))


def main(path: Path) -> None:
    folder = Path(re.search(r"--xla_dump_to=(\S+)", os.environ["XLA_FLAGS"])[1])  # type: ignore[index]
    results: dict[str, Any] = {}
    for name in ("unwatched", "watched"):
        if name == "watched":
            watch()
        with mlflow.start_run() if name == "watched" else contextlib.nullcontext():
            for way, train in WAYS.items():
                with executed() as calls:
                    train()
                function = compiled_by(training(calls)[-1])
                results.setdefault(way, {})[name] = program(folder, function)
    path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
