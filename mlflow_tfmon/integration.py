"""autolog(): the MLflow autologging integration; installs and removes the probes."""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import keras
import mlflow

from mlflow_tfmon import kerases, probes, versions
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.errors import SettingError, contained, logger, quiet, say_once
from mlflow_tfmon.internals import internal
from mlflow_tfmon.probes import batches, compiled, hooks
from mlflow_tfmon.probes.hooks import Hook
from mlflow_tfmon.probes.hooks import mlflow as mlflow_hooks
from mlflow_tfmon.settings import Settings, set_autolog_settings
from mlflow_tfmon.tracking.runs import INTEGRATION, autologging
from mlflow_tfmon.watching import claims, fitting, last_model, loops, peers, pipeline, resuming

_fitted: weakref.WeakSet[Any] = weakref.WeakSet()
_in_fit: list[Any] = []
_USER = "autolog"  # as which it wants the probes in
_MLFLOW = "mlflow.utils.autologging_utils"
_NO_SWITCH = "MLflow's own switches of autologging do not turn it off for fit"
_on: list[str] = []
_Arguments = ParamSpec("_Arguments")


def _given_to(apply: Callable[[dict[str, Any]], None]) -> Any:
    """Has a declared function's work done by another, which gets those arguments alone that were given, by name."""

    def decorate(declared: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
        signature = inspect.signature(declared)

        @functools.wraps(declared)
        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
            apply(signature.bind(*args, **kwargs).arguments)

        return call

    return decorate


def _switch(given: dict[str, Any]) -> None:
    if given.get("disable"):
        quiet(given.get("silent", False))
        _disable()
        return
    for name in ("monitor", "mode"):
        theirs = given.get(f"checkpoint_{name}") or given.get(name)
        if theirs is not None and given.setdefault(name, theirs) != theirs:
            raise SettingError(
                f"checkpoint_{name}={theirs!r}: conflicts with {name}={given[name]!r}; remove one of them."
            )
    settings = Settings.make(**{name: given[name] for name in given if name in Settings.types()})
    quiet(settings.silent)
    if not given.get("log_every_epoch", True) or given.get("log_every_n_steps") is not None:
        logger.info(
            "mlflow_tfmon: log_every_epoch and log_every_n_steps have no effect: everything is always recorded."
        )
    untested: list[str] = []
    old: list[str] = []
    with contained("checking the versions", "it is unknown whether they were tested"):
        found = versions.installed()
        untested, old = versions.untested(found), versions.older(found)
    if untested and given.get("disable_for_unsupported_versions"):
        logger.warning(
            "mlflow_tfmon: not enabled, since it was not tested with %s; remove disable_for_unsupported_versions to "
            "enable it.",
            ", ".join(untested),
        )
        _disable()
        return
    if old:
        logger.warning(
            "mlflow_tfmon: %s is older than supported (%s); upgrade if it misbehaves.",
            ", ".join(old),
            versions.OLDEST,
        )
    newer = [one for one in untested if one not in old]
    if newer:
        say_once(
            f"not tested with {newer}",
            f"mlflow_tfmon: not tested with {', '.join(newer)} (the newest tested versions: {versions.NEWEST}); if it "
            "lacks what a figure needs, a line says so, and the training goes on.",
            logging.INFO,
        )
    resuming.prepare(settings.resume)
    peers.set_aside()  # first: taking their patch of fit out would take out one of ours that is over it
    with contained("patching fit", "trainings by fit are not recorded; custom loops are"):
        _switch_fit(exclusive=given.get("exclusive", False), silent=settings.silent)
    _enable(settings)


@_given_to(_switch)
def autolog(
    log_models: bool = True,
    log_datasets: bool = True,
    disable: bool = False,
    exclusive: bool = False,
    disable_for_unsupported_versions: bool = False,
    silent: bool = False,
    registered_model_name: str | None = None,
    log_input_examples: bool = False,
    log_model_signatures: bool = True,
    saved_model_kwargs: Mapping[str, Any] | None = None,
    keras_model_kwargs: Mapping[str, Any] | None = None,
    extra_tags: Mapping[str, str] | None = None,
    log_every_epoch: bool = True,
    log_every_n_steps: int | None = None,
    checkpoint: bool = True,
    checkpoint_monitor: str | None = None,
    checkpoint_mode: str | None = None,
    checkpoint_save_best_only: bool = True,
    checkpoint_save_weights_only: bool = False,
    checkpoint_save_freq: str | int = "epoch",
    monitor: str = "val_loss",
    mode: str = "auto",
    min_delta: float = 0.0,
    epoch_metrics: Callable[[Any], Mapping[str, float]] | None = None,
    checkpoint_keep: int = 1,
    deep_every: int = 50,
    max_points: int = 320,
    max_variables: int = 50,
    variables: str | None = None,
    mlflow_names: bool = False,
    journal_gb: float = 4.0,
    delivery_wait: float = 15.0,
    exit_wait: float | None = None,
    report: bool = True,
    tensorboard: bool = False,
    sinks: str | None = None,
    keep_batches: bool = True,
    predictions: int | tuple[Any, Any] | Callable[[Any], Any] = 0,
    detectors: Mapping[str, Any] | None = None,
    on_problem: str | Callable[[Problem], Any] = "warn",
    alert_url: str | None = None,
    resume: str | None = None,
) -> None:
    """Monitors every later training, with `model.fit` or in a hand-written `tf.GradientTape` loop.

    The README lists what is recorded, and under which names. A training is logged to the active MLflow run, else to a
    new one. `mlflow.tensorflow.autolog` is disabled while this is on. A custom loop is monitored if its step is traced
    (first called) after this call; `fit` is always monitored. An omitted argument is read from the environment
    (`MLFLOW_TFMON_DEEP_EVERY=10`), else from `[tool.mlflow_tfmon]` in pyproject.toml; else it has its default.

    Args:
        log_models: whether to log models: the trained one at the end of `fit`, and checkpoints.
        log_datasets: whether to describe the datasets passed to `fit` in the run.
        disable: whether to turn monitoring off and restore everything.
        exclusive: whether to ignore runs created by the user.
        disable_for_unsupported_versions: whether to stay off if TensorFlow, Keras or MLflow is older or newer than the
            tested versions.
        silent: whether to suppress log lines, warnings, progress bar and summary.
        registered_model_name: registered model to which the best model of each training is added as a version.
        log_input_examples: whether to log an input example with the model.
        log_model_signatures: whether to log a signature with the model.
        saved_model_kwargs: further arguments for `tf.saved_model.save`.
        keras_model_kwargs: further arguments for `keras.Model.save`.
        extra_tags: tags for each created run.
        log_every_epoch: accepted for compatibility with MLflow; epochs are always logged.
        log_every_n_steps: accepted for compatibility with MLflow; every step is always recorded.
        checkpoint: whether to keep the best and the last epoch's models in MLflow (requires `log_models`).
        checkpoint_monitor: MLflow's name for `monitor`.
        checkpoint_mode: MLflow's name for `mode`.
        checkpoint_save_best_only: whether to keep only the best and the last; otherwise all are kept.
        checkpoint_save_weights_only: whether to save only the weights in checkpoints, without the model's
            configuration.
        checkpoint_save_freq: "epoch", every so many epochs ("5 epochs"), or every so many optimizer steps and at each
            epoch's end (a number; in a custom loop at the next `Monitor.log`).
        monitor: epoch metric that determines the best epoch; "loss" replaces "val_loss" without validation data.
        mode: "min", "max" or "auto" (from the Keras metric, else from its name).
        min_delta: smallest change that counts as an improvement.
        epoch_metrics: a function that is called with the model (None for a `Monitor` without one) at each epoch's end
            and returns a dictionary of numbers: epoch metrics like any other. It must not change the model.
        checkpoint_keep: number of best models to keep.
        deep_every: interval in optimizer steps between measurements of weight norms, update ratios and fractions of
            zero gradients; step 1 is always measured. With several workers it is at most 16.
        max_points: largest number of points per series in MLflow; the Parquet files have every step.
        max_variables: largest number of variables with their own series in MLflow: the largest ones.
        variables: patterns of the names of the variables that have their own series in MLflow, such as
            "encoder.*, *.bias". Default: the kernels. The files and the report have all.
        mlflow_names: whether the model at the end of a fit is called `model`, as MLflow's autologging calls it, rather
            than `final`, and each validation metric is recorded under MLflow's name as well (`validation_loss` beside
            `val_loss`), as `mlflow.tensorflow.autolog` does.
        journal_gb: largest size of undelivered records on the local disk, in gigabytes.
        delivery_wait: seconds for which the end of a training may wait until MLflow has everything.
        exit_wait: seconds for which the script's exit (with Ray, the end of each training) waits until everything that
            can be delivered is, including the report; default 600 where that exit ends all processes (for example in a
            container, or under Kubernetes, SLURM or Ray), else 0, since delivery continues in the background.
        report: whether to write a report, `tfmon/report.html`, while the training goes on and at its end.
        tensorboard: whether to write TensorBoard event files, in `tfmon/tensorboard`, at the run's end.
        sinks: additional destinations during training: "jsonl:FOLDER" (a JSON-lines file), "tensorboard:FOLDER" (event
            files that grow), "prometheus:9464" (a port to read figures from), "opentelemetry:URL" (a collector), or the
            sink of an installed package; separate several with commas.
        keep_batches: whether the batch of the first step that is not finite, and of the worst spikes of the loss, is
            kept in the run (`tfmon/evidence`): at most 8, of 8 MB each. They are training data: `False` keeps none.
        predictions: number of validation examples (the first, at most 32) whose predictions the report shows for each
            epoch; or the examples themselves, as (inputs, targets); or a function of the model that
            returns what is to be shown: text, a picture (an array or a matplotlib figure), a number, a dictionary of
            these by name (`right`, true or false, marks it), or a list of such. They are kept in the run, in
            `tfmon/predictions`.
        detectors: detectors to turn off, and thresholds, by kind of problem:
            `{"overfitting": False, "dead_relu": {"min_share": 0.9}}`. Default: all, with their own thresholds.
        on_problem: action on a problem: "warn" (report it), "stop" (end `fit` with its best weights), "rescue" (return
            `fit` to good weights, with a lower learning rate and clipped gradients), or a function that is
            called with each new `Problem`.
        alert_url: URL to which each new problem, and the end of the training, is posted: as JSON, or as a message to a
            webhook of Slack, Discord or Microsoft Teams.
        resume: id of a run, or "latest": the next `fit` resumes its training.

    Raises:
        SettingError: a setting has an invalid value.

    Example:
        ```python
        import mlflow_tfmon

        mlflow_tfmon.autolog()
        model.fit(x, y, epochs=3)
        ```
    """


def is_on() -> bool:
    """Whether `autolog()` is on."""
    return bool(_on)


def _switch_fit(disable: bool = False, exclusive: bool = False, silent: bool = False) -> None:
    """Puts the patch of `fit` in, or takes it out: by MLflow's autologging, which then knows of it, if that can be."""
    integration = internal(f"{_MLFLOW}.autologging_integration", None, _NO_SWITCH)
    patch = internal(f"{_MLFLOW}.safe_patch", None, _NO_SWITCH)
    if integration is None or patch is None:
        patch = _put_in

    def switch(disable: bool = False, silent: bool = False, exclusive: bool = False) -> None:
        if not disable:
            patch(INTEGRATION, keras.Model, "fit", _fit)
            kerases.when_keras_2(_patch_keras_2)

    def _patch_keras_2(module: Any) -> None:
        if not autologging(INTEGRATION, "disable", False):
            patch(INTEGRATION, module.Model, "fit", _fit)

    if patch is not _put_in:
        switch = integration(INTEGRATION)(switch)
    switch(disable=disable, silent=silent, exclusive=exclusive)


def _put_in(_: str, owner: Any, name: str, patch: Callable[..., Any]) -> None:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            return patch(original, self, *args, **kwargs) if _on else original(self, *args, **kwargs)

        return patched

    module = "keras" if owner is keras.Model else "tf_keras"
    hooks.put_in([Hook(f"{module}.Model.{name}", "trainings by fit are not recorded", wrap)])


def _fit(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    with contained("noting the model", "it keeps its probes when autologging is disabled"):
        _fitted.add(model)
        _in_fit.append(model)
    try:
        return fitting.watched_fit(original, model, *args, **kwargs)
    finally:
        with contained("releasing a train function", "it keeps writing into a ring that nobody reads"):
            _in_fit.remove(model)
            if not _on and model not in _in_fit:  # disabled by a callback of this fit
                compiled.unwatch(model)


def _enable(settings: Settings) -> None:
    set_autolog_settings(settings)
    batches.keeping = settings.keep_batches
    if not _on:
        _on.append(_USER)
        with contained("installing the probes in TensorFlow and Keras", "nothing is monitored"):
            probes.install(_USER, claims.claim)
    hooks.put_in(
        [mlflow_hooks.run_ends(pipeline.watch_run_end), mlflow_hooks.last_model(last_model.watch_last)]
    )
    with contained("monitoring custom loops", "they are not recorded; fit is"):
        loops.begin()
    with contained("starting the delivery process", "recordings stay on this machine"):
        # By the time that a training starts, it has loaded MLflow.
        DeliveryProcess.shared().expect(mlflow.get_tracking_uri())


def _disable() -> None:
    with contained("removing the patch of fit", "fit stays monitored"):
        _switch_fit(disable=True)
    loops.stop()
    set_autolog_settings(None)
    probes.remove(_USER)
    _on.clear()
    peers.bring_back()
    for model in [model for model in _fitted if not any(model is busy for busy in _in_fit)]:
        with contained("releasing a train function", "it keeps writing into a ring that nobody reads"):
            compiled.unwatch(model)
    _fitted.clear()
