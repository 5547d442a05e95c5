"""Actions on a problem at the end of an epoch: `fit` is stopped or rescued, a loop is asked to stop."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_tfmon import cluster
from mlflow_tfmon.checkpoints.best import Best, directions_of
from mlflow_tfmon.detectors import History, Problem
from mlflow_tfmon.detectors.learning import LITTLE
from mlflow_tfmon.detectors.updates import bursts, lower_rate, rounded, usual_norm
from mlflow_tfmon.errors import logger, say_once
from mlflow_tfmon.stream import records
from mlflow_tfmon.tags import PREFIX, RESCUES_TAG, STOPPED_TAG

if TYPE_CHECKING:
    from mlflow_tfmon.watching.monitor import Monitor

_SURE = 0.8  # the confidence from which on something is done
_RESCUABLE = frozenset({"nan_or_inf", "exploding_gradient", "learning_rate_too_high"})
_MOST_RESCUES = 3
_LATEST = 3  # epochs whose weights are kept
_SLOWER = 0.1  # of the learning rate is left, or less if the steps measured say so
_ABOVE = 2.0  # times the usual gradient norm: to that gradients are clipped
_CLIP = 1.0  # where it is unknown, or out of all bounds


@dataclass(frozen=True, eq=False)
class _State:
    """A model's weights and its optimizer's state.

    Attributes:
        weights: of the model.
        optimizer: variables of the optimizer.
        step: after which they were so.
        when: the same in words.
    """

    weights: list[np.ndarray] = field(repr=False)
    optimizer: list[np.ndarray] = field(repr=False)
    step: int = 0
    when: str = "the start"

    @classmethod
    def of(cls, model: Any, step: int = 0, when: str = "the start") -> _State:
        # NumPy itself cannot copy Keras 2's counter of steps within a strategy's scope (TF 2.21).
        state = [np.array(tf.convert_to_tensor(one)) for one in _variables(model.optimizer)]
        return cls(model.get_weights(), state, step, when)

    def restore(self, model: Any) -> None:
        """Puts the weights back; the optimizer's state is begun anew where it had none then."""
        model.set_weights(self.weights)
        variables = _variables(model.optimizer)
        rate = getattr(model.optimizer, "_learning_rate", None)
        for at, variable in enumerate(variables):
            if variable is not rate:
                value = self.optimizer[at] if at < len(self.optimizer) else np.zeros(variable.shape)
                variable.assign(value)


class Actions:
    """Actions on the problems of one fit (or loop), on the training thread.

    Weights are copied at the start and at the epoch that is the best so far. For a rescue those of the last three
    epochs without a problem are kept as well, since a problem may be found only epochs after it began. So this costs
    memory for two copies of them, or five.

    Args:
        monitor: that watches the fit.
        model: that is trained.
        stops: whether a problem stops the fit; else it is rescued, three times at most, and then stopped.
    """

    def __init__(self, monitor: Monitor, model: Any, stops: bool) -> None:
        self._monitor = monitor
        self._model = model
        self._stops = stops
        self._stopped = False
        self._best = Best(monitor.settings)
        self._best_state: _State | None = None
        self._start = (_built(model, monitor) and _State.of(model)) or None
        self._latest: deque[_State] = deque(maxlen=_LATEST)
        self._rescues: list[str] = []

    @classmethod
    def of(cls, monitor: Monitor, model: Any) -> Actions | None:
        """What acts on the problems of a fit, if the settings want anything done."""
        wanted = monitor.settings.on_problem
        if not may_act(monitor):
            return None
        return cls(monitor, model, wanted == "stop") if wanted in ("stop", "rescue") else None

    @classmethod
    def of_loop(cls, monitor: Monitor) -> Actions | None:
        """What puts a loop's best weights back when it is to stop; the loop itself asks `Monitor.should_stop`."""
        if monitor.watch is None or monitor.model is None or monitor.settings.on_problem != "stop":
            return None
        if not may_act(monitor):
            return None
        return cls(monitor, monitor.model, True)

    def epoch_ended(self, metrics: Mapping[str, float]) -> None:
        """Examines the problems found so far, and acts on them."""
        watch = self._monitor.watch
        if watch is None:
            return
        watch.look(urgent=True)
        # Where a rescue is wanted, only what it can help with counts.
        kinds = None if self._stops else _RESCUABLE
        problem = next((one for one in sure(self._monitor) if kinds is None or one.kind in kinds), None)
        if problem is None:
            best = self._best.consider(self._monitor.last_epoch, metrics, directions_of(self._model))
            good = watch.learned(self._monitor.prefix) >= LITTLE
            now = self._monitor.last_epoch
            if best and (self._stops or good):
                self._best_state = _State.of(self._model, self._monitor.steps, f"epoch {now}")
                self._latest.clear()
            elif not self._stops:
                self._latest.append(_State.of(self._model, self._monitor.steps, f"epoch {now}"))
        elif self._stops or len(self._rescues) >= _MOST_RESCUES:
            self._stop(problem)
        else:
            self._rescue(problem)
            watch.restart(self._monitor.prefix)

    def _stop(self, problem: Problem) -> None:
        if self._stopped:  # a loop that continues nevertheless
            return
        self._stopped = self._model.stop_training = True
        restored = ""
        if self._best_state is not None:
            self._model.set_weights(self._best_state.weights)
            restored = f"; restored the weights of the best epoch, {self._best.epoch}"
        self._say(STOPPED_TAG, f"{problem.kind} at step {problem.said_at}{restored}")

    def _rescue(self, problem: Problem) -> None:
        # The best epoch had learned something; of another it counts that the cause came later.
        latest = [one for one in self._latest if one.step < problem.first_step]
        states = [one for one in (self._start, self._best_state, *latest) if one is not None]
        optimizer = getattr(self._model.optimizer, "inner_optimizer", self._model.optimizer)
        if not states or optimizer is None:  # optimizers that only the model's own `train_step` knows
            self._stop(problem)
            return
        state = max(states, key=lambda one: one.step)
        self._latest.clear()
        state.restore(self._model)
        history = self._history()
        before = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        lower, _ = lower_rate(history)
        slower = min(_SLOWER, lower / before) if lower > 0 and before > 0 else _SLOWER
        _slow_down(optimizer, slower)
        clipped, norm = "", usual_norm(history, problem.first_step)
        clip = rounded(_ABOVE * norm) if norm > 0 and not bursts(history) else _CLIP
        if all(
            getattr(optimizer, name, None) is None for name in ("clipnorm", "clipvalue", "global_clipnorm")
        ):
            optimizer.global_clipnorm = clip
            clipped = f", gradients clipped to a norm of {clip:g}"
        self._model.make_train_function(force=True)
        self._rescues.append(
            f"{problem.kind} at step {problem.said_at}: back to {state.when}, learning rate {before:.3g} -> "
            f"{before * slower:.3g}{clipped}"
        )
        self._say(RESCUES_TAG, "; ".join(self._rescues))

    def _history(self) -> History:
        watch = self._monitor.watch
        return History() if watch is None else watch.history(self._monitor.prefix)

    def _say(self, tag: str, text: str) -> None:
        logger.warning("mlflow_tfmon: %s: %s", tag.removeprefix(PREFIX), text)
        self._monitor.record(records.Facts(tags={tag: text}, time=time.time()))


