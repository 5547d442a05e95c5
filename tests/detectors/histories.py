"""Hand-made histories for the tests of detectors, without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_tfmon.detectors import Gatherer, History
from mlflow_tfmon.detectors.premises import Layer, Premises
from mlflow_tfmon.detectors.sample import Sample

STEPS, EPOCHS = 400, 20
MEMORY = 8000.0  # MB of the machine, for the training alone
KERNELS = ("a.kernel", "b.kernel", "c.kernel")


def premises(**changes: Any) -> Premises:
    """A classifier of four balanced classes, well made."""
    random = np.random.default_rng(0)
    usual: dict[str, Any] = {
        "layers": (
            Layer("a", "Dense", "relu", 16, "a.kernel", 8, 16, 0.0, 0.3),
            Layer("b", "Dense", "relu", 16, "b.kernel", 16, 16, 0.0, 0.25),
            Layer("c", "Dense", "softmax", 4, "c.kernel", 16, 4, 0.0, 0.3, is_output=True),
        ),
        "loss": "sparse_categorical_crossentropy",
        "optimizer": "Adam",
        "learning_rate": 1e-3,
        "inputs": Sample.of(random.normal(size=(400, 8))),
        "targets": Sample.of(np.arange(400) % 4),
    }
    return Premises(**{**usual, **changes})


def history(
    loss: np.ndarray | float | None = None, *, known: Premises | None = None, gradients: tuple[float, ...] = (0.1,) * 3,
    norm: np.ndarray | None = None, update: np.ndarray | float = 1e-3, val_loss: np.ndarray | None = None,
    accuracy: Any = None, dead: float = 0.1, saturated: float = 0.0, activation: str = "relu", steps: int = STEPS,
    done: int | None = None, columns: dict[str, np.ndarray] | None = None, memory: np.ndarray | None = None,
    ends: bool = True,
) -> History:  # fmt: skip
    """A training of `steps`, of which the first `done` are over; by default it goes well. `ends`: whether epochs do."""
    done = steps if done is None else done
    random = np.random.default_rng(1)
    if loss is None:
        loss = 0.05 + 1.4 * np.exp(-np.arange(steps) / 60)
    curve = np.broadcast_to(np.asarray(loss, float), (steps,)) + 0.005 * random.normal(size=steps)
    number = np.arange(1, steps + 1)
    norms = np.linalg.norm(gradients) * np.ones(steps) if norm is None else norm
    given = {
        "step": number,
        "loss": curve,
        "learning_rate": np.full(steps, 1e-3),
        "grad_norm": norms,
        **(columns or {}),
    }
    gatherer = Gatherer()
    gatherer.total_steps = steps
    gatherer.know(known or premises())
    gatherer.opened([(name, 100, True) for name in KERNELS])
    values = np.column_stack(list(given.values()))[:done]
    gatherer.steps(tuple(given), values, np.tile(gradients, (steps, 1))[:done])
    for step in range(1, done + 1, 4) if memory is not None else ():
        used = float(memory[step - 1])
        gatherer.system(step, {"system/process_memory_mb": used, "system/memory_free_mb": MEMORY - used})
    moved = np.broadcast_to(update, (steps,))
    for step in range(1, done + 1, 50):
        ratios = {"weight_norm": 1.0, "update_ratio": moved[step - 1], "grad_zero_fraction": 0.0}
        gatherer.deep(
            np.array([float(step)]), {name: np.full((1, 3), value) for name, value in ratios.items()}
        )
    each = steps // EPOCHS
    for epoch in range(done // each if ends else 0):
        metrics = {"loss": float(curve[epoch * each : (epoch + 1) * each].mean())}
        if val_loss is not None:
            metrics["val_loss"] = float(val_loss[epoch])
        if accuracy is not None:
            metrics |= {"accuracy": float(accuracy[0]), "val_accuracy": float(accuracy[1])}
        gatherer.epoch(epoch, (epoch + 1) * each, metrics)
        figures = {
            "mean": 0.1,
            "std": 0.2,
            "zero_fraction": 0.4,
            "dead_fraction": dead,
            "saturated_fraction": saturated,
        }
        gatherer.activation((epoch + 1) * each, {"a": (activation, figures), "b": (activation, figures)})
    return gatherer.history()
