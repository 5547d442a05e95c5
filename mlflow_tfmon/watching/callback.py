"""MonitorCallback: notifies a Monitor of the epochs and the end of a fit."""

from __future__ import annotations

import sys
import time
from typing import Any

from mlflow_tfmon import kerases
from mlflow_tfmon.checkpoints.state import Callbacks
from mlflow_tfmon.errors import contained
from mlflow_tfmon.facts import fit_frames, model_order
from mlflow_tfmon.facts.metrics import early_stopping_facts, epoch_metrics
from mlflow_tfmon.facts.rates import Rate
from mlflow_tfmon.probes import compiled, inputs
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream.records import Facts, Paused
from mlflow_tfmon.tags import RANGE_TEST_TAG
from mlflow_tfmon.watching import resuming
from mlflow_tfmon.watching.actions import Actions
from mlflow_tfmon.watching.both_kerases import BothKerases
from mlflow_tfmon.watching.monitor import Monitor
from mlflow_tfmon.watching.pipeline import DRAIN
from mlflow_tfmon.watching.range_test import LearningRateRangeTest

_NOT_RECORDED = "this training's epochs are not recorded"


class MonitorCallback(BothKerases):
    """Keras callback that monitors one `model.fit`; with autologging on, it applies its own settings to that fit.

    Keras does not notify callbacks of an exception that ends `fit`. With autologging on, the run ends nevertheless;
    without it, the run ends with the next fit or the script, unless the callback gets a monitor:

        with mlflow_tfmon.Monitor(model) as monitor:
            model.fit(x, y, callbacks=[mlflow_tfmon.MonitorCallback(monitor)])

    Without autologging, put it before the callbacks that need `epoch_metrics` in their logs.

    Args:
        started: a running `Monitor` (positional only). By default one is created for each fit.
        run_id: MLflow run for the fit, if a monitor is created. Default: the active run, else a new one.
        **settings: any of `mlflow_tfmon.settings.Settings`, for the created monitor.

    Raises:
        SettingError: for an unknown setting or an invalid value.

    Example:
        ```python
        model.fit(x, y, callbacks=[mlflow_tfmon.MonitorCallback(monitor="val_accuracy")])
        ```
    """

    def __init__(
        self, started: Monitor | None = None, /, *, run_id: str | None = None, **settings: Any
    ) -> None:
        super().__init__()
        checked = Settings.make(
            **settings
        )  # so that an invalid setting is reported here, not in the middle of fit
        self.heed(checked)
        resuming.prepare(checked.resume)
        self.run_id = run_id
        self.settings = settings
        self.given = started  # whose end is not this callback's
        self._monitor: Monitor | None = None
        self._completed: dict[str, Any] | None = None
        self._batches = self._batches_of_epoch = 0
        self._rate: Rate | None = None
        self._actions: Actions | None = None
        self._resumed = False
        self._followed = False  # whether a `_Last` does the work that follows the other callbacks

    def heed(self, settings: Settings) -> None:
        """Subscribes to batches only if checkpoints are made every so many steps, since that costs time."""
        every = settings.checkpoint_save_freq
        self._every = every if isinstance(every, int) else 0
        if self._every:
            self.on_train_batch_end = self._batch_ended

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the monitor and rebuilds the train function if it was traced without monitoring."""
        if self.given is None:
            with contained("starting the monitor", "this training is not recorded"):
                if self._monitor is not None:  # an exception ended the previous fit
                    self._monitor.end("FAILED")
                settings = Settings.make(**self.settings)
                self._monitor = Monitor.with_settings(self.model, settings, self.run_id)
                self._monitor.total_steps = _total_steps(self.params)
                self._monitor.start(in_fit=True)
        else:
            self._monitor = self.given
            self._monitor.new_fit()
        with contained("taking the steps before a fit", "their input wait may be missing"):
            DRAIN.flush()  # with the batches that they had
        with contained("beginning with the fit's own batches", "its first step may seem to have had another"):
            inputs.forget()
        self._followed = not self._is_last() and fit_frames.append(_Last(self), self.model)
        if not self._followed:
            self.fit_begins()

    def _is_last(self) -> bool:
        """Whether only Keras's own callbacks come after this one."""
        found = fit_frames.callbacks()
        at = next((at for at, one in enumerate(found) if one is self), len(found))
        own = (*kerases.every("callbacks.History"), *kerases.every("callbacks.ProgbarLogger"))
        return all(isinstance(one, own) for one in found[at + 1 :])

    def fit_begins(self) -> None:
        """Restores a checkpoint to resume, if any, and examines the fit, once the other callbacks have begun."""
        if self._monitor is None:
            return
        with contained("reading the callbacks", "their state is not part of the checkpoints"):
            others = [one for one in fit_frames.callbacks() if not isinstance(one, (MonitorCallback, _Last))]
            self._monitor.callbacks = Callbacks(others)
        self._resumed = self._monitor.restore_fit(self.model)
        with contained("reading the learning rate", "its changes are not recorded"):
            self._rate = Rate(self.model.optimizer)
        self._monitor.tell_premises()
        with contained("reading the result of a range test", "no advice is made of it"):
            for one in fit_frames.callbacks():
                if isinstance(one, LearningRateRangeTest) and one.rates:
                    self._monitor.tell_more(suggested_rate=one.suggested or float("nan"))
                    told = Facts(tags={RANGE_TEST_TAG: one.text()}, time=time.time())
                    self._monitor.record(told, Paused(*one.between))
        self._monitor.mark_seam()
        with contained("rebuilding the train function", "no step of this training is recorded"):
            compiled.watch(self.model)
        with contained("preparing for problems", "they only cause a warning"):
            self._actions = Actions.of(self._monitor, self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the pause before the epoch."""
        self._batches_of_epoch = 0
        self._forget_epoch()
        if self._monitor is not None:
            self._monitor.epochs_begin(epoch)
            self._monitor.paused(None)

    def _forget_epoch(self) -> None:
        if self._resumed:  # fit has read its first epoch; the next fit starts from scratch
            self._resumed, self.model._initial_epoch = False, None

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Notes that validation has begun."""
        if self._monitor is not None:
            self._monitor.paused(time.time())

    def _batch_ended(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        done, self._batches = self._batches, self._batches + max(1, batch + 1 - self._batches_of_epoch)
        self._batches_of_epoch = batch + 1
        if self._monitor is not None and self._every and done // self._every < self._batches // self._every:
            self._monitor.step_ended(epoch_metrics(logs))

    def complete(self, logs: dict[str, Any] | None) -> None:
        """Adds `epoch_metrics` to an epoch's logs, once: Keras gives all callbacks the same dictionary."""
        if self._monitor is not None and logs is not None and logs is not self._completed:
            self._completed = logs
            logs.update(self._monitor.measured())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the epoch's metrics."""
        self.complete(logs)
        if not self._followed:
            self.epoch_is_over(epoch, logs)

    def epoch_is_over(self, epoch: int, logs: dict[str, Any] | None) -> None:
        """Records an epoch and its results, once the other callbacks have run."""
        if self._monitor is not None:
            with contained("the epoch callback", _NOT_RECORDED):
                twins = self._monitor.settings.mlflow_names
                self._monitor.epoch_ended(epoch, epoch_metrics(logs, mlflow_names=twins))
                monitor, rate = self._monitor, self._rate
                change = rate and rate.change(monitor.last_epoch, monitor.prefix, time.time())
                if change:
                    monitor.record(change)
                self._monitor.paused(time.time())
            if self._actions is not None:
                with contained("acting on a problem", "training continues as it is"):
                    self._actions.epoch_ended(epoch_metrics(logs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Ends the monitor that was created for this fit."""
        self._forget_epoch()
        model_order.fit_ended(self.model)
        monitor, self._monitor = self._monitor, None
        if monitor is None:
            return
        with contained("reading the state of EarlyStopping", "it is not recorded"):
            facts = early_stopping_facts(fit_frames.callbacks(), monitor.epoch_offset, time.time())
            if facts.metrics:
                monitor.record(facts)
        if monitor is not self.given:
            monitor.end()
        elif monitor.pipeline is not None:
            monitor.pipeline.stall.paused = False  # what follows the fit may be a loop


class _Last(BothKerases):
    """Callback that runs after all others of a fit, for the work that must follow theirs.

    A checkpoint contains their state, and their changes (such as `ReduceLROnPlateau`'s of the learning rate).

    Args:
        callback: the callback whose work it does, and which runs before others.
    """

    def __init__(self, callback: MonitorCallback) -> None:
        super().__init__()
        self._callback = callback

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restores a checkpoint, if there is one to resume."""
        self._callback.fit_begins()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the epoch."""
        self._callback.epoch_is_over(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Removes itself."""
        fit_frames.drop(self)


class CompleteLogs(BothKerases):
    """Callback that adds `epoch_metrics` to the logs before the user's callbacks see them.

    Args:
        callback: the callback that computes them.
    """

    def __init__(self, callback: MonitorCallback) -> None:
        super().__init__()
        self._callback = callback

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds them."""
        self._callback.complete(logs)


class PassOver(BothKerases):
    """Callback for a fit that was finished before the interruption: it runs no epochs."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes fit begin after its last epoch, with its dataset in the corresponding state."""
        fit_frames.pass_epochs(int((self.params or {}).get("epochs") or 0) - fit_frames.first_epoch())
        self.model._initial_epoch = sys.maxsize

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the model ready for another fit."""
        self.model._initial_epoch = None
        model_order.fit_ended(self.model)


def _total_steps(params: dict[str, Any] | None) -> int | None:
    epochs, steps = (params or {}).get("epochs"), (params or {}).get("steps")
    return int(epochs) * int(steps) if epochs and steps else None
