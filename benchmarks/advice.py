"""Benchmark of the advice: follows it by a program, in the trainings that fail, and trains them again.

    python -m benchmarks.advice --keep DIR               # the configurations that were looked at
    python -m benchmarks.advice aside --keep DIR         # those that were set aside
    python -m benchmarks.advice fresh --keep DIR         # fits by someone who knew neither detectors nor advice
    python -m benchmarks.advice --every 3 --minutes 15   # each third, for so long

Each configuration is trained under `autolog()`, as `benchmarks.detection` does (with `--keep` in a store that both
share). Of those that fail and are diagnosed, the advice of the first problem is followed as far as a program can: its
first piece, to the letter (and what "and" or "then" joins to it). The same training is made again from the same seed.
It is **mended** if it goes well then, **partly** if a quarter of what was missing is gained, **harmed** if its score
(an accuracy, or the share of the variance explained) is lower by a twentieth, else **no better**. What only a person
can do (look at the data, another architecture) is counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from benchmarks import verdicts
from benchmarks.detection import SETTINGS, own_jobs, store, train
from benchmarks.verdicts import Job
from mlflow_tfmon import Problem
from mlflow_tfmon.problems.rediagnosis import diagnose

OUTCOMES = ("mended", "partly", "no better", "harmed", "for a person")
_GAINED, _LOST = 0.25, 0.05
_HIDDEN = ("sigmoid", "tanh", "hard_sigmoid", "softmax", "exponential")

Model = Any  # compiled
Fit = dict[str, Any]  # arguments of fit
Follow = Callable[[re.Match[str], Problem, Model, Fit], bool | None]


# -- what each piece of advice says to do; False where that cannot be done to this training ---------------------------
def _rate(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    _set_rate(model, lambda _: float(found[1]))


def _factor(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    _set_rate(model, lambda rate: rate * (0.1 if found[1] == "Lower" else 10.0))


def _set_rate(model: Model, change: Callable[[float], float]) -> None:
    optimizer = model.optimizer
    rate = change(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    if hasattr(optimizer._learning_rate, "assign"):
        optimizer.learning_rate = rate
    else:  # a schedule
        optimizer._learning_rate = keras.Variable(rate, trainable=False)


def _range_test(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    test = mlflow_tfmon.LearningRateRangeTest()
    model.fit(**{**fit, "epochs": 0, "callbacks": [test]}, verbose=0)
    suggested = test.suggested
    if suggested is None:
        return False
    _set_rate(model, lambda _: suggested)
    return True


def _adam(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    model.compile(**{**model._compile_config.config, "optimizer": keras.optimizers.Adam()})


def _clip(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    setattr(model.optimizer, found[1], float(found[2]))


def _scale_inputs(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    x, held_out = fit["x"], fit["validation_data"]
    if not isinstance(x, np.ndarray):
        return False
    code = found[1]
    if "x.std(axis=0)" in code or code.startswith(
        "to mean 0"
    ):  # the validation inputs with the numbers of the training data
        s, mean = x.std(axis=0), x.mean(axis=0)
        code = "x = (x - mean) / numpy.where(s > 0, s, 1)"
        names: dict[str, Any] = {"numpy": np, "s": s, "mean": mean}
    else:
        names = {"numpy": np}
    fit["x"], other = (_run(code, x=one, **names)["x"].astype("float32") for one in (x, held_out[0]))
    fit["validation_data"] = (other, *held_out[1:])
    return True


def _run(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)  # a line of the advice, with numbers of the data
    return names


def _scale_targets(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    if not isinstance(fit.get("y"), np.ndarray):
        return False
    mean, deviation = float(found[1]), float(found[2])
    x, y = fit["validation_data"]
    fit["y"], y = ((one - mean) / deviation for one in (fit["y"], y))
    fit["validation_data"] = (x, y)
    return True


def _clean(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    x, y = fit["x"], fit.get("y")
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        return False
    x_val, y_val = fit["validation_data"]
    (fit["x"], fit["y"]), fit["validation_data"] = _whole(x, y), _whole(x_val, y_val)
    return True


def _fill(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    x, held_out = fit["x"], fit["validation_data"]
    if not isinstance(x, np.ndarray):
        return False
    medians = np.nanmedian(np.where(np.isfinite(x), x, np.nan), axis=0)
    fit["x"], other = (np.where(np.isfinite(one), one, medians) for one in (x, held_out[0]))
    fit["validation_data"] = (other, *held_out[1:])
    return True


def _whole(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    whole = np.isfinite(x.reshape(len(x), -1).astype(float)).all(1) & np.isfinite(y.reshape(len(y), -1)).all(
        1
    )
    return x[whole], y[whole]


def _number_labels(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    y = fit.get("y")
    if not isinstance(y, np.ndarray):
        return False
    least = y.min()
    (x_val, y_val), both = fit["validation_data"], found[0].startswith("Use labels")
    fit["y"], y_val = ((one > least).astype(one.dtype) if both else one - least for one in (y, y_val))
    fit["validation_data"] = (x_val, y_val)
    return True


def _loss(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    _compile(model, getattr(keras.losses, found[1])(from_logits=True))


def _another_loss(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    _compile(model, found[1])


def _probabilities(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    if not hasattr(model.loss, "from_logits") and "from_logits" not in getattr(model.loss, "_fn_kwargs", {}):
        return False
    _compile(model, type(model.loss)(from_logits=False))
    return True


def _compile(model: Model, loss: Any) -> None:
    as_it_is = model._compile_config.config
    model.compile(**{**as_it_is, "optimizer": model.optimizer, "loss": loss})


def _last_activation(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    last = [layer for layer in _layers(model) if _activated(layer)]
    if not last:
        return False
    activation = next((one for one in found.groups() if one), None)
    _activated(last[-1]).activation = keras.activations.get(activation)
    if "binary_crossentropy" in found.string:
        _compile(model, "binary_crossentropy")
    return True


def _hidden_activation(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    name = next((one for one in found.groups() if one), "relu").lower()
    hidden = [layer for layer in _layers(model) if _activated(layer)][:-1]
    changed = False
    for layer in hidden:
        own = _activated(layer)
        if getattr(own.activation, "__name__", "") in (*_HIDDEN, "linear"):
            own.activation, changed = keras.activations.get(name), True
            _draw(layer, "he_normal")
    return changed


def _initialize(found: re.Match[str], problem: Problem, model: Model, fit: Fit) -> bool:
    changed = False
    for layer in _layers(model):
        if any(f"{name}.".startswith(f"{layer.name}.") for name in problem.variables or (layer.name,)):
            changed |= _draw(layer, found[1])
    return changed


def _initialize_recurrent(found: re.Match[str], problem: Problem, model: Model, fit: Fit) -> bool:
    own = [getattr(layer, "cell", layer) for layer in _layers(model)]
    kernels = [one.recurrent_kernel for one in own if hasattr(one, "recurrent_kernel")]
    for kernel in kernels:
        kernel.assign(keras.initializers.get(found[1])(kernel.shape))
    return bool(kernels)


def _draw(layer: Any, initializer: str) -> bool:
    """Draws the kernels of a layer anew, and sets its biases to 0."""
    for variable in layer.trainable_variables:
        name = variable.name.split("/")[-1]
        if "bias" in name:
            variable.assign(np.zeros(variable.shape))
        elif "kernel" in name:
            variable.assign(keras.initializers.get(initializer)(variable.shape))
    return bool(layer.trainable_variables)


def _momentum(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    norms = [layer for layer in _layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = float(found[1])
    return bool(norms)


def _lighten(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> bool:
    penalties = [getattr(layer, "kernel_regularizer", None) for layer in _layers(model)]
    for one in penalties:
        for name in ("l1", "l2"):
            if hasattr(one, name):
                setattr(one, name, getattr(one, name) * float(found[1]))
    return any(penalties)


def _weigh(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    fit["class_weight"] = {int(k): float(v) for k, v in re.findall(r"(\d+): ([\d.e+-]+)", found[1])}


def _shuffle(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    fit["shuffle"] = True


def _stop_early(found: re.Match[str], _: Problem, model: Model, fit: Fit) -> None:
    fit["callbacks"] = [*(fit.get("callbacks") or ()), _StopAtBest("val_loss", patience=5)]


class _StopAtBest(keras.callbacks.EarlyStopping):
    """Has the best epoch's metrics be the last of what fit returns, as its weights would be."""

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        history = self.model.history.history
        best = int(np.argmin(history["val_loss"]))
        for values in history.values():
            values[:] = [values[best]] * 5


