"""Model registry: a run's best model becomes a version, and gets the alias if it beats the version that has it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_tfmon.checkpoints.names import judged_on
from mlflow_tfmon.tags import ALIAS_TAGS, DATASET, EPOCH, METRIC, MODE, REGISTERED, RUN, STEP, VALUE
from mlflow_tfmon.tracking.models import current_store, datasets_of, note_version
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, is_refusal, store_errors

ALIAS = "best"
_WON = "won"
# Permanent rejections by a registry, besides those of `store_errors`.
_REFUSALS = frozenset(
    {"PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED",
     "NOT_IMPLEMENTED", "INVALID_STATE"}
)  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """The metric by which a model is compared.

    Attributes:
        metric: name of the metric, "" if there is none.
        value: its value; NaN if there is none.
        more: whether higher values are better.
        dataset: digest of the data it was measured on, "" if unknown.
    """

    metric: str
    value: float
    more: bool
    dataset: str = ""

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Standing:
        """Returns the standing in the tags of a version."""
        try:
            value = float(tags.get(VALUE, "nan"))
        except ValueError:
            value = math.nan
        return cls(tags.get(METRIC, ""), value, tags.get(MODE) == "max", tags.get(DATASET, ""))

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.6g}" if self.metric else "no metric"


def why_not(new: Standing, holder: Standing | None) -> str | None:
    """Returns why a model does not take the alias from the version that has it; None if it does.

    Args:
        new: the model.
        holder: the version that has the alias, None if none has.

    Example:
        >>> why_not(Standing("val_loss", 0.2, more=False), Standing("val_loss", 0.3, more=False))
        >>> why_not(Standing("val_loss", 0.3, more=False), Standing("val_loss", 0.3, more=False))
        'it is a tie (val_loss 0.3)'
    """
    if not new.metric or not math.isfinite(new.value):
        return "it has no metric to compare by"
    if holder is None:
        return None
    if (holder.metric, holder.more) != (new.metric, new.more) or not math.isfinite(holder.value):
        return f"they cannot be compared: {new} here, {holder} there"
    if holder.dataset != new.dataset:
        digests = f"{new.dataset or 'unknown'} and {holder.dataset or 'unknown'}"
        return f"{new.metric} was measured on other data (digests {digests})"
    if new.value == holder.value:
        return f"it is a tie ({new})"
    if (new.value > holder.value) != new.more:
        return f"{new} does not beat {holder}"
    return None


def register_pointed(run: RunStore, tag: str, name: str) -> dict[str, str]:
    """Registers the model named by a run's tag as a version of a registered model, and lets it contend for the alias.

    Args:
        run: the run; its tag "tfmon.registered" gets the outcome.
        tag: the run's tag with the model's id; without it there is nothing to register.
        name: registered model, created if there is none.

    Returns:
        What was rejected: name -> reason.

    Raises:
        AwayError: the registry does not answer; to be called again.
    """
    client = run.client
    try:
        with registry_errors(client):
            source = client.get_run(run.run_id)
            model_id = source.data.tags.get(tag)
            if model_id is None:
                return {}
            version = make_version(client, source, model_id, name)
            reason = contend(client, version, ALIAS)
            says = f"{name} version {version.version} ({Standing.of(version.tags)})"
            says += (
                f" has the alias {ALIAS}"
                if reason is None
                else f"; the alias {ALIAS} was not moved: {reason}"
            )
        return run.tags({REGISTERED: says})
    except RefusedError as error:
        run.tags({REGISTERED: f"{name} is refused: {error}"})
        return {f"registered model {name}": str(error)}


def make_version(client: MlflowClient, run: Run, model_id: str, name: str) -> ModelVersion:
    """Returns the version of a logged model, created if there is none yet."""
    known = version_of(client, run.info.run_id, model_id, name)
    if known is None:
        known = _made_version(client, run, model_id, name)
    note_version(client, model_id, name, str(known.version))
    return known


def _made_version(client: MlflowClient, run: Run, model_id: str, name: str) -> ModelVersion:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        with contextlib.suppress(
            MlflowException
        ):  # somebody else has just created it; or the version's error tells
            client.create_registered_model(name)
    tags = version_tags(client, run, model_id)
    return client.create_model_version(
        name, f"models:/{model_id}", run_id=run.info.run_id, tags=tags, model_id=model_id
    )


def version_of(client: MlflowClient, run_id: str, model_id: str, name: str) -> ModelVersion | None:
    """Returns the version of a registered model that belongs to a run's logged model."""
    versions = client.search_model_versions(f"name={_quoted(name)} and run_id='{run_id}'")
    return next((one for one in versions if one.source == f"models:/{model_id}"), None)


def _quoted(name: str) -> str:
    return f'"{name}"' if "'" in name else f"'{name}'"


def version_tags(client: MlflowClient, run: Run, model_id: str) -> dict[str, str]:
    """Returns the tags of a version made from a logged model."""
    of_model = client.get_logged_model(model_id).tags
    tags = {key: of_model[key] for key in (EPOCH, STEP, METRIC, VALUE, MODE, DATASET) if key in of_model}
    return {RUN: run.info.run_id, **judged_on(tags.get(METRIC, ""), datasets_of(run)), **tags}


def holder_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Returns the version that has an alias."""
    try:
        version = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if version is None else client.get_model_version(name, str(version))


def contend(client: MlflowClient, version: ModelVersion, alias: str) -> str | None:
    """Gives a version an alias if it beats the one that has it; of several at once, the best ends up with it.

    A registry has no atomic way to move an alias. So each version that takes it says so in a tag, then looks which
    others have done so since: whoever looks last sees all, and corrects what the others overwrote.

    Args:
        client: of the registry.
        version: the version.
        alias: the alias.

    Returns:
        Why it does not have the alias at the end, or None if it does.
    """
    name, state = version.name, f"{ALIAS_TAGS}{alias}"

    def winners() -> dict[str, ModelVersion]:
        found = client.search_model_versions(f"name={_quoted(name)}")
        return {str(one.version): one for one in found if one.tags.get(state) == _WON}

    before = winners()
    holder = holder_of(client, name, alias)
    mine = Standing.of(version.tags)
    if holder is None or str(holder.version) != str(version.version):
        reason = why_not(mine, None if holder is None else Standing.of(holder.tags))
        if reason is not None:
            return _lost(client, version, state, reason)
        client.set_registered_model_alias(name, alias, str(version.version))
    client.set_model_version_tag(name, str(version.version), state, _WON)
    rivals = {number: one for number, one in winners().items() if number not in before}
    best = version
    for one in rivals.values():
        if why_not(Standing.of(one.tags), Standing.of(best.tags)) is None:
            best = one
    now = holder_of(client, name, alias)
    if now is not None and str(now.version) in rivals and str(now.version) != str(best.version):
        client.set_registered_model_alias(name, alias, str(best.version))
    if str(best.version) == str(version.version):
        return None
    return _lost(
        client,
        version,
        state,
        f"{mine} does not beat {Standing.of(best.tags)}, which was registered at the same time",
    )


def _lost(client: MlflowClient, version: ModelVersion, state: str, reason: str) -> str:
    client.set_model_version_tag(version.name, str(version.version), state, f"not assigned: {reason}")
    return reason


@contextlib.contextmanager
def registry_errors(client: Any) -> Iterator[None]:
    """Like `store_errors`, but more answers of a registry count as permanent, so that no run waits for it."""
    try:
        with store_errors(), current_store(client.tracking_uri):
            yield
    except AwayError as error:
        if is_refusal(error.__cause__, _REFUSALS):
            raise RefusedError(str(error)) from error.__cause__
        raise
