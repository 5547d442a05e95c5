"""Tests of every mode of `fit`: the recording equals a hand-written loop in the same mode."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from tests import trainings
from tests.daily import thorough
from tests.trainings import (
    BATCH,
    CLASSES,
    DEEP,
    FEATURES,
    Scale,
    by_hand,
    compare,
    compare_clocks,
    last_run,
    renamed,
)

STEPS = 10  # an epoch of `trainings.data()`
X, Y = trainings.data()
TIMES = frozenset({"time", "step_time_ms"})
INPUT = frozenset({"examples_per_second", "input_wait_share"})
CLIP = 0.1


@pytest.fixture(scope="module")
def place(store_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store and one home for all modes: delivery is started once."""
    folder = tmp_path_factory.mktemp("modes")
    path = folder / "mlflow.db"
    path.write_bytes(store_template.read_bytes())
    patch = pytest.MonkeyPatch()
    patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    patch.setenv("MLFLOW_TFMON_HOME", str(folder / "home"))
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("modes", (folder / "artifacts").as_uri()))
    yield str(folder)
    patch.undo()


@pytest.fixture
def watched(place: str) -> Iterator[None]:
    mlflow_tfmon.autolog(deep_every=DEEP, log_models=False, log_datasets=False, checkpoint=False)
    yield
    mlflow_tfmon.autolog(disable=True)
    keras.config.set_dtype_policy("float32")


def batches() -> Iterator[tuple[Any, ...]]:
    return trainings.batches(X, Y, 1)


def sgd(**more: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9, **more)


@dataclass(frozen=True)
class Mode:
    """A way to train.

    Attributes:
        compile: arguments of `compile`.
        fit: arguments of `fit`, besides the data.
        net: makes the model, the same each time.
        optimizer: makes the optimizer, given how it clips.
        plain: makes the reference's optimizer, without what `by_hand` does. Default: that optimizer without clipping.
        data: what is given to `fit` as x and y.
        batches: the same, batch by batch.
        by_hand: arguments of the reference.
        clipped: whether the optimizer clips.
        deep: as in `compare`.
        rtol: as in `compare`.
        absent: columns that can't be measured in this mode.
    """

    compile: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    net: Callable[[], keras.Model] = trainings.model
    optimizer: Callable[..., Any] = sgd
    plain: Callable[[], Any] | None = None
    data: Callable[[], tuple[Any, ...]] = lambda: (X, Y)
    batches: Callable[[], Iterator[tuple[Any, ...]]] = batches
    by_hand: Callable[[], dict[str, Any]] = dict
    loss: Any = field(default_factory=trainings.loss)
    clipped: bool = True
    deep: list[int] | None = None
    rtol: float = 1e-5
    absent: frozenset[str] = frozenset()


# -- models ------------------------------------------------------------------------------------------------------------
def policy(name: str) -> Callable[[], keras.Model]:
    def net() -> keras.Model:
        keras.config.set_dtype_policy(name)
        return trainings.model()

    return net


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="tanh", name="hidden")
        self.out = keras.layers.Dense(CLASSES, name="out")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(self.hidden(x))


def subclassed() -> keras.Model:
    keras.utils.set_random_seed(1)
    net = Subclassed()
    net(X[:1])
    return net


class OwnTrainStep(keras.Model):
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            value = 3 * trainings.loss()(y, self(x, training=True))
        gradients = tape.gradient(value, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": value}


def own_train_step() -> keras.Model:
    net = trainings.model()
    return OwnTrainStep(net.inputs, net.outputs)


def frozen() -> keras.Model:
    net = trainings.model()
    net.layers[0].trainable = False
    return net


def constrained() -> keras.Model:
    keras.utils.set_random_seed(1)
    constraint = keras.constraints.MaxNorm(0.3)
    return keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(CLASSES, kernel_constraint=constraint)]
    )


TOKENS = np.random.default_rng(2).integers(0, 20, (len(X), 5))  # of 30: some rows never get a gradient


def embedding() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Embedding(30, 4), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((5,), dtype="int64"), *layers])


def token_batches() -> Iterator[tuple[Any, ...]]:
    return trainings.batches(TOKENS, Y, 1)