_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
# The pieces of advice that a program can follow. The first in the text is; a later one only if it cannot be.
PIECES: tuple[tuple[str, Follow], ...] = (
    (rf"(?:[Ll]ower|[Rr]aise) the learning rate from \S+ to (?:about )?{_NUMBER}", _rate),
    (rf"Keep the learning rate at {_NUMBER}", _rate),
    (r"(Lower|Raise) the learning rate(?! from)", _factor),
    (r"(?:[Tt]ry a) learning rate ten times (larger)", _factor),
    (r"[Ff]ind a learning rate: model\.fit\(.*?LearningRateRangeTest\(\)\]\)", _range_test),
    (r"use keras\.optimizers\.Adam\(\)", _adam),
    (rf"(clipnorm|global_clipnorm|clipvalue)={_NUMBER}", _clip),
    (r"Scale the inputs: (.+?)(?: \(or|; the validation)", _scale_inputs),
    (r"Scale the inputs (to mean 0 and standard deviation 1)", _scale_inputs),
    (rf"Train on y = \(y - (-?[\d.]+(?:e[+-]?\d+)?)\) / {_NUMBER},", _scale_targets),
    (r"Clean the inputs before training: fill in each feature's median, x = numpy\.where", _fill),
    (r"Clean the (inputs|targets)(?! before training: fill)", _clean),
    (r"Number the labels from 0|Use labels 0 and 1", _number_labels),
    (r"Compile with loss=keras\.losses\.(\w+)\(from_logits=True\)", _loss),
    (r'Compile with loss="(\w+)"', _another_loss),
    (r"Remove from_logits=True", _probabilities),
    (r"Remove the activation of the last layer", _last_activation),
    (r'End the model with (?:Dense\(\d+, )?activation="(\w+)"|^Use activation="(s\w+)"', _last_activation),
    (r'hidden layers an activation \(activation="(\w+)"|Use activation="(?:\w+)"(?= or)', _hidden_activation),
    (r"Use (ReLU|GELU)(?=[ ,])", _hidden_activation),
    (r'Initialize kernels (?:at random )?(?:with|\(kernel_initializer=)\s?"(\w+)"', _initialize),
    (r"[Ii]nitialize with (he_normal)", _initialize),
    (r'recurrent_initializer="(\w+)"', _initialize_recurrent),
    (r'at least its own activation="(\w+)"', _hidden_activation),
    (rf"BatchNormalization\(momentum={_NUMBER}\)", _momentum),
    (rf"Multiply the penalty of the weights \(kernel_regularizer\) by {_NUMBER}", _lighten),
    (r"class_weight=(\{.*?\})", _weigh),
    (r"Shuffle the examples", _shuffle),
    (r"EarlyStopping\(restore_best_weights=True\)", _stop_early),
)


