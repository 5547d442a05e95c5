"""LearningRateRangeTest: a callback that finds a learning rate before the first epoch of a fit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon.errors import SettingError, contained, logger
from mlflow_tfmon.facts import fit_frames
from mlflow_tfmon.probes import graph, inputs
from mlflow_tfmon.watching.both_kerases import BothKerases

_FIRST = 10  # steps whose losses show the level from which it starts, and how batches differ
_RISEN = 2.0  # times the first losses: from there on the loss has diverged
_SPREADS = (
    5.0  # standard deviations of the first losses by which it must have risen or, of a mean of them, fallen
)
_NONE = "no learning rate is suggested"


class LearningRateRangeTest(BothKerases):
    """Keras callback that finds a learning rate before the first epoch of a `fit` (Smith, 2017).

    It makes steps on the fit's own data with a learning rate that grows exponentially, until the loss diverges. Then
    it puts back weights, the optimizer's state, learning rate, metrics and the random state of layers, bit for bit, and
    the fit begins; `fit(..., epochs=0)` is the test alone. Its steps are no part of the recorded training. The result
    is in a log line, in the run's tag `tfmon.range_test`, and in the advice on learning rates.

    The data must be arrays or a `tf.data.Dataset`; a dataset that is shuffled anew for each epoch may give the examples
    in another order afterwards. Several replicas are not supported.

    Args:
        lowest: the first learning rate.
        highest: the last learning rate.
        steps: how many steps to make from one to the other.

    Attributes:
        rates: the learning rate of each step that was made.
        losses: the loss of each step's batch.
        steepest: the rate at which the loss fell fastest; None if it did not fall.
        diverged: the rate from which on the loss diverged; None if it did not.
        suggested: the lower of `steepest` and a tenth of `diverged`; None if nothing was found.

    Raises:
        SettingError: rates that are not in order, or fewer than 20 steps.

    Example:
        ```python
        test = mlflow_tfmon.LearningRateRangeTest()
        model.fit(x, y, epochs=0, callbacks=[test])
        model.optimizer.learning_rate = test.suggested
        ```
    """

    def __init__(self, lowest: float = 1e-7, highest: float = 10.0, steps: int = 100) -> None:
        super().__init__()
        if not 0 < lowest < highest < float("inf"):
            raise SettingError(f"lowest={lowest!r}, highest={highest!r}: needs 0 < lowest < highest.")
        if not isinstance(steps, int) or steps < 2 * _FIRST:
            raise SettingError(f"steps={steps!r}: needs a whole number, at least {2 * _FIRST}.")
        self._planned = np.geomspace(lowest, highest, steps)
        self._forget()

    def _forget(self) -> None:
        self.between = (0.0, 0.0)  # Unix time, seconds
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.steepest: float | None = None
        self.diverged: float | None = None
        self.suggested: float | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the test."""
        self._forget()
        begun = time.time()
        with contained("the learning-rate range test", _NONE), graph.unrecorded():
            batches, why = _batches(self.model)
            if why:
                logger.warning("mlflow_tfmon: LearningRateRangeTest: %s: %s.", why, _NONE)
                return
            state = _State(self.model)
            try:
                self._climb(state, batches)
            finally:
                state.put_back()
                inputs.forget()  # the batches that it took are of no recorded step
            self._conclude()
            logger.info("mlflow_tfmon: learning-rate range test: %s.", self.text())
        self.between = begun, time.time()

    def _climb(self, state: _State, batches: Iterator[Any]) -> None:
        step = _step_of(self.model)
        for rate, batch in zip(self._planned, batches, strict=False):
            state.rate.assign(rate)
            self.rates.append(float(rate))
            self.losses.append(step(batch))
            if _has_diverged(self.losses):
                return

    def _conclude(self) -> None:
        rates, losses = np.array(self.rates), np.array(self.losses)
        if len(losses) and _has_diverged(self.losses):
            high = ~(losses <= _limit(losses))  # NaN too
            began = int(np.flatnonzero(high[-3:])[0]) + max(0, len(losses) - 3)
            self.diverged = float(rates[began])
            rates, losses = rates[:began], losses[:began]
        self.steepest = _steepest(rates, losses, len(self._planned) // 10)
        found = [self.steepest, None if self.diverged is None else self.diverged / 10]
        self.suggested = min((float(f"{one:.1e}") for one in found if one is not None), default=None)

    def text(self) -> str:
        """Returns the result in words."""
        if not self.rates:
            return "suggests no learning rate: there are no data"
        tried = f"{len(self.rates)} steps with rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        fell = f"fell fastest at {self.steepest:.2g}" if self.steepest else "did not fall"
        rose = f"diverged from {self.diverged:.2g} on" if self.diverged else "did not diverge"
        what = "no learning rate" if self.suggested is None else f"{self.suggested:.2g}"
        return f"suggests {what}: the loss {fell} and {rose} ({tried})"


class _State:
    """All that a training step changes in a model, while its optimizer has a learning rate that can be set.

    Attributes:
        rate: the learning rate.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self._kept = [(one, np.array(tf.convert_to_tensor(one))) for one in self._variables()]
        self._rate = self._optimizer._learning_rate
        self.rate = self._rate
        if not hasattr(self._rate, "assign"):  # a schedule
            self.rate = tf.Variable(0.0)
            self._optimizer._learning_rate = self.rate

    def _variables(self) -> list[Any]:
        """Each once: weights, random states of layers, the optimizer's state, and that of metrics."""
        optimizers = (self._model.optimizer, self._optimizer)
        given = [one.variables() if callable(one.variables) else one.variables for one in optimizers]
        metrics = [metric.variables for metric in self._model.metrics]
        every = itertools.chain(self._model.variables, *given, *metrics)
        return list({id(graph.raw(one)): graph.raw(one) for one in every}.values())

    def put_back(self) -> None:
        """Puts all back; what did not exist before is empty again."""
        self._optimizer._learning_rate = self._rate
        self._model.reset_metrics()
        for variable, value in self._kept:
            variable.assign(value)


def _batches(model: Any) -> tuple[Iterator[Any], str]:
    """The batches of the fit that is calling, over and over; or why there are none."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not hasattr(optimizer, "_learning_rate"):
        return iter(()), "the model has no optimizer whose learning rate can be set"
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return iter(()), "several replicas are not supported"
    data = fit_frames.dataset()
    if data is None:
        return iter(()), "the data are neither arrays nor a tf.data.Dataset"
    fit_frames.build(model)
    if not model.built:
        return iter(
            ()
        ), "the model is built by its first step"  # weights that are not there cannot be put back
    if not getattr(model.optimizer, "built", True):
        model.optimizer.build(model.trainable_variables)
    return _over_and_over(data), ""


def _over_and_over(data: Iterable[Any]) -> Iterator[Any]:
    batch = None
    while True:
        for batch in data:
            yield batch
        if batch is None:
            return


def _step_of(model: Any) -> Callable[[Any], float]:
    """Makes a step of the model's own training on a batch, and returns that batch's loss."""
    train: Callable[[Any], Any] = model.train_step
    if not model.run_eagerly:
        train = tf.function(model.train_step, autograph=False, reduce_retracing=True)  # as Keras does

    def step(batch: Any) -> float:
        model.reset_metrics()  # else the loss is the mean since the first step
        return float(train(batch)["loss"])

    return step


def _limit(losses: Any) -> float:
    """The loss above which it has diverged, by the first losses."""
    first = np.array(losses[:_FIRST])
    return float(first.mean() + max((_RISEN - 1) * abs(first.mean()), _SPREADS * first.std()))


def _has_diverged(losses: list[float]) -> bool:
    """Whether the last loss is not finite, or most of the last three are too high."""
    if not np.isfinite(losses[-1]):
        return True
    return len(losses) >= _FIRST + 3 and bool(np.median(losses[-3:]) > _limit(losses))


def _steepest(rates: np.ndarray, losses: np.ndarray, width: int) -> float | None:
    """The rate at which the loss, averaged over `width` steps, fell fastest; None if it fell by no more than noise."""
    if len(losses) < _FIRST + width:
        return None
    level = np.convolve(losses, np.ones(width) / width, "valid")
    middle = rates[(width - 1) // 2 :][: len(level)]
    lowest = int(level.argmin())
    noise = _SPREADS * losses[:_FIRST].std() / np.sqrt(width)
    if lowest < 2 or not losses[:_FIRST].mean() - level[lowest] > noise:
        return None
    return float(middle[np.gradient(level, np.log(middle))[: lowest + 1].argmin()])