def many_outputs() -> keras.Model:
    keras.utils.set_random_seed(1)
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    both = keras.layers.Concatenate()([a, b])
    hidden = keras.layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L2(0.01))(both)
    hidden = keras.layers.ActivityRegularization(l1=0.001)(hidden)
    kind = keras.layers.Dense(CLASSES, name="kind")(hidden)
    size = keras.layers.Dense(1, name="size")(hidden)
    return keras.Model([a, b], {"kind": kind, "size": size})


def many_outputs_loss(net: keras.Model, x: Any, y: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    out = net(x, training=True)
    kind = trainings.loss()(y["kind"], out["kind"])
    size = tf.reduce_mean((out["size"] - y["size"]) ** 2)
    added = tf.add_n(net.losses)
    parts = {"kind_loss": kind, "size_loss": size, "regularization_loss": added}
    return 0.5 * kind + 2.0 * size + added, parts


def many_batches() -> Iterator[tuple[Any, ...]]:
    (x, y) = many_data()
    for start in range(0, len(X), BATCH):
        some = slice(start, start + BATCH)
        yield {k: v[some] for k, v in x.items()}, {k: v[some] for k, v in y.items()}


def many_data() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"a": X[:, :4], "b": X[:, 4:]}, {"kind": Y, "size": X[:, :1] * 2}


def regularized() -> keras.Model:
    keras.utils.set_random_seed(1)
    layer = keras.layers.Dense(CLASSES, kernel_regularizer="l2", bias_regularizer="l1")
    return keras.Sequential([keras.Input((FEATURES,)), layer])


