"""promote(): assigns a registry alias to a run's best model, on a user's request."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient

from mlflow_tfmon.checkpoints.names import BEST, FINAL, MODELS
from mlflow_tfmon.checkpoints.registry import (
    ALIAS,
    Standing,
    holder_of,
    make_version,
    registry_errors,
    version_of,
    version_tags,
    why_not,
)
from mlflow_tfmon.internals import internal
from mlflow_tfmon.tags import pointed
from mlflow_tfmon.tracking.credentials import check_artifacts
from mlflow_tfmon.tracking.names import MODEL_ID
from mlflow_tfmon.tracking.store import AwayError, RefusedError


class PromotionError(Exception):
    """Failed promotion; the message says why, and what to do."""


@dataclass(frozen=True)
class Promotion:
    """Result of `promote`, or of its dry run.

    Attributes:
        name: the registered model.
        alias: the alias.
        model_id: the promoted logged model.
        version: its version; None if a dry run would create one.
        standing: the metric by which it is compared, such as "val_loss 0.25".
        before: version that had the alias, or None.
        before_standing: the metric of that version.
        done: False for a dry run.
    """

    name: str
    alias: str
    model_id: str
    version: str | None
    standing: str
    before: str | None
    before_standing: str
    done: bool

    def __str__(self) -> str:
        what = f"version {self.version}" if self.version else "a new version"
        before = f", before: version {self.before} ({self.before_standing})" if self.before else ""
        does = "has" if self.done else "would get"
        return f"{self.name}: {what} ({self.standing}, {self.model_id}) {does} the alias {self.alias}{before}"


def promote(
    run_id: str,
    alias: str = ALIAS,
    name: str | None = None,
    *,
    dry_run: bool = False,
    force: bool = False,
    tracking_uri: str | None = None,
) -> Promotion:
    """Registers a run's best model as a version of a registered model and assigns an alias to it.

    Args:
        run_id: the run.
        alias: the alias.
        name: registered model. Default: the one that the run's model belongs to.
        dry_run: whether only to return what would happen.
        force: whether to move the alias even from a version that this one does not beat, or cannot be compared with.
        tracking_uri: the run's store. Default: MLflow's current tracking URI.

    Returns:
        The result.

    Raises:
        PromotionError: nothing was changed: no such run, no model, no name, an invalid name or alias, or the alias was
            not moved.

    Example:
        >>> print(promote(run_id, alias="champion", dry_run=True))
        digits: version 3 (val_loss 0.25, m-5d1f…) would get the alias champion
    """
    _check(alias)
    client = MlflowClient(tracking_uri)
    try:
        with registry_errors(client):
            return _promote(client, client.get_run(run_id), alias, name, dry_run, force)
    except (AwayError, RefusedError) as error:
        raise PromotionError(str(error)) from None  # MLflow's message may contain a password


def _promote(
    client: MlflowClient, run: Run, alias: str, name: str | None, dry_run: bool, force: bool
) -> Promotion:
    run_id, model_id = run.info.run_id, _best_of(run)
    if not MODEL_ID.fullmatch(model_id):
        raise PromotionError(
            f"run {run_id} has a tag that does not name a model ({model_id!r}): promote another run."
        )
    check_artifacts(client, client.get_logged_model(model_id).artifact_location)
    if not get_model_info(f"{MODELS}{model_id}").flavors:
        raise PromotionError(
            f"the best model of run {run_id} ({model_id}) consists of weights only, which MLflow can neither load nor "
            "serve; train with checkpoint_save_weights_only=False and a model that Keras can load again, or register "
            "another: mlflow.register_model('models:/<id>', name)."
        )
    name = name or _name_of(client, run_id)
    known = version_of(client, run_id, model_id, name)
    mine = Standing.of(version_tags(client, run, model_id))
    holder = holder_of(client, name, alias)
    theirs = None if holder is None else Standing.of(holder.tags)
    if holder is not None and not (known is not None and str(known.version) == str(holder.version)):
        reason = why_not(mine, theirs)
        if reason is not None and not force:
            raise PromotionError(
                f"{name}: the alias {alias} stays with version {holder.version}: {reason}. Pass --force to move it "
                "anyway."
            )
    if not dry_run:
        known = make_version(client, run, model_id, name)
        client.set_registered_model_alias(name, alias, str(known.version))
    return Promotion(
        name, alias, model_id, None if known is None else str(known.version), str(mine),
        None if holder is None else str(holder.version), str(theirs), not dry_run,
    )  # fmt: skip


def _check(alias: str) -> None:
    """Validates an alias as MLflow does, but before a version is created."""
    try:
        for name in (
            "_validate_model_alias_name",
            "_validate_model_alias_name_reserved",
        ):  # MLflow 3.1 to 3.17
            path = f"mlflow.utils.validation.{name}"
            internal(path, lambda _: None, "an alias may be refused after its version was created")(alias)
    except MlflowException as error:
        raise PromotionError(f"alias={alias!r}: {error.message} Use another, such as champion.") from error


def _best_of(run: Run) -> str:
    """Returns the id of a run's best model, or of its only one."""
    named = pointed(run.data.tags)
    for kind in (BEST, FINAL):
        found = sorted({model_id for (of, _), model_id in named.items() if of == kind})
        exact = named.get((kind, ""))
        if exact or len(found) == 1:
            return exact or found[0]
        if found:
            raise PromotionError(
                f"run {run.info.run_id} has several models; register one yourself: mlflow.register_model("
                f"'models:/<id>', name), where <id> is one of {', '.join(found)}."
            )
    raise PromotionError(
        f"run {run.info.run_id} has no model: train with mlflow_tfmon.autolog(), and with log_models and checkpoint on."
    )


def _name_of(client: MlflowClient, run_id: str) -> str:
    names = sorted({one.name for one in client.search_model_versions(f"run_id='{run_id}'")})
    if len(names) == 1:
        return str(names[0])
    has = f"several registered models ({', '.join(names)})" if names else "no registered model yet"
    raise PromotionError(f"run {run_id} has {has}; pass --name MODEL.")
