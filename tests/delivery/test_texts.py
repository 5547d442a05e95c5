"""Tests of data that no store accepts: changed or left out, and named; the rest arrives, and the run ends."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import mlflow
from hypothesis import given
from hypothesis import strategies as st
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    EpochEnded,
    Facts,
    Logged,
    Problems,
    Record,
    RunEnded,
    Text,
    Variable,
)
from mlflow_tfmon.tracking.texts import said, sayable

NAME = os.fsdecode(b"caf\xe9.jpg")  # a file name that is not UTF-8
ANY_TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\ud800", "\0", "a\udce9", "\ud83d\ude00"]
)
NO_FIGURES = st.none() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just(10**400)


def texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in texts_in(one)]
    if isinstance(value, (list, tuple)):
        return [text for one in value for text in texts_in(one)]
    return []


@given(st.text(st.characters()))
def test_what_can_be_said_is_said_as_it_is(text: str) -> None:
    told = sayable(text)
    told.encode()
    assert "\0" not in told and sayable(told) == told
    try:
        text.encode()
    except UnicodeEncodeError:
        assert told != text
    else:
        assert told == text or "\0" in text


@given(
    texts=st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
    figures=st.dictionaries(ANY_TEXT, st.floats() | st.integers() | NO_FIGURES, max_size=4),
    step=st.integers() | st.none(),
    text=ANY_TEXT,
)
def test_every_record_can_be_said(
    texts: dict[str, str], figures: dict[str, Any], step: Any, text: str
) -> None:
    records: list[Record] = [
        Facts(texts, texts, tuple((key, value, step) for key, value in figures.items()), 0.0, texts),
        EpochEnded(step, 1, BEGUN, figures), Logged(0, step, BEGUN, figures), RunEnded(BEGUN, "FAILED", True, text),
        Text(text, text), DatasetUsed(texts, text, texts), Problems(1, BEGUN, ({"kind": text, "evidence": text},)),
        layout(model=text, variables=(Variable(text, (1,), True),)), started("sqlite:///a", run_name=text, tags=texts),
    ]  # fmt: skip
    for record in records:
        told, changed = said(record)
        assert type(told) is type(record)
        for one in texts_in(dataclasses.asdict(told)):
            one.encode()
            assert "\0" not in one
        assert (told is record) == (changed == {})
        for name in changed:
            name.encode()
        again, none = said(told)
        assert again is told and none == {}
        for figure in [*getattr(told, "values", {}).values(), *getattr(told, "metrics", {})] * isinstance(
            told, Logged
        ):
            float(figure)
        json.dumps(dataclasses.asdict(told)).encode()


def test_what_no_store_takes_holds_nothing_up(store: str, client: mlflow.MlflowClient, home: Path) -> None:
    begun = started(store, None, run_name=f"run of {NAME}", tags={f"tag {NAME}": NAME, "who": "x" * 9000})
    variables = (Variable(f"{NAME}.kernel", (4, 3), True), *layout().variables[1:])
    facts = Facts(
        {"data": NAME, "nul": "a\0b", "long": "y" * 7000, f"of {NAME}": "z"}, {"note": f"{NAME}\0"},
        (("best/loss", "no number", 1), (f"best/{NAME}", 0.25, 1), ("far", 1.0, 2**70)), BEGUN,  # type: ignore[arg-type]
    )  # fmt: skip
    folder = write(
        home, begun, facts, layout(variables=variables), *blocks(values(80)), Text("note.txt", f"of {NAME}"),
        Logged(0, 1, BEGUN, {NAME: 1.0, "odd": None}), Text(f"{NAME}.txt", "a"),  # type: ignore[dict-item]
        EpochEnded(0, 80, BEGUN, {NAME: 0.5, "loss": 0.25, "odd": "x", "big": 10**400}),  # type: ignore[dict-item]
        RunEnded(BEGUN + 9, "FAILED", True, f"FileNotFoundError: {NAME}" + "!" * 9000),
    )  # fmt: skip
    done = deliver(folder)
    assert done.done and done.status.error is None and not folder.exists()
    (run,) = client.search_runs(["0"])
    tags = run.data.tags
    assert (run.info.status, run.info.run_name) == ("FAILED", r"run of caf\xe9.jpg")
    assert tags["tfmon.delivery"] == "complete" and "FileNotFoundError: caf" in tags["mlflow.note.content"]
    assert (run.data.params["data"], run.data.params["nul"]) == (r"caf\xe9.jpg", r"a\x00b")
    assert len(run.data.params["long"]) == 6000 and run.data.params["of caf_xe9.jpg"] == "z"
    assert run.data.metrics["loss"] == 0.25 and run.data.metrics["best/caf_xe9.jpg"] == 0.25
    assert len(load_run(run.info.run_id, store).steps) == 80
    assert {"grad_norm/caf_xe9.jpg.kernel", "batch/caf_xe9.jpg"} <= run.data.metrics.keys()
    refused = tags["tfmon.refused"]
    for name in (
        "data",
        "nul",
        "param long",
        "note",
        "best/loss",
        "far",
        r"caf\xe9.jpg",
        "odd",
        "big",
        "tag ",
    ):
        assert name in refused, (name, refused)