def regularized_loss(net: keras.Model, x: Any, y: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    value, added = trainings.loss()(y, net(x, training=True)), tf.add_n(net.losses)
    return value + added, {"regularization_loss": added}


WEIGHTS = np.linspace(0.5, 2.0, len(X)).astype("float32")
CLASS_WEIGHTS = {0: 0.5, 1: 1.0, 2: 3.0}


def weighted(net: keras.Model, x: Any, y: Any, w: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    return trainings.loss()(y, net(x, training=True), sample_weight=w), {}


def weighted_batches(weights: np.ndarray) -> Callable[[], Iterator[tuple[Any, ...]]]:
    def make() -> Iterator[tuple[Any, ...]]:
        for at, (x, y) in enumerate(batches()):
            yield x, y, weights[at * BATCH : (at + 1) * BATCH]

    return make


# -- data --------------------------------------------------------------------------------------------------------------
def dataset() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)


def unknown_size() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(BATCH)


def generator() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for x, y in batches():
        yield x.numpy(), y.numpy()


class Sequence(keras.utils.PyDataset):
    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        return X[at * BATCH : (at + 1) * BATCH], Y[at * BATCH : (at + 1) * BATCH]


# -- gradients ---------------------------------------------------------------------------------------------------------
def clip_global(gradients: list[np.ndarray]) -> list[np.ndarray]:
    return [(g * min(1.0, CLIP / trainings.norm(gradients))).astype("float32") for g in gradients]


def accumulating(**more: Any) -> Any:
    return sgd(gradient_accumulation_steps=3, **more)


def scaled_sgd(**more: Any) -> Any:
    # At 2 ** 21 gradients overflow in float16 a few times; then the scale grows after 3 good steps.
    return keras.optimizers.LossScaleOptimizer(sgd(**more), initial_scale=2.0**21, dynamic_growth_steps=3)


def ema(**more: Any) -> Any:
    return sgd(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=4, **more)


def adamw(**more: Any) -> Any:
    return keras.optimizers.AdamW(0.05, weight_decay=0.1, **more)


MODES = {
    # Keras fetches a batch while the step before is being made: neither waits for the other.
    "steps_per_execution=5": Mode({"steps_per_execution": 5}, absent=INPUT),
    "steps_per_execution=7, which does not divide": Mode({"steps_per_execution": 7}, absent=INPUT),
    "XLA": Mode({"jit_compile": True}, clipped=False, absent=frozenset({"time"})),
    "XLA, clipped": Mode({"jit_compile": True}, absent=frozenset({"time"})),
    "XLA, steps_per_execution=5": Mode({"jit_compile": True, "steps_per_execution": 5}, absent=TIMES | INPUT),
    "jit_compile=auto": Mode({"jit_compile": "auto"}),
    "eager": Mode({"run_eagerly": True}),
    # Matrix products in half precision are summed in another order in the graph than eagerly: a few units in the last
    # place of float16 (1e-3) and bfloat16 (8e-3).
    "float16": Mode(
        net=policy("mixed_float16"),
        optimizer=scaled_sgd,
        plain=sgd,
        by_hand=lambda: {"scale": Scale(2.0**21, 3)},
        clipped=False,
        rtol=2e-3,
    ),
    "float16, compiled by XLA": Mode(
        {"jit_compile": True},
        net=policy("mixed_float16"),
        optimizer=scaled_sgd,
        plain=sgd,
        by_hand=lambda: {"scale": Scale(2.0**21, 3)},
        rtol=2e-3,
        absent=frozenset({"time"}),
    ),
    "bfloat16": Mode(net=policy("mixed_bfloat16"), by_hand=lambda: {"in_graph": True}, rtol=1e-2),
    "gradient accumulation": Mode(
        optimizer=accumulating, plain=sgd, by_hand=lambda: {"accumulate": 3}, deep=[3, 6, 9]
    ),
    "eager gradient accumulation": Mode(
        {"run_eagerly": True},
        optimizer=accumulating,
        plain=sgd,
        by_hand=lambda: {"accumulate": 3},
        deep=[3, 6, 9],
    ),
    "moving average": Mode(optimizer=ema),
    "weight decay": Mode(optimizer=adamw),
    "class weights": Mode(
        fit={"class_weight": CLASS_WEIGHTS},
        batches=weighted_batches(np.array([CLASS_WEIGHTS[c] for c in Y], "float32")),
        by_hand=lambda: {"objective": weighted},
    ),
    "sample weights": Mode(
        fit={"sample_weight": WEIGHTS},
        batches=weighted_batches(WEIGHTS),
        by_hand=lambda: {"objective": weighted},
    ),
    "several inputs, outputs and losses": Mode(
        {"loss_weights": {"kind": 0.5, "size": 2.0}},
        net=many_outputs,
        data=many_data,
        batches=many_batches,
        by_hand=lambda: {"objective": many_outputs_loss},
        loss={"kind": trainings.loss(), "size": "mse"},
    ),
    "several losses, eager": Mode(
        {"loss_weights": {"kind": 0.5, "size": 2.0}, "run_eagerly": True},
        net=many_outputs,
        data=many_data,
        batches=many_batches,
        by_hand=lambda: {"objective": many_outputs_loss},
        loss={"kind": trainings.loss(), "size": "mse"},
    ),
    "regularized": Mode(net=regularized, by_hand=lambda: {"objective": regularized_loss}),
    "dataset": Mode(data=lambda: (dataset(),)),
    "infinite dataset": Mode(fit={"steps_per_epoch": STEPS}, data=lambda: (dataset().repeat(),)),
    "dataset of unknown size": Mode(data=lambda: (unknown_size(),)),
    "generator": Mode(data=lambda: (generator(),)),
    "PyDataset": Mode(data=lambda: (Sequence(),)),
    "subclassed": Mode(net=subclassed),
    "own train_step": Mode(
        net=own_train_step,
        by_hand=lambda: {"objective": lambda net, x, y: (3 * trainings.loss()(y, net(x, training=True)), {})},
    ),
    "frozen layer": Mode(net=frozen),
    # Keras clips by the norm of what a sparse gradient holds before rows that come twice are summed.
    "embedding": Mode(net=embedding, data=lambda: (TOKENS, Y), batches=token_batches, clipped=False),
    "embedding, compiled by XLA": Mode(
        {"jit_compile": True},
        net=embedding,
        data=lambda: (TOKENS, Y),
        batches=token_batches,
        clipped=False,
        absent=frozenset({"time"}),
    ),
    "constraint": Mode(net=constrained),
}


def clipping(mode: Mode) -> dict[str, Any]:
    return {"global_clipnorm": CLIP} if mode.clipped else {}


RARE = (
    "steps_per_execution=5", "XLA, clipped", "XLA, steps_per_execution=5", "jit_compile=auto",
    "float16, compiled by XLA", "eager gradient accumulation", "several losses, eager", "infinite dataset",
    "dataset of unknown size", "embedding, compiled by XLA", "sample weights", "generator", "moving average",
    "subclassed",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    thorough(
        MODES,
        RARE,
        usual=("steps_per_execution=7, which does not divide", "eager", "float16", "own train_step"),
    ),
)
def test_mode(watched: None, name: str) -> None:
    mode = MODES[name]
    net = mode.net()
    net.compile(mode.optimizer(**clipping(mode)), mode.loss, **mode.compile)
    data = mode.data()
    batch = {"batch_size": BATCH} if len(data) == 2 else {}
    begun = time.time()
    net.fit(*data, shuffle=False, verbose=0, **batch, **mode.fit)
    ended = time.time()
    reference = mode.net()
    plain, how = (mode.plain or mode.optimizer)(), mode.by_hand()
    if mode.clipped:
        how["clip"] = clip_global
    seen = by_hand(reference, plain, mode.batches(), lambda step: 0.05, **how)
    compare(last_run(), renamed(seen, reference, net), mode.clipped, deep=mode.deep, rtol=mode.rtol)
    compare_clocks(mlflow_tfmon.load_run(last_run()).steps, begun, ended, mode.absent)
    said = mlflow.get_run(last_run()).data.tags.get("tfmon.absent", "")
    assert said == ", ".join(f"batch/{name}" for name in sorted(mode.absent - {"time"}))


# -- other ways to train ----------------------------------------------------------------------------------------------
@pytest.mark.thorough
def test_layers_set_free_between_two_fits(watched: None) -> None:
    """The second fit goes on in step, with the variables of both; before, the frozen ones have no figures."""
    net, reference = frozen(), frozen()
    seen = []
    begun, ended = [], []
    with mlflow.start_run() as run:
        for phase in range(2):
            net.layers[0].trainable = phase == 1
            net.compile(sgd(global_clipnorm=CLIP), trainings.loss())
            time.sleep(0.5)  # what one does between fits is no step's time
            begun.append(time.time())
            net.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
            ended.append(time.time())
    for phase in range(2):
        reference.layers[0].trainable = net.layers[0].trainable = phase == 1
        found = by_hand(reference, sgd(), batches(), lambda step: 0.05, clip_global)
        seen.append(renamed(found, reference, net))
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert recorded.problems == []
    assert list(recorded.steps.index) == list(range(1, 2 * STEPS + 1))
    for phase in range(2):
        own = recorded.steps[phase * STEPS : (phase + 1) * STEPS]
        compare_clocks(own, begun[phase], ended[phase], ())
        layers = recorded.layers.set_index(["step", "variable"])
        for quantity in ("weight_norm", "update_ratio", "grad_zero_fraction"):
            for step in (1, DEEP, 2 * DEEP):
                for variable, value in getattr(seen[phase], quantity)[step - 1].items():
                    one = layers.loc[(phase * STEPS + step, variable), quantity]
                    np.testing.assert_allclose(one, value, rtol=2e-4, atol=1e-12)
    for figure in ("loss", "grad_norm", "grad_norm_clipped"):
        expected = [*getattr(seen[0], figure), *getattr(seen[1], figure)]
        np.testing.assert_allclose(recorded.steps[figure], expected, rtol=1e-5)
    kernels = [layer.kernel.path.replace("/", ".") for layer in net.layers]
    norms = recorded.layers.pivot(index="step", columns="variable", values="grad_norm")
    first, second = norms[:STEPS], norms[STEPS:]
    assert first[kernels[0]].isna().all()
    np.testing.assert_allclose(
        first[kernels[1]], [n[kernels[1]] for n in seen[0].variable_grad_norm], rtol=1e-5
    )
    for kernel in kernels:
        np.testing.assert_allclose(second[kernel], [n[kernel] for n in seen[1].variable_grad_norm], rtol=1e-5)


def test_a_variable_without_a_gradient(watched: None) -> None:
    """The others keep their own names and figures; it has none."""

    class Unused(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.unused = self.add_weight(shape=(5,), name="unused")
            self.out = keras.layers.Dense(CLASSES, name="out")

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.out(x)

    keras.utils.set_random_seed(1)
    net, reference = Unused(), keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    net(X[:1])
    reference.set_weights(net.out.get_weights())
    net.compile(scaled_sgd(global_clipnorm=CLIP), trainings.loss())
    begun = time.time()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        net.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    ended = time.time()
    scale = Scale(2.0**21, 3)
    seen = by_hand(reference, sgd(), batches(), lambda step: 0.05, clip_global, scale=scale)
    compare(last_run(), renamed(seen, reference, net.out), clipped=True)
    compare_clocks(mlflow_tfmon.load_run(last_run()).steps, begun, ended, ())


@pytest.mark.parametrize("before", [False, True], ids=["", "compiled before"])
def test_train_on_batch(watched: None, before: bool) -> None:
    net, reference = trainings.model(), trainings.model()
    net.compile(sgd(global_clipnorm=CLIP), trainings.loss())
    if before:
        net.optimizer.build(net.trainable_variables)
        state = [(v, v.numpy()) for v in (*net.variables, *net.optimizer.variables)]
        mlflow_tfmon.autolog(disable=True)
        net.train_on_batch(X[:BATCH], Y[:BATCH])
        mlflow_tfmon.autolog(deep_every=DEEP)
        for variable, value in state:
            variable.assign(value)
    begun = time.time()
    for x, y in batches():
        net.train_on_batch(x, y)
    mlflow_tfmon.end_run()
    run_id = mlflow.search_runs(output_format="list")[0].info.run_id
    ended = time.time()
    seen = by_hand(reference, sgd(), batches(), lambda step: 0.05, clip_global)
    compare(run_id, renamed(seen, reference, net), clipped=True)
    compare_clocks(mlflow_tfmon.load_run(run_id).steps, begun, ended, INPUT)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")])
def test_a_fit_that_is_broken_off(watched: None, error: type[BaseException], status: str) -> None:
    """What was trained by then is in the run, which ends as what happened."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 6:
                raise error("enough")

    net, reference = trainings.model(), trainings.model()
    net.compile(sgd(global_clipnorm=CLIP), trainings.loss())
    begun = time.time()
    with pytest.raises(error, match="enough"):
        net.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[Stop()])
    ended = time.time()
    run = mlflow.search_runs(output_format="list")[0]
    assert run.info.status == status
    seen = by_hand(reference, sgd(), itertools.islice(batches(), 7), lambda step: 0.05, clip_global)
    compare(run.info.run_id, renamed(seen, reference, net), clipped=True)
    compare_clocks(mlflow_tfmon.load_run(run.info.run_id).steps, begun, ended, ())


def test_a_step_left_out_by_loss_scaling(watched: None) -> None:
    """Its gradient norm is in no series, and where there is none, no figure is made up."""
    net = policy("mixed_float16")()
    net.compile(scaled_sgd(global_clipnorm=CLIP), trainings.loss())
    net.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    steps = mlflow_tfmon.load_run(last_run()).steps
    skipped = set(steps.index[steps.skipped == 1])
    assert 1 in skipped and skipped < set(steps.index)
    client = mlflow.MlflowClient()
    history = {
        name: client.get_metric_history(last_run(), name)
        for name in (
            "batch/loss",
            "batch/grad_norm",
            "batch/grad_norm_clipped",
            "batch/skipped",
            "batch/loss_scale",
        )
    }
    points = {name: {point.step: point.value for point in found} for name, found in history.items()}
    for name in ("batch/grad_norm", "batch/grad_norm_clipped"):
        assert set(points[name]) == set(steps.index) - skipped
    for name in ("batch/loss", "batch/skipped", "batch/loss_scale"):
        assert set(points[name]) == set(steps.index)
    assert {step for step, value in points["batch/skipped"].items() if value} == skipped
    metrics = client.get_run(last_run()).data.metrics
    assert "nonfinite/batch/grad_norm" in metrics and "nonfinite/batch/grad_norm_clipped" not in metrics
    assert "batch/applied" not in metrics
