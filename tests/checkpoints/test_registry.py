"""Tests of the registry alias: the rule, two simultaneous runs, and promotion by hand. No training is involved."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.models import Model

from mlflow_tfmon import cli
from mlflow_tfmon.checkpoints import registry
from mlflow_tfmon.checkpoints.names import tags_of
from mlflow_tfmon.checkpoints.promote import PromotionError, promote
from mlflow_tfmon.checkpoints.registry import Standing, register_pointed, why_not
from mlflow_tfmon.tracking.store import RunStore

LOSS = Standing("val_loss", 0.3, more=False, dataset="a")


@pytest.mark.parametrize(
    ("new", "holder", "why"),
    [
        (Standing("val_loss", 0.2, False, "a"), LOSS, None),
        (Standing("val_loss", 0.2, False, "a"), None, None),
        (Standing("accuracy", 0.9, True), Standing("accuracy", 0.8, True), None),
        (Standing("val_loss", 0.4, False, "a"), LOSS, "does not beat"),
        (LOSS, LOSS, "tie"),
        (Standing("val_loss", float("nan"), False, "a"), LOSS, "no metric"),
        (Standing("val_loss", float("nan"), False, "a"), None, "no metric"),
        (Standing("", 0.1, False), None, "no metric"),
        (Standing("accuracy", 0.9, True, "a"), LOSS, "cannot be compared"),
        (Standing("val_loss", 0.2, True, "a"), LOSS, "cannot be compared"),
        (Standing("val_loss", 0.2, False, "b"), LOSS, "other data"),
        (Standing("val_loss", 0.2, False), LOSS, "other data"),
        (
            Standing("val_loss", 0.2, False, "a"),
            Standing.of({}),
            "cannot be compared",
        ),  # a person's own version
    ],
)
def test_the_rule(new: Standing, holder: Standing | None, why: str | None) -> None:
    said = why_not(new, holder)
    assert said is None if why is None else why in str(said)


class Runs:
    """Runs with a model each, as training leaves them behind."""

    def __init__(self, store: str, folder: Path) -> None:
        mlflow.set_tracking_uri(store)
        self.store, self.client, self.folder = store, mlflow.MlflowClient(store), folder

    def add(self, value: float, tag: str = "tfmon.best_model", whole: bool = True) -> RunStore:
        run_id = self.client.create_run("0").info.run_id
        tags = tags_of(3, 40, "val_loss", value, more=False)
        model = self.client.create_logged_model("0", "checkpoint", run_id, tags=tags)
        description = Model()
        if whole:
            description.add_flavor("python_function", loader_module="mlflow.tensorflow")
        description.save(str(self.folder / "MLmodel"))
        self.client.log_model_artifacts(model.model_id, str(self.folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.set_tag(run_id, tag, model.model_id)
        return RunStore(self.client, run_id)

    def holder(self, alias: str = "best") -> float:
        return float(self.client.get_model_version_by_alias("digits", alias).tags["tfmon.value"])


@pytest.fixture
def runs(store: str, tmp_path: Path) -> Runs:
    (tmp_path / "model").mkdir()
    return Runs(store, tmp_path / "model")


def test_the_alias_goes_to_the_better_and_stays_otherwise(runs: Runs) -> None:
    for value, holder in ((0.4, 0.4), (0.3, 0.3), (0.35, 0.3), (0.3, 0.3)):
        run = runs.add(value)
        assert register_pointed(run, "tfmon.best_model", "digits") == {}
        assert register_pointed(run, "tfmon.best_model", "digits") == {}  # again: no second version
        assert runs.holder() == holder
    versions = {int(one.version): one for one in runs.client.search_model_versions("name='digits'")}
    assert sorted(versions) == [1, 2, 3, 4]
    assert {key: versions[2].tags[key] for key in ("tfmon.epoch", "tfmon.step", "tfmon.metric")} == {
        "tfmon.epoch": "3", "tfmon.step": "40", "tfmon.metric": "val_loss",
    }  # fmt: skip
    assert "does not beat" in versions[3].tags["tfmon.alias.best"]
    said = runs.client.get_run(run.run_id).data.tags["tfmon.registered"]
    assert "version 4" in said and "tie" in said
    # A person moves the alias back: nobody who comes later brings version 2 up again.
    runs.client.set_registered_model_alias("digits", "best", "1")
    register_pointed(runs.add(0.45), "tfmon.best_model", "digits")
    assert runs.holder() == 0.4
    register_pointed(runs.add(0.38), "tfmon.best_model", "digits")
    assert runs.holder() == 0.38


def test_a_name_with_a_quote(runs: Runs) -> None:
    for value in (0.4, 0.3):
        assert register_pointed(runs.add(value), "tfmon.best_model", "Ann's") == {}
    assert runs.client.get_model_version_by_alias("Ann's", "best").tags["tfmon.value"] == "0.3"


def orders() -> list[tuple[int, ...]]:
    """In which order two contenders make their calls to the registry: some of all that there are."""
    every = sorted(set(itertools.permutations((0,) * 4 + (1,) * 4)))
    return every[::9]


@pytest.mark.parametrize("values", [(0.3, 0.2), (0.2, 0.3)])
def test_two_at_once_end_with_the_better(
    runs: Runs, values: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each contender stops before each of its calls until it is its turn."""
    register_pointed(runs.add(0.9), "tfmon.best_model", "digits")
    for order in orders():
        runs.client.set_registered_model_alias("digits", "best", "1")
        contenders = [
            registry.make_version(
                runs.client, runs.client.get_run((one := runs.add(value)).run_id),
                runs.client.get_run(one.run_id).data.tags["tfmon.best_model"], "digits",
            )
            for value in values
        ]  # fmt: skip
        turns = Turns(order, runs.client)
        threads = [
            threading.Thread(target=turns.take, args=(who, version)) for who, version in enumerate(contenders)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert runs.holder() == 0.2, order
        assert [reason is None for reason in turns.reasons] == [value == 0.2 for value in values] or (
            # The worse was over before the better began: it did have the alias for a moment.
            turns.reasons == [None, None]
        ), (order, turns.reasons)


class Turns:
    """A client whose calls wait for their caller's turn."""

    def __init__(self, order: tuple[int, ...], client: mlflow.MlflowClient) -> None:
        self.order, self.client = list(order), client
        self.changed = threading.Condition()
        self.who = threading.local()
        self.over = [False, False]
        self.reasons: list[str | None] = ["?", "?"]

    def take(self, who: int, version: Any) -> None:
        self.who.am = who
        self.reasons[who] = registry.contend(self, version, "best")  # type: ignore[arg-type]
        with self.changed:
            self.over[who] = True
            self.changed.notify_all()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.client, name)

        def in_turn(*args: Any) -> Any:
            with self.changed:
                self.changed.wait_for(self._my_turn)
                if self.order:
                    self.order.pop(0)
                result = call(*args)
                self.changed.notify_all()
            return result

        return in_turn

    def _my_turn(self) -> bool:
        while self.order and self.over[self.order[0]]:
            self.order.pop(0)
        return not self.order or self.order[0] == self.who.am


