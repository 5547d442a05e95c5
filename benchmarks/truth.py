"""Check that each metric is correct on this device: `python -m benchmarks.truth '{"way": "loop"}'`.

A small model is trained watched, and again by an eager loop whose figures NumPy computes. Printed is the largest
relative difference of each figure, and whether the last weights are bit for bit those of an unwatched training.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.device import Turn, batches_of, model_of, prepare, step_of

STEPS, DEEP = 12, 4


def once(turn: Turn) -> Any:
    """The model after its training."""
    model, batches = model_of(turn), batches_of(turn)
    if turn.way == "loop":
        step = step_of(model)
        for x, y in batches:
            step(x, y)
    else:
        model.fit(batches, verbose=0)
    return model


def by_hand(turn: Turn) -> dict[str, Any]:
    """The same figures as a run's, by column; those by variable in lists."""
    import numpy as np
    import tensorflow as tf

    model = model_of(turn)
    optimizer, variables = model.optimizer, model.trainable_variables
    seen: dict[str, list[Any]] = {name: [] for name in ("loss", "grad_norm", "learning_rate")}
    layers: dict[str, list[Any]] = {
        name: [] for name in ("grad_norm", "weight_norm", "update_ratio", "grad_zero_fraction")
    }
    optimizer.build(variables)

    def norm(value: Any) -> float:
        return float(np.linalg.norm(np.asarray(value, np.float64).ravel()))

    for x, y in batches_of(turn):
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True))
            scaled = optimizer.scale_loss(loss)
        given = tape.gradient(scaled, variables)
        factor = float(scaled) / float(loss)
        gradients = [np.asarray(g, np.float64) / factor for g in given]
        before = [v.numpy() for v in variables]
        optimizer.apply(given, variables)
        after = [v.numpy() for v in variables]
        seen["loss"].append(float(loss))
        seen["learning_rate"].append(float(optimizer.learning_rate))
        seen["grad_norm"].append(norm([norm(g) for g in gradients]))
        layers["grad_norm"].append([norm(g) for g in gradients])
        layers["weight_norm"].append([norm(w) for w in after])
        layers["update_ratio"].append(
            [
                norm(b.astype("float64") - a) / norm(a) if norm(a) else np.nan
                for a, b in zip(before, after, strict=True)
            ]
        )
        layers["grad_zero_fraction"].append([float((g == 0).mean()) for g in gradients])
    return {"steps": seen, "layers": layers, "names": [v.path.replace("/", ".") for v in variables]}


def main() -> int:
    """Trains three times, and prints what differs."""
    turn = Turn(width=32, layers=2, batch=64, steps=STEPS, turns=1, **json.loads(sys.argv[1]))
    prepare()
    import keras
    import mlflow
    import numpy as np
    import tensorflow as tf

    import mlflow_tfmon

    tf.config.experimental.enable_tensor_float_32_execution(False)  # 10 bits of a product tell nothing
    keras.backend.clear_session()  # so that a name is the same in each training
    expected = by_hand(turn)
    keras.backend.clear_session()
    unwatched = once(turn)
    keras.backend.clear_session()
    mlflow_tfmon.autolog(
        deep_every=DEEP, log_models=False, log_datasets=False, report=False, delivery_wait=120
    )
    with mlflow.start_run() as active:
        watched = once(turn)
    run = mlflow_tfmon.load_run(active.info.run_id)

    def differ(found: Any, hand: Any) -> float:
        found, hand = np.asarray(found, float), np.asarray(hand, float)
        known = ~np.isnan(hand)
        assert known.any() and not np.isnan(found[known]).any()
        return float(np.max(np.abs(found - hand)[known] / np.maximum(np.abs(hand)[known], 1e-12)))

    differences = {name: differ(run.steps[name], values) for name, values in expected["steps"].items()}
    deep = [1, *range(DEEP, STEPS + 1, DEEP)]
    for name, values in expected["layers"].items():
        table = run.layers.pivot(index="step", columns="variable", values=name)[expected["names"]]
        at = list(range(1, STEPS + 1)) if name == "grad_norm" else deep
        differences[f"{name}, by variable"] = differ(table.loc[at], [values[step - 1] for step in at])
    counted = run.histograms[run.histograms.kind == "weight"]
    sizes = {v.path.replace("/", "."): int(np.prod(v.shape)) for v in watched.trainable_variables}
    same = all(
        np.array_equal(a, b) for a, b in zip(watched.get_weights(), unwatched.get_weights(), strict=True)
    )
    print(
        json.dumps(
            {
                "differences": differences,
                "steps": len(run.steps),
                "histograms_complete": bool(
                    len(counted)
                    and all(sum(row.counts) == sizes[row.variable] for row in counted.itertuples())
                ),
                "same_weights": same,
            }
        ),
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
