"""Tests of the state from which delivery continues once records were deleted: any file is read or rejected."""

from __future__ import annotations

import ast
import base64
import copy
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import BEGUN, VARIABLES, blocks, deep, deliver, layout, started, values, write

import mlflow_tfmon
from mlflow_tfmon.delivery import attempt, saved_state
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.tally import Sent
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.bins import KINDS, WIDTH
from mlflow_tfmon.stream.records import (
    Activations,
    EpochEnded,
    Facts,
    Histograms,
    LayerActivations,
    Logged,
    Lost,
    Paused,
    Record,
    RunEnded,
)
from mlflow_tfmon.translation.state import State, StateError
from mlflow_tfmon.translation.translation import Translation

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1e999,
    float("nan"),
    "",
    "x" * 99,
    [],
    [1],
    {},
    {"a": 1},
    [[]],
    ["<i8", 3, ""],
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3),
    max_leaves=6,
)


def training(first: int) -> list[Record]:
    """Records of all kinds that leave something to go on from."""
    step = first + 49
    rows = (
        np.random.default_rng(first)
        .integers(0, 9, (1, 1 + len(VARIABLES) * len(KINDS) * WIDTH))
        .astype(float)
    )
    rows[:, 0] = step
    return [
        *blocks(values(50, seed=first, first=first)), deep(np.array([step])), Histograms(0, BEGUN, rows),
        Logged(0, step, BEGUN + step, {"temperature": 1.0 / step, "odd": float("nan")}), Lost(0, step, step),
        EpochEnded(step // 50, step, BEGUN, {"loss": 1.0 / step}), Paused(BEGUN + step, BEGUN + step + 1),
        Activations(0, step, BEGUN, 8, (LayerActivations("a", "relu", 3, False, *[0.5] * 5),)),
        Facts(tags={"tfmon.seams": "12, 22"}), layout(stream=step, named=False),
        *blocks(values(3, first=1), stream=step),
    ]  # fmt: skip


def all_of(translation: Translation, records: list[Record]) -> list[Any]:
    found = [point for record in records for point in translation.take(record)]
    return [*found, *translation.settle()]


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """A moment, as it is written down."""
    begun = started("sqlite:///a")
    translation, sent = Translation(begun, Path("telemetry")), Sent()
    sent.tally.points(all_of(translation, [layout(), *training(1)]))
    sent.linkable |= {
        (point.key, point.step): point for point in translation.take(EpochEnded(9, 1, 0.0, {"a": 1.0}))
    }
    sent.models, sent.changed = {"models/a": 3}, {"a": "b"}
    told: dict[str, Any] = json.loads(
        json.dumps(saved_state.Moment(7, begun, translation, sent, BEGUN).state())
    )
    return told


def test_what_was_written_goes_on_as_it_would_have(written: dict[str, Any], tmp_path: Path) -> None:
    begun = started("sqlite:///a")
    one = Translation(begun, tmp_path / "one")
    all_of(one, [layout(), *training(1)])
    one.take(EpochEnded(9, 1, 0.0, {"a": 1.0}))
    two = saved_state.Moment.restored(State(written, "it"), lambda: tmp_path / "two").translation
    for first in (51, 101):
        assert all_of(one, training(first)) == all_of(two, training(first))
        assert one.flush(False) == two.flush(False)
        parts = [each.telemetry.finished() for each in (one, two)]
        assert [part.artifact for part in parts[0]] == [part.artifact for part in parts[1]] != []
        for mine, other in zip(*parts, strict=True):
            assert mine.save().read_bytes() == other.save().read_bytes()
    assert one.flush(True) == two.flush(True)
    assert (one.progress.text(), one.reached(), one.lost) == (two.progress.text(), two.reached(), two.lost)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        yield from places(one, (*path, key))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_in_it_is_read_or_refused(data: st.DataObject, written: dict[str, Any]) -> None:
    changed = copy.deepcopy(written)
    path = data.draw(st.sampled_from([one for one in places(written) if one]))
    value = data.draw(JSON | st.sampled_from(VALUES))
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[path[-1]] = value
    else:
        del holder[path[-1]]
    try:
        found = saved_state.Moment.restored(State(changed, "it"), lambda: Path("telemetry"))
    except StateError as error:
        assert "\n" not in str(error)[:200]
    else:
        assert isinstance(found, saved_state.Moment)


def test_an_array_that_unpacks_to_more_than_it_says_is_refused() -> None:
    bomb = base64.b64encode(zlib.compress(b"\0" * 10_000_000)).decode()
    with pytest.raises(StateError, match="bytes, not 24"):
        State({"a": ["<f8", 3, bomb]}, "it").array("a", "<f8")
    with pytest.raises(StateError, match="numbers, not"):
        State({"a": ["<f8", 10**12, bomb]}, "it").array("a", "<f8")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        "[]",
        "null",
        "{}",
        '{"format": "1"}',
        '{"format": 1, "version": "1"}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_one_that_cannot_be_read_is_said_in_a_line_that_names_the_file(
    text: str, store: str, run_id: str, home: Path
) -> None:
    ended = RunEnded(BEGUN + 9, "FINISHED", True)
    folder = write(home, started(store, run_id), layout(), *blocks(values(100)), ended)
    (folder / saved_state.FILE).write_text(text, "latin-1")
    one = Deliverer(folder)
    one.advance(trainer_gone=True, hurry=True)
    assert not one.done and str(folder / saved_state.FILE) in str(one.status.error)
    assert "\n" not in str(one.status.error) and len(str(one.status.error)) < 600
    one.close()
    (folder / saved_state.FILE).unlink()
    assert deliver(folder).done and not folder.exists()


def test_records_that_are_missing_without_one_are_told(
    store: str, run_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "_TRIM_BYTES", 10_000)
    journal = Journal.create(home)
    journal.append([started(store, run_id), layout(), *blocks(values(2000))])
    one = Deliverer(journal.folder)
    one.advance(hurry=True)
    one.close()
    journal.append([RunEnded(BEGUN, "FINISHED", True)])
    journal.close()
    kept = (journal.folder / saved_state.FILE).read_bytes()
    (journal.folder / saved_state.FILE).unlink()
    other = Deliverer(journal.folder)
    other.advance(trainer_gone=True, hurry=True)
    assert not other.done and str(journal.folder / saved_state.FILE) in str(other.status.error)
    other.close()
    (journal.folder / saved_state.FILE).write_bytes(kept)
    assert deliver(journal.folder).done


def test_nothing_in_the_package_can_run_what_it_reads() -> None:
    package = Path(mlflow_tfmon.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            for name in names:
                assert name.split(".")[0] not in (
                    "pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle",
                ), path  # fmt: skip