def follow(problem: Problem, model: Model, fit: Fit) -> str:
    """Does what a problem's advice says first, to a compiled model and the arguments of fit; returns that piece.

    Args:
        problem: whose advice.
        model: compiled, not trained.
        fit: changed in place.

    Returns:
        The piece of the advice; "" if a program can follow none.

    Example:
        >>> follow(problem, model, fit)
        'Lower the learning rate from 1 to 0.003'
    """
    found = [(re.search(pattern, problem.advice), do) for pattern, do in PIECES]
    pieces: list[str] = []
    end = 0
    for match, do in sorted(((m, do) for m, do in found if m), key=lambda one: one[0].start()):
        between = problem.advice[end : match.start()]
        if pieces and not re.search(r"^(?:(?!\. )[^;]){0,110}\band [^;]{0,10}$|\. Then $", between):
            break
        if do(match, problem, model, fit) is not False:
            pieces.append(match[0])
            end = match.end()
    return " and ".join(pieces)


def _layers(model: Any) -> list[Any]:
    """The layers of a model and of models within it, in order."""
    return [
        leaf for layer in model.layers for leaf in (_layers(layer) if hasattr(layer, "layers") else [layer])
    ]


def _activated(layer: Any) -> Any:
    """What of a layer has its activation: the layer, or its recurrent cell."""
    one = getattr(layer, "cell", layer)
    return one if hasattr(one, "activation") else None


