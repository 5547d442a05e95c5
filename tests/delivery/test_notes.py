"""Tests of what delivery reads besides the journal: its own files, and a store's data of earlier recordings.

Whatever is in them, the recording is delivered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.delivery import existing
from mlflow_tfmon.delivery.existing import Earlier
from mlflow_tfmon.delivery.status import FILE, Status, read_status
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.continuation import Past, PastStream, mark
from mlflow_tfmon.stream.records import EpochEnded, Problems, Record, RunEnded
from mlflow_tfmon.tags import REACHED_TAG

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3),
    max_leaves=6,
)
HOSTILE = [
    "",
    "[]",
    "null",
    "7",
    '{"series": {"batch/loss": "x"}}',
    '{"series": 1}',
    "[" * 100_000,
    '[1, {"kind": 2}]',
]
PAST = Past((PastStream(0, "", "net", "net", 50, mark(["dense.kernel"])),), {"": 1}, begun=int(BEGUN * 1e3))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*Status.__dataclass_fields__, "other"]), JSON) | JSON)
def test_whatever_a_status_holds_it_is_read(tmp_path_factory: pytest.TempPathFactory, found: Any) -> None:
    folder = tmp_path_factory.mktemp("recording")
    (folder / FILE).write_text(json.dumps(found))
    status = read_status(folder)
    whole = (status.delivered, status.flushed, status.waiting)
    assert all(type(one) is int and one >= 0 for one in whole) and type(status.complete) is bool
    assert all(one is None or isinstance(one, str) for one in (status.run_id, status.error))
    assert all(isinstance(one, str) for of in (status.rejected, status.models) for one in of.values())
    assert status.tried >= 0


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*Past.__dataclass_fields__, "other"]), JSON | st.just([PAST.as_dict()["streams"][0]])
    )
    | JSON
)
def test_whatever_a_tag_says_of_earlier_recordings_it_is_read(found: Any) -> None:
    past = Past.from_text(json.dumps(found))
    assert all(type(one.steps) is int and isinstance(one.prefix, str) for one in past.streams)
    assert type(past.begun) is int and all(isinstance(one, str) for one in past.seams)


@pytest.mark.slow
def test_a_recording_whose_notes_are_none_is_delivered(
    store: str, client: mlflow.MlflowClient, home: Path
) -> None:
    for text in HOSTILE:
        run_id = client.create_run("0").info.run_id
        folder = write(home, *records(store, run_id, 1))
        for name in (FILE, existing._FILE):
            (folder / name).write_text(text)
        check(client, run_id, store, folder, 50)


@pytest.mark.slow
def test_a_recording_is_delivered_whatever_its_run_says_of_those_before(
    store: str, client: mlflow.MlflowClient, home: Path
) -> None:
    for text in HOSTILE:
        run_id = client.create_run("0").info.run_id
        check(client, run_id, store, write(home, *records(store, run_id, 1)), 50)
        for path in ("delivery.json", "problems.json"):
            client.log_text(run_id, text, f"tfmon/{path}")
        check(client, run_id, store, write(home, *records(store, run_id, 51, past=PAST.as_dict())), 100)
        client.set_tag(run_id, REACHED_TAG, text)
        assert Past.from_text(text) == Past()


def test_problems_that_are_none_are_left_out() -> None:
    one = {
        "kind": "a",
        "severity": "warning",
        "first_step": 1,
        "variables": [],
        "evidence": "b",
        "advice": "c",
    }
    wrong: list[Any] = [
        7,
        None,
        [],
        {},
        {**one, "kind": 3},
        {**one, "first_step": "x"},
        {**one, "variables": 7},
    ]
    known = existing._known([*wrong, one])
    assert [each["kind"] for each in known] == ["a"]
    assert len(Earlier(problems=known).with_problems(Problems(1, 0.0, ())).found) == 1
    for each in wrong:
        with pytest.raises(ValueError, match="not a problem"):
            Problem.from_dict(each)


def records(uri: str, run_id: str, first: int, **changes: Any) -> list[Record]:
    problem = {
        "kind": "plateau",
        "severity": "warning",
        "first_step": 1,
        "variables": (),
        "evidence": "",
        "advice": "",
    }
    begun = started(uri, run_id, start_time=BEGUN + first, **changes)
    return [
        begun, layout(), *blocks(values(50, first=first)), EpochEnded(first // 50, first + 49, BEGUN, {"loss": 0.5}),
        Problems(first, BEGUN, (problem,)), RunEnded(BEGUN + 100, "FINISHED", True),
    ]  # fmt: skip


def check(client: mlflow.MlflowClient, run_id: str, uri: str, folder: Path, steps: int) -> None:
    assert deliver(folder).done and not folder.exists()
    run = client.get_run(run_id)
    assert run.data.tags["tfmon.delivery"] == "complete" and "tfmon.refused" not in run.data.tags
    assert load_run(run_id, uri).steps.index.tolist() == list(range(1, steps + 1))
    points = [point.step for point in client.get_metric_history(run_id, "batch/loss")]
    assert sorted(points) == list(range(1, steps + 1))