def test_what_the_registry_refuses_is_said_and_holds_nothing_up(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise mlflow.MlflowException("no such right", error_code=mlflow.exceptions.PERMISSION_DENIED)

    run = runs.add(0.3)
    monkeypatch.setattr(mlflow.MlflowClient, "create_model_version", refuse)
    assert register_pointed(run, "tfmon.best_model", "digits") == {"registered model digits": "no such right"}
    assert "no such right" in runs.client.get_run(run.run_id).data.tags["tfmon.registered"]


def test_promotion_by_hand(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    good, worse = runs.add(0.3), runs.add(0.5)
    arguments = ["promote", good.run_id, "--alias", "champion"]
    assert cli.main(arguments) == 1  # it is registered as nothing
    assert "--name" in capsys.readouterr().err
    assert cli.main([*arguments, "--name", "digits", "--dry-run"]) == 0
    assert "a new version (val_loss 0.3" in capsys.readouterr().out
    assert runs.client.search_registered_models() == []  # nothing was done
    for alias in ("latest", "v2", "", "no good"):
        for more in ([], ["--dry-run"]):
            assert cli.main(["promote", good.run_id, "--alias", alias, "--name", "digits", *more]) == 1
            said = capsys.readouterr().err
            assert f"alias={alias!r}: " in said and said.count("\n") == 1, said
    assert runs.client.search_registered_models() == []  # and no version that lacks it
    assert cli.main([*arguments, "--name", "digits"]) == 0
    assert cli.main(arguments) == 0  # again: its name is known now
    assert runs.holder("champion") == 0.3
    with pytest.raises(PromotionError, match=r"does not beat val_loss 0\.3"):
        promote(worse.run_id, "champion", "digits")
    assert [one.version for one in runs.client.search_model_versions("name='digits'")] == [1]
    promoted = promote(worse.run_id, "champion", "digits", force=True)
    assert (promoted.version, promoted.before, promoted.done) == ("2", "1", True)
    assert runs.holder("champion") == 0.5
    weights = runs.add(0.2, whole=False)
    for dry_run in (True, False):
        with pytest.raises(
            PromotionError, match="consists of weights only, which MLflow can neither load nor serve"
        ):
            promote(weights.run_id, "champion", "digits", dry_run=dry_run)
    with pytest.raises(PromotionError, match="has no model"):
        promote(runs.client.create_run("0").info.run_id, name="digits")
    assert cli.main(["promote", "0" * 32]) == 2