# -- training again ---------------------------------------------------------------------------------------------------
def again(job: Job, problem: Problem) -> tuple[str, float]:
    """Trains unwatched, with the advice of a problem followed: the piece of it that was followed, and the score."""
    mlflow_tfmon.autolog(disable=True)
    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    model, fit = job.make()
    piece, score = follow(problem, model, fit), float("-inf")
    with contextlib.suppress(tf.errors.OpError):
        if piece:
            score = float(job.score(model.fit(**fit, verbose=0).history, fit))
    mlflow_tfmon.autolog(**SETTINGS)
    return piece, score


def outcome(before: float, after: float, good: float) -> str:
    """What became of a training, by its scores; below 0 (or not finite) it had learned nothing.

    Example:
        >>> outcome(0.1, 0.5, 0.8)
        'partly'
    """
    before, after = (max(0.0, one) if np.isfinite(one) else 0.0 for one in (before, after))
    if after >= good:
        return "mended"
    if after < before - _LOST:
        return "harmed"
    return "partly" if after - before >= _GAINED * (good - before) else "no better"


def wilson(some: int, all_of_them: int) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson, 1927)."""
    if not all_of_them:
        return 0.0, 1.0
    z, p, n = 1.96, some / all_of_them, all_of_them
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float((middle - half) / (1 + z * z / n)), float((middle + half) / (1 + z * z / n))


def report(results: Iterable[dict[str, Any]]) -> str:
    """A table of the outcomes by kind, and the shares of those that a program could follow."""
    results = list(results)
    lines = [f"{'kind':26}" + "".join(f"{name:>14}" for name in OUTCOMES)]
    for kind in sorted({one["kind"] for one in results}):
        count = Counter(one["outcome"] for one in results if one["kind"] == kind)
        lines.append(f"{kind:26}" + "".join(f"{count[name] or '':>14}" for name in OUTCOMES))
    followed = [one for one in results if one["outcome"] != OUTCOMES[-1]]
    lines.append("")
    for name in OUTCOMES[:-1]:
        some = sum(one["outcome"] == name for one in followed)
        low, high = wilson(some, len(followed))
        share = some / max(1, len(followed))
        lines.append(f"{name:10} {some:3} of {len(followed)}: {share:.0%} (95%: {low:.0%} to {high:.0%})")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.advice", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("what", nargs="?", choices=("seen", "aside", "fresh"), default="seen")
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    parser.add_argument(
        "--every", type=int, default=1, help="only each so manieth of those that are made to fail"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps runs and results, to go on with")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="no training begins after that long"
    )
    chosen = parser.parse_args(arguments)
    end = time.monotonic() + 60 * chosen.minutes
    results = []
    with store(chosen.keep):
        jobs = [job for job in own_jobs(chosen.what, 1) if job.kinds and job.good < np.inf][:: chosen.every]
        trained = chosen.keep / f"{chosen.what}.jsonl" if chosen.keep else None
        followed = chosen.keep / f"{chosen.what}-advice.jsonl" if chosen.keep else None
        known = {(one.name, one.seed): one for one in verdicts.read(trained)} if trained else {}
        done = (
            [json.loads(line) for line in followed.read_text().splitlines()]
            if followed and followed.exists()
            else []
        )
        with contextlib.suppress(KeyboardInterrupt):  # the report of what was done by then
            for job in (one for one in jobs if chosen.only in one.name):
                if time.monotonic() > end:
                    break
                result = known.get((job.name, job.seed)) or train(job)
                if trained and (job.name, job.seed) not in known:
                    verdicts.add(trained, result)
                problems = [] if result.well else diagnose(mlflow_tfmon.load_run(result.run_id))
                problem = next((one for one in problems if one.advice), None)
                if problem is None:
                    continue
                one = next((o for o in done if (o["name"], o["advice"]) == (job.name, problem.advice)), None)
                if one is None:
                    piece, after = again(job, problem)
                    what = outcome(result.score, after, job.good) if piece else OUTCOMES[-1]
                    one = {
                        "name": job.name, "kind": problem.kind, "advice": problem.advice, "piece": piece,
                        "outcome": what, "before": result.score, "after": after,
                    }  # fmt: skip
                    if followed:
                        with followed.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(one) + "\n")
                results.append(one)
                scores = f"{one['before']:.2f} -> {one['after']:.2f} of {job.good:g}"
                print(
                    f"{one['outcome']:12} {scores}  {job.name}: {one['kind']}: {one['piece']}",
                    file=sys.stderr,
                    flush=True,
                )
        mlflow_tfmon.autolog(disable=True)
    print(report(results))


if __name__ == "__main__":
    main()
