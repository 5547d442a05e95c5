"""Every setting, checked once, with an error for each bad value that says what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.errors import SettingError


@dataclass(frozen=True)
class Settings:
    """How a training is watched.

    Attributes:
        log_models: whether the trained model is logged to MLflow at the end of `fit`.
        log_datasets: whether the datasets given to `fit` are described in the run.
        log_input_examples: whether the logged model carries an input example.
        log_model_signatures: whether the logged model carries a signature.
        registered_model_name: registered model of which each trained model becomes a version, or None.
        saved_model_kwargs: further arguments for `tf.saved_model.save`.
        keras_model_kwargs: further arguments for `keras.Model.save`.
        extra_tags: tags for each run that autologging makes.
        monitor: epoch metric by which the best epoch is found ("loss" stands in if it is "val_loss" and there is
            no validation data).
        mode: "min", "max" or "auto" (by the metric's name, as Keras does).
        deep_every: every how many optimizer steps the weight norms, update ratios and fractions of zero gradients
            are measured; step 1 is, too.
        max_points: bound on the points of one series in MLflow; the Parquet files hold every step.
        max_variables: how many variables (the largest kernels) get series of their own in MLflow.
        delivery_wait: for how many seconds the end of a training may wait until MLflow has everything.
        silent: whether nothing is said, neither log lines nor warnings.
        on_problem: what follows from a problem: "warn" (it is said), "stop" (`fit` ends, with its best weights),
            "rescue" (`fit` goes back to good weights, with a tenth of the learning rate and gradients clipped), or a
            function that is called with each new `Problem`.
        alert_url: where each new problem is posted, as JSON.
    """

    log_models: bool = True
    log_datasets: bool = True
    log_input_examples: bool = False
    log_model_signatures: bool = True
    registered_model_name: str | None = None
    saved_model_kwargs: Mapping[str, Any] | None = None
    keras_model_kwargs: Mapping[str, Any] | None = None
    extra_tags: Mapping[str, str] | None = None
    monitor: str = "val_loss"
    mode: str = "auto"
    deep_every: int = 50
    max_points: int = 320
    max_variables: int = 50
    delivery_wait: float = 15.0
    silent: bool = False
    on_problem: str | Callable[[Problem], Any] = "warn"
    alert_url: str | None = None

    def __post_init__(self) -> None:
        for name in ("log_models", "log_datasets", "log_input_examples", "log_model_signatures", "silent"):
            if not isinstance(getattr(self, name), bool):
                raise self._error(name, "must be True or False")
        for name, least in (("deep_every", 1), ("max_points", 20), ("max_variables", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self._error(name, f"must be a whole number, at least {least}")
        wait = self.delivery_wait
        if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait < float("inf"):
            raise self._error("delivery_wait", "must be a number of seconds, 0 or more")
        if self.mode not in ("auto", "min", "max"):
            raise self._error("mode", 'must be "auto", "min" or "max"')
        if not isinstance(self.monitor, str) or not self.monitor:
            raise self._error("monitor", 'must be the name of an epoch metric, such as "val_loss"')
        if not callable(self.on_problem) and self.on_problem not in ("warn", "stop", "rescue"):
            raise self._error("on_problem", 'must be "warn", "stop", "rescue" or a function of a Problem')
        url = self.alert_url
        if url is not None and not (isinstance(url, str) and url.startswith(("http://", "https://"))):
            raise self._error("alert_url", "must be an address that begins with http:// or https://")
        name_ = self.registered_model_name
        if name_ is not None and (not isinstance(name_, str) or not name_.strip() or set("/:") & set(name_)):
            raise self._error("registered_model_name", "must be a non-empty name without '/' and ':'")
        for name in ("extra_tags", "saved_model_kwargs", "keras_model_kwargs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise self._error(name, "must be a dictionary")

    def _error(self, name: str, remedy: str) -> SettingError:
        return SettingError(f"{name}={getattr(self, name)!r}: {name} {remedy}.")

    @classmethod
    def make(cls, **values: Any) -> Settings:
        """Builds settings from keyword arguments.

        Args:
            **values: settings by name; what is left out has its default.

        Raises:
            SettingError: for an unknown name or a value that the setting can't have.

        Example:
            >>> Settings.make(deep_every=10).deep_every
            10
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise SettingError(
                    f"{name}={values[name]!r}: there is no setting {name!r}; there are {sorted(known)}."
                )
        return cls(**values)

    def maximizes(self, metric: str) -> bool:
        """Whether more of a metric is better, by `mode`; "auto" goes by the name, as Keras's callbacks do."""
        if self.mode != "auto":
            return self.mode == "max"
        name = metric.removeprefix("val_").lower()
        return any(word in name for word in ("acc", "auc", "precision", "recall", "f1", "iou", "r2"))
