"""All settings, validated once, with an error for each invalid value that says what to do."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlflow_tfmon import sources
from mlflow_tfmon.detectors import CAUSES, OUTCOMES, thresholds
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.sinks import sinks

if TYPE_CHECKING:
    from mlflow_tfmon.detectors.problem import Problem


MOST_PREDICTIONS = 32  # examples of which is shown what the model predicts
# Parts of metric names for which higher, or lower, values are better.
_MORE = ("acc", "auc", "precision", "recall", "f1", "iou", "r2")
_LESS = ("loss", "err", "mae", "mse", "mape", "msle", "perplexity", "entropy", "nll")


@dataclass(frozen=True)
class Settings:
    """Settings of a monitored training.

    They are the arguments of the same names of `autolog`, whose docstring says what each means.
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
    min_delta: float = 0.0
    epoch_metrics: Callable[[Any], Mapping[str, float]] | None = None
    checkpoint: bool = True
    checkpoint_keep: int = 1
    checkpoint_save_best_only: bool = True
    checkpoint_save_weights_only: bool = False
    checkpoint_save_freq: str | int = "epoch"
    deep_every: int = 50
    max_points: int = 320
    max_variables: int = 50
    variables: str | None = None
    mlflow_names: bool = False
    journal_gb: float = 4.0
    delivery_wait: float = 15.0
    exit_wait: float | None = None
    report: bool = True
    tensorboard: bool = False
    sinks: str | None = None
    silent: bool = False
    keep_batches: bool = True
    predictions: int | tuple[Any, Any] | Callable[[Any], Any] = dataclasses.field(
        default=0,
        repr=False,
        compare=False,  # it may be arrays
    )
    detectors: Mapping[str, Any] | None = None
    on_problem: str | Callable[[Problem], Any] = "warn"
    alert_url: str | None = dataclasses.field(
        default=None, repr=False
    )  # it may contain a password, or be one
    resume: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise self._error(field.name, "must be True or False")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise self._error("tensorboard", "needs TensorBoard: pip install 'mlflow-tfmon[tensorboard]'")
        whole = (("deep_every", 1), ("max_points", 20), ("max_variables", 0), ("checkpoint_keep", 1))
        for name, least in whole:
            if not _is_whole(getattr(self, name), least):
                raise self._error(name, f"must be a whole number, at least {least}")
        numbers = (
            ("delivery_wait", "a number of seconds, 0 or more", 0),
            ("exit_wait", "a number of seconds, 0 or more, or None", 0),
            ("min_delta", "a number, 0 or more", 0),
            ("journal_gb", "a number of gigabytes, at least 0.001", 0.001),
        )
        for name, what, smallest in numbers:
            value = getattr(self, name)
            if name == "exit_wait" and value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not smallest <= value < math.inf
            ):
                raise self._error(name, f"must be {what}")
        if self.checkpoint_every is None:
            raise self._error(
                "checkpoint_save_freq",
                'must be "epoch", "5 epochs" or the like, or a number of steps, at least 1',
            )
        if self.mode not in ("auto", "min", "max"):
            raise self._error("mode", 'must be "auto", "min" or "max"')
        if not isinstance(self.monitor, str) or not self.monitor:
            raise self._error("monitor", 'must be the name of an epoch metric, such as "val_loss"')
        if not callable(self.on_problem) and self.on_problem not in ("warn", "stop", "rescue"):
            raise self._error("on_problem", 'must be "warn", "stop", "rescue" or a function of a Problem')
        if self.epoch_metrics is not None and not callable(self.epoch_metrics):
            raise self._error("epoch_metrics", "must be a function of the model that returns numbers by name")
        wanted = self.predictions
        pair = isinstance(wanted, tuple) and len(wanted) == 2
        if not (callable(wanted) or pair or (_is_whole(wanted, 0) and wanted in range(MOST_PREDICTIONS + 1))):
            what = f"a number of validation examples (0 to {MOST_PREDICTIONS}), examples as (inputs, targets)"
            raise self._error("predictions", f"must be {what}, or a function of the model")
        url = self.alert_url
        if url is not None and not (isinstance(url, str) and url.startswith(("http://", "https://"))):
            raise self._error("alert_url", "must be an address that begins with http:// or https://")
        if self.sinks is not None:
            if not isinstance(self.sinks, str):
                raise self._error("sinks", 'must be a text such as "jsonl:FOLDER"')
            try:
                sinks.parsed(self.sinks)
            except ValueError as error:
                raise self._error("sinks", str(error)) from None
        like = self.variables
        if like is not None and not (isinstance(like, str) and like.strip(", ")):
            raise self._error("variables", 'must be patterns of names, such as "encoder.*, *.bias"')
        if self.resume is not None and (not isinstance(self.resume, str) or not self.resume):
            raise self._error("resume", 'must be the id of a run, or "latest"')
        if self.detectors is not None:
            if not isinstance(self.detectors, Mapping):
                raise self._error("detectors", 'must be a dictionary such as {"overfitting": False}')
            try:
                thresholds.check(self.detectors, (*CAUSES, *OUTCOMES))
            except ValueError as error:
                raise self._error("detectors", str(error)) from None
        name_ = self.registered_model_name
        if name_ is not None and (not isinstance(name_, str) or not name_.strip() or set("/:") & set(name_)):
            raise self._error("registered_model_name", "must be a non-empty name without '/' and ':'")
        for name in ("extra_tags", "saved_model_kwargs", "keras_model_kwargs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise self._error(name, "must be a dictionary")
        if name_ is not None and not self.log_models:
            raise self._error("registered_model_name", "conflicts with log_models=False; remove one of them")

    def _error(self, name: str, remedy: str) -> SettingError:
        value = "…" if name == "alert_url" else repr(getattr(self, name))  # its path may be a secret too
        return SettingError(f"{name}={value}: {name} {remedy}.", name)

    @classmethod
    def make(cls, **values: Any) -> Settings:
        """Builds settings; an omitted one is read from the environment, else from the project, else it has its default.

        Args:
            **values: settings by name.

        Raises:
            SettingError: for an unknown setting or an invalid value.

        Example:
            >>> Settings.make(deep_every=10).deep_every
            10
        """
        types = cls.types()
        for name in values:
            if name not in types:
                raise SettingError(f"{name}={values[name]!r}: {sources.unknown(name, types)}")
        elsewhere = sources.found(cls.written())
        try:
            return cls(**{name: value for name, (value, _) in elsewhere.items()} | values)
        except SettingError as error:
            if error.setting in values or error.setting not in elsewhere:
                raise
            raise SettingError(f"{elsewhere[error.setting][1]}: {error}", error.setting) from None

    @classmethod
    def types(cls) -> dict[str, str]:
        """Returns the names of the settings with their annotated types."""
        return {field.name: str(field.type) for field in dataclasses.fields(cls)}

    @classmethod
    def written(cls) -> dict[str, str]:
        """Returns the settings that can be written as text, without those that are functions."""
        return {name: kind for name, kind in cls.types().items() if not kind.startswith("Callable")}

    @property
    def checkpoint_every(self) -> tuple[int, str] | None:
        """`checkpoint_save_freq` as a number of "epochs" or "steps"; None if it is neither."""
        value = self.checkpoint_save_freq
        if isinstance(value, str):
            found = re.fullmatch(r"(?:([1-9]\d*) )?epochs?", value)
            return (int(found[1] or 1), "epochs") if found else None
        return (value, "steps") if _is_whole(value, 1) else None

    def maximizes(self, metric: str, directions: Mapping[str, str] | None = None) -> bool:
        """Whether higher values of a metric are better.

        Args:
            metric: its name.
            directions: for the mode "auto": "up" or "down" by metric, without "val_", as far as Keras knows it; for
                other metrics the name decides.
        """
        if self.mode != "auto":
            return self.mode == "max"
        known = (directions or {}).get(metric.removeprefix("val_"))
        if known:
            return known == "up"
        return _has(metric, _MORE)

    def is_told(self, metric: str, directions: Mapping[str, str] | None = None) -> bool:
        """Whether the direction of a metric is known rather than guessed; arguments as in `maximizes`."""
        known = (directions or {}).get(metric.removeprefix("val_"))
        return self.mode != "auto" or bool(known) or _has(metric, _MORE + _LESS)


def _has(metric: str, words: tuple[str, ...]) -> bool:
    name = metric.removeprefix("val_").lower()
    return any(word in name for word in words)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def autolog_settings() -> Settings:
    """Returns the settings of `autolog()`, or those of environment, project and defaults while it is off."""
    return _autolog_settings or Settings.make()


_autolog_settings: Settings | None = None


def set_autolog_settings(settings: Settings | None) -> None:
    global _autolog_settings
    _autolog_settings = settings
