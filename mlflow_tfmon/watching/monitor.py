"""Monitor: one monitored training as its loop or fit sees it: metrics, epochs, candidates for checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from mlflow_tfmon.checkpoints import moments
from mlflow_tfmon.checkpoints.moments import Moment
from mlflow_tfmon.checkpoints.state import Callbacks
from mlflow_tfmon.errors import SettingError, contained, logger
from mlflow_tfmon.facts import order, underway
from mlflow_tfmon.facts.arguments import FitArguments
from mlflow_tfmon.probes import histograms
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.tags import REGISTERED
from mlflow_tfmon.watching import actions, claims, resuming
from mlflow_tfmon.watching.actions import Actions
from mlflow_tfmon.watching.complaints import plain_epoch, plain_numbers
from mlflow_tfmon.watching.epoch_metrics import measured
from mlflow_tfmon.watching.pauses import Pauses
from mlflow_tfmon.watching.pipeline import DRAIN
from mlflow_tfmon.watching.training import Training


class Monitor(Training):
    """Monitor of one training: its steps, its epochs, and its facts.

    Records every optimizer step while it is on, also within a `tf.function`, provided that the function is traced
    (called for the first time) after the monitor was started or autologging enabled.

    Args:
        model: the trained Keras model. Without it, everything that this thread trains is recorded.
        optimizer: one or several Keras optimizers of a custom loop with which the model is not compiled: their state is
            saved in checkpoints and restored with `resume`.
        run_id: MLflow run for the training. Default: the active run, else a new one.
        total_steps: planned number of optimizer steps, so that the progress bar shows the time left.
        **settings: any of `mlflow_tfmon.settings.Settings`, such as `monitor="val_accuracy"`.

    Raises:
        SettingError: for an unknown setting or an invalid value.

    Example:
        ```python
        with mlflow_tfmon.Monitor(model, monitor="val_loss") as monitor:
            for epoch in range(epochs):
                for x, y in train_ds:
                    train_step(x, y)
                monitor.log_epoch(epoch, {"val_loss": validate(model)})
        ```
    """

    def __init__(
        self,
        model: Any = None,
        *,
        optimizer: Any = None,
        run_id: str | None = None,
        total_steps: int | None = None,
        **settings: Any,
    ) -> None:
        if model is not None and not hasattr(model, "trainable_variables"):
            raise SettingError(f"model={model!r}: model must be a Keras model, or None for any model.")
        checked = Settings.make(**settings)
        if settings.get("resume") and (model is None or run_id):
            raise SettingError("resume: needs the model and replaces run_id: use Monitor(model, resume=...).")
        if model is not None and not run_id:
            resuming.prepare(checked.resume)
        self._make(model, checked, run_id, [] if optimizer is None else list(tf.nest.flatten(optimizer)))
        self.total_steps = total_steps

    def _make(self, model: Any, settings: Settings, run_id: str | None, optimizers: list[Any]) -> None:
        super().__init__(model, settings, run_id, optimizers)
        self.callbacks: Callbacks | None = None  # of the monitored fit
        self.arguments: FitArguments | None = None  # of the monitored fit
        self.datasets: dict[str, tuple[str, str]] = {}  # of the monitored fit, as in `ModelSaved`
        self._pauses = Pauses()
        self._actions: Actions | None = None  # of a loop
        self.last_epoch = 0
        self.last_metrics: dict[str, float] = {}
        self._ended = (0, 0)  # the last epoch of a loop, and the number of steps by its end

    @classmethod
    def with_settings(cls, model: Any, settings: Settings, run_id: str | None = None) -> Monitor:
        """Returns a monitor with validated settings."""
        monitor = cls.__new__(cls)
        monitor._make(model, settings, run_id, [])
        return monitor

    def __enter__(self) -> Monitor:
        actions.say_what_loops_lack(self.settings.on_problem, can_ask=True)
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.end()
        else:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.end(status, f"{type(error).__name__}: {error}")

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """As `Training.end`."""
        if status == "FINISHED" and self._pipeline is not None:
            with contained("looking for a best model", "the run does not show that none is registered"):
                self._tell_registered()
        super().end(status, reason)

    def _tell_registered(self) -> None:
        """Records in the run, at the end of a loop, if no requested version was registered."""
        name = self.settings.registered_model_name
        if name and self.arguments is None and not self.has_best:
            why = "there is no best model that MLflow can load"
            logger.warning(
                "mlflow_tfmon: registered_model_name=%r: nothing is registered, since %s.", name, why
            )
            self.record(records.Facts(tags={REGISTERED: f"{name} gets no version: {why}"}, time=time.time()))

    # -- calls of the user -----------------------------------------------------------------------------------------
    def log(self, **values: float) -> None:
        """Records your own metrics at the current step, as `batch/<name>`.

        Args:
            **values: numbers, or tensors of one number (reading one waits for the device).

        Raises:
            SettingError: a value is not a number.

        Example:
            ```python
            monitor.log(temperature=0.7)
            ```
        """
        numbers = plain_numbers(values, "log")
        if self._pipeline is not None:
            with contained("Monitor.log", "these values are not recorded"):
                self._pipeline.drain()
                self._pipeline.recording.logged(numbers, self._keys())
                if isinstance(self.settings.checkpoint_save_freq, int):
                    self._consider(self._pipeline.recording.epochs_done(self.prefix), numbers, within=True)

    def step_ended(self, metrics: Mapping[str, float]) -> None:
        """Makes a checkpoint within an epoch, if one is due, with the metrics so far."""
        if self._pipeline is not None:
            with contained("a checkpoint within an epoch", "the model at this step is not kept"):
                self._pipeline.drain()
                self._consider(self._pipeline.recording.epochs_done(self.prefix), metrics, within=True)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float] | None = None) -> dict[str, float]:
        """Records the metrics of an epoch, given ones and `epoch_metrics`, and the best of `monitor` so far.

        If a loop restarts its epochs (for example after a reset of the model), the run's count continues, as for a
        further fit; metrics given again for the last epoch are added to it.

        Args:
            epoch: number of the epoch in this training, from 0.
            metrics: numbers by name, such as `{"val_loss": 0.3}`.

        Returns:
            The recorded metrics.

        Raises:
            SettingError: `epoch` is not a whole number from 0, or a metric is not a number.
        """
        epoch, numbers = plain_epoch(epoch), plain_numbers(metrics or {}, "log_epoch")
        numbers |= self.measured()
        with contained("counting epochs", "epochs that restart replace the earlier ones"):
            self._count_epoch(epoch)
        self.epoch_ended(epoch, numbers)
        with contained("acting on a problem", "training continues as it is"):
            self._actions = self._actions or Actions.of_loop(self)
            if self._actions is not None:
                self._actions.epoch_ended(numbers)
        return numbers

    def _count_epoch(self, epoch: int) -> None:
        """Makes an epoch that a loop restarts follow on those before it."""
        if self._pipeline is None:
            return
        self._pipeline.drain()
        self.place_epochs(epoch)
        last, then = self._ended
        steps = self._pipeline.recording.steps_of(self._keys())
        if self.epoch_offset + epoch < last and steps > then:  # else it is recorded late
            self._epoch_offset = last + 1 - epoch
            self.record(*self._pipeline.recording.seam(self._keys(), then))
        self._ended = max(self._ended, (self.epoch_offset + epoch, steps))

    @property
    def should_stop(self) -> bool:
        """Whether a loop with `on_problem="stop"` should end: a critical problem is at least 80% certain.

        May be read at each step. `log_epoch` restores the best epoch's weights.

        Example:
            ```python
            monitor.log_epoch(epoch, {"val_loss": validate(model)})
            if monitor.should_stop:
                break
            ```
        """
        return self.settings.on_problem == "stop" and bool(actions.sure(self)) and actions.may_act(self)

    def measured(self) -> dict[str, float]:
        """Returns the `epoch_metrics` of the model now, on every worker, while the training pauses."""
        self.paused(time.time())
        return measured(self.model, self.settings)

    def epoch_ended(self, epoch: int, numbers: dict[str, float]) -> None:
        """Takes all metrics of an epoch."""
        if self._pipeline is None:
            return
        with contained("Monitor.log_epoch", "this epoch's metrics are not recorded"):
            self._pipeline.drain()
            self.place_epochs(epoch)
            number = self.epoch_offset + epoch
            recording = self._pipeline.recording
            recording.epoch_ended(number, numbers, self._keys(), self.prefix)
            self.last_epoch, self.last_metrics = number, numbers
            steps = recording.steps_of(self._keys())
            histograms.epoch_ended(recording, self._rings, number, DRAIN.before_next_rows)
            activations = self._pipeline.activations_of(self.model)
            recording.append(*activations.look(number, steps, self.prefix, self._rings))
            recording.append(self._pauses.end())
            # Last, since the writing thread competes for the interpreter from here on.
            self._consider(number, numbers)

    def paused(self, since: float | None) -> None:
        """Notes that training has paused (validation), or with None that it continues, for the step times."""
        self.record(*self._pauses.told(since))

    # -- the fits of a training ------------------------------------------------------------------------------------
    def new_fit(self) -> None:
        """Notes that a further fit begins, whose epochs are counted from 0 again."""
        if self._checkpoint is None:
            self._epoch_offset = None
        if self._pipeline is not None:
            self._pipeline.hide()  # Keras has one
            if self._pipeline.recording.steps_of(self._keys()) > self._first_step:
                self.forget_problems()
        self.premises.again()

    def mark_seam(self) -> None:
        """Records in the run's tag at which step a further fit of the model begins."""
        if self._pipeline is not None:
            self.record(*self._pipeline.recording.seam(self._keys()))

    def restore_fit(self, model: Any) -> bool:
        """Restores the checkpoint for a fit that is beginning; returns whether there is one to resume.

        Raises:
            SettingError: the model differs from the saved one.
        """
        checkpoint, self._checkpoint = self._checkpoint, None  # a further fit starts from scratch
        if checkpoint is not None:
            if not self._in_fit:  # the monitor encloses fits, of which this is the first
                checkpoint.check_fit(order.fits(model))
            underway.build(model)
            checkpoint.restore(model, self._optimizers)
            checkpoint.restore_fit(model, self.callbacks)
        resuming.go_on(model, self._keys(), checkpoint, self._pipeline)
        return checkpoint is not None

    # -- checkpoints -----------------------------------------------------------------------------------------------
    def _consider(self, epoch: int, metrics: Mapping[str, float], within: bool = False) -> None:
        """Makes a checkpoint if one is due."""
        if self._pipeline is not None:
            step = self._pipeline.recording.steps_of(self._keys())
            around = moments.around(
                self.model, self._pipeline.recording, self.callbacks,
                epoch=epoch, step=step, first_epoch=self.epoch_offset, began_with=self._began_with,
                fits=order.fits(self.model), place=order.place(self.model), within=within,
            )  # fmt: skip
            others = moments.others(self.model, self._optimizers, self._rings)
            now = Moment(
                self.model, epoch, step, metrics, self.arguments, within, around, others, self.datasets
            )
            self._pipeline.keeper(self.prefix).consider(now)

    @property
    def has_best(self) -> bool:
        """Whether a best model that MLflow can load is kept, once pending checkpoints have been written."""
        return self._pipeline is not None and self._pipeline.has_best(self.prefix)


def watching(model: Any) -> Monitor | None:
    """Returns the monitor that was started for a model and is still on."""
    found = (one for one in reversed(claims.active) if isinstance(one, Monitor) and one.model is model)
    return next(found, None)