def may_act(monitor: Monitor) -> bool:
    """Whether a problem may have consequences: among several workers the others would wait for one that stops."""
    place, wanted = cluster.place(), monitor.settings.on_problem
    if place is None or place.count == 1 or wanted not in ("stop", "rescue"):
        return True
    if place.index == 0:
        say_once(
            "several workers",
            f"mlflow_tfmon: on_problem={wanted!r} only reports problems when several workers train: "
            "they must stop together; use EarlyStopping or the like, which all of them see.",
        )
    return False


def sure(monitor: Monitor) -> list[Problem]:
    """Returns the problems to act on: current critical ones of this training with at least 80% confidence.

    Withdrawn problems do not count, nor do earlier ones in the run, of this model or another.
    """
    found = monitor.watch.found if monitor.watch is not None else {}
    monitor.known &= found.keys()
    own = {key: one for key, one in found.items() if key[0] in monitor.prefixes and key not in monitor.known}
    return [one for one in own.values() if one.severity == "critical" and one.confidence >= _SURE]


def say_what_loops_lack(wanted: Any, can_ask: bool) -> None:
    """Logs once what `on_problem` cannot do in a custom loop."""
    if wanted == "rescue":
        say_once(
            "rescue in a loop",
            'mlflow_tfmon: on_problem="rescue" acts only in fit; in a custom loop problems are reported, and '
            'on_problem="stop" sets Monitor.should_stop.',
        )
    elif wanted == "stop" and not can_ask:
        say_once(
            "stop in a loop",
            'mlflow_tfmon: on_problem="stop" ends fit; a custom loop must check for itself: use '
            "`with mlflow_tfmon.Monitor(model) as monitor:` and `if monitor.should_stop: break`.",
        )


def _built(model: Any, monitor: Monitor) -> bool:
    """Whether the model has weights; one that is built by its first batch is built now, from the shape of the data."""
    shape = getattr(getattr(monitor.premises.arguments, "x", None), "shape", None)
    if not model.built and shape is not None:
        with contextlib.suppress(Exception):  # a model that only its own call can build
            model.build((None, *shape[1:]))
    return bool(model.built)


def _slow_down(optimizer: Any, factor: float) -> None:
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) or (
        callable(rate) and not hasattr(rate, "assign")
    ):
        optimizer._learning_rate = _Slower(rate, factor)
    else:
        rate.assign(rate * factor)


class _Slower(keras.optimizers.schedules.LearningRateSchedule):
    """A part of a schedule's learning rate."""

    def __init__(self, schedule: Any, factor: float) -> None:
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        rate = (
            self.schedule(step)
            if isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)
            else self.schedule()
        )
        return rate * self.factor

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "factor": self.factor}


def _variables(optimizer: Any) -> list[Any]:
    variables = getattr(optimizer, "variables", ())
    return list(variables() if callable(variables) else variables)
