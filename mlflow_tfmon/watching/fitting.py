"""A monitored `fit`: the monitor around it, and the facts that MLflow's own autologging records as well."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import uuid
from collections.abc import Callable
from typing import Any

from mlflow_tfmon.checkpoints.names import FINAL
from mlflow_tfmon.errors import contained
from mlflow_tfmon.facts.arguments import FitArguments, bind_fit
from mlflow_tfmon.facts.datasets import datasets
from mlflow_tfmon.facts.geometry import total_steps
from mlflow_tfmon.facts.params import fit_params
from mlflow_tfmon.facts.saving import save_model
from mlflow_tfmon.facts.summary import can_summarize, model_summary
from mlflow_tfmon.internals import internal
from mlflow_tfmon.settings import autolog_settings
from mlflow_tfmon.stream import records
from mlflow_tfmon.tags import pointer
from mlflow_tfmon.tracking.names import MODEL
from mlflow_tfmon.watching import last_model, loops, peers, resuming
from mlflow_tfmon.watching import pipeline as pipelines
from mlflow_tfmon.watching.callback import CompleteLogs, MonitorCallback, PassOver
from mlflow_tfmon.watching.monitor import Monitor, watching
from mlflow_tfmon.watching.user_messages import say_that_fit_fails

_NOT_RECORDED = "this fit is not recorded"
# What MLflow's test mode wants of the class of a callback that autologging adds.
_ExceptionSafe: Any = internal(
    "mlflow.utils.autologging_utils.ExceptionSafeClass", type, "it may fail in MLflow's test mode"
)


def watched_fit(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """Replacement for `keras.Model.fit`: the same training, monitored."""
    fit: _Fit | None = None
    with contained("watching fit", _NOT_RECORDED):
        fit = _Fit.of(original, model, args, kwargs)
        if fit.is_done():
            args, kwargs = fit.pass_over()
            fit = None
        else:
            args, kwargs = fit.begin()
    try:
        history = original(model, *args, **kwargs)
    except BaseException as error:
        if fit is not None:
            with contained("ending the monitoring of fit", "its end is not recorded"):
                fit.fail(error)
        raise
    if fit is not None:
        with contained("ending the monitoring of fit", "its end is not recorded"):
            fit.finish()
    return history


class _Added(MonitorCallback, metaclass=_ExceptionSafe):
    """The callback that autologging adds."""


class _AddedBefore(CompleteLogs, metaclass=_ExceptionSafe):
    """The one that it adds before the user's."""


class _Passed(PassOver, metaclass=_ExceptionSafe):
    """The one that is added to a fit that was over before."""


class _Fit:
    """One fit: its monitor, and the callback that notifies the monitor of its epochs.

    Args:
        arguments: of the call.
        callback: the user's own `MonitorCallback` if there is one, whose settings then go before autologging's.
    """

    def __init__(self, arguments: FitArguments, callback: MonitorCallback | None) -> None:
        self.arguments = arguments
        self._added = [] if callback else [_Added()]
        self._callback = callback or self._added[0]
        self._given = self._callback.given
        self._settings = dataclasses.replace(autolog_settings(), **self._callback.settings)
        self._summarized = False
        self._prefix = ""
        on = self._given if self._given is not None and self._given.on else watching(arguments.model)
        self._own = on is None
        if on is None:
            loops.end_run()
            on = Monitor.with_settings(arguments.model, self._settings, self._callback.run_id)
        self.monitor = on

    @classmethod
    def of(cls, original: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Fit:
        """The fit that a call makes."""
        arguments = bind_fit(original, model, args, kwargs)
        return cls(
            arguments, next((c for c in arguments.callback_list if isinstance(c, MonitorCallback)), None)
        )

    def is_done(self) -> bool:
        """Whether it was over before the training was interrupted that is to be resumed."""
        return (
            self._own and bool(self._added) and resuming.is_done(self.arguments.model, self._settings.resume)
        )

    def pass_over(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments to call fit with so that it makes no epochs."""
        return self.arguments.with_callbacks([_Passed()], [])

    def begin(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Starts monitoring; returns the arguments to call fit with."""
        with contained(
            "counting the planned steps", "the curves in MLflow may be thinned more than necessary"
        ):
            self.monitor.total_steps = total_steps(self.arguments)
        self.monitor.premises.arguments = self.arguments
        peers.say_of_callbacks(self.arguments.callback_list)
        with contained("looking for what fails in Keras", "it is not said before"):
            say_that_fit_fails(self.arguments.model)
        if self._own:
            self.monitor.start(in_fit=True)
        self.monitor.arguments = self.arguments
        self._callback.given = self.monitor
        self._callback.heed(self.monitor.settings)
        pipeline = self.monitor.pipeline
        with contained("reading the arguments of fit", "the params of this fit are not recorded"):
            params = fit_params(self.arguments)
            if pipeline is not None and pipeline.is_news("params", params):
                self.monitor.record(records.Facts(params=params))
        self._summarize()
        if self._settings.log_datasets:
            with contained("describing the datasets", "they are not recorded"):
                found = datasets(self.arguments)
                self.monitor.datasets = {
                    one.context: (one.dataset["name"], one.dataset["digest"]) for one in found
                }
                if pipeline is not None and pipeline.is_news("datasets", found):
                    self.monitor.record(*found)
        before = [_AddedBefore(self._callback)] if self.monitor.settings.epoch_metrics else []
        return self.arguments.with_callbacks(self._added, before)

    def _summarize(self) -> None:
        with contained("the model summary", "it is not recorded"):
            pipeline, model = self.monitor.pipeline, self.arguments.model
            if not self._summarized and pipeline is not None and can_summarize(model):
                self._summarized = True
                if not pipeline.is_new(model):
                    return
                self.monitor.record(model_summary(self.arguments.model))
                if self._settings.tensorboard:
                    with contextlib.suppress(
                        NotImplementedError, TypeError
                    ):  # a model that is not made of layers
                        self.monitor.record(records.Text(MODEL, self.arguments.model.to_json()))

    def finish(self) -> None:
        """After a fit that went well: what can be told only now, and the model."""
        self._summarize()
        pipeline = self.monitor.pipeline
        if self._settings.log_models and pipeline is not None:
            self._prefix = self.monitor.prefix
            log = functools.partial(self._log_model, pipeline, self._saved_as())
            what = f"saving the model {self._prefix}"
            if self.monitor.may_spend:
                pipeline.thrift.forget(what, of=self.arguments.model)
                pipeline.hasten()
                with pipeline.thrift.spending(), contained("saving the model", "it is not logged"):
                    log()
            else:
                pipeline.thrift.owe(what, log, of=self.arguments.model)
        self._end()

    def fail(self, error: BaseException) -> None:
        """After a fit that an exception ended."""
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._end(status, f"{type(error).__name__}: {error}")

    def _end(self, status: str = "FINISHED", reason: str = "") -> None:
        self._callback.given = self._given
        if self._own:
            self.monitor.end(status, reason)

    def _saved_as(self) -> records.ModelSaved:
        """What tells of the model as this fit has left it."""
        return records.ModelSaved(
            path=f"models/{uuid.uuid4().hex}",
            name="model" if self._settings.mlflow_names else f"{self._prefix}final".replace(".", "-"),
            step=self.monitor.last_epoch,
            metrics=self.monitor.last_metrics,
            pointers=(pointer(FINAL, self._prefix),),
            datasets=self.monitor.datasets,
        )

    def _log_model(self, pipeline: pipelines.Pipeline, as_: records.ModelSaved) -> None:
        settings = self._settings
        saved = save_model(
            self.arguments.model,
            pipeline.folder / as_.path,
            self.arguments,
            log_input_examples=settings.log_input_examples,
            log_model_signatures=settings.log_model_signatures,
            saved_model_kwargs=dict(settings.saved_model_kwargs or {}) or None,
            keras_model_kwargs=dict(settings.keras_model_kwargs or {}) or None,
        )
        if saved:
            name = self._settings.registered_model_name
            if name and not pipeline.has_best(self._prefix):
                as_ = dataclasses.replace(as_, registered_model_name=name)
            pipeline.recording.append(as_)
            last_model.expect(pipeline.run, pipeline.folder, as_.path, as_.pointers[0])
