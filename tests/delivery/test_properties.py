"""Property tests: whatever the settings, names and values, the store holds what was recorded."""

from __future__ import annotations

import math
from pathlib import Path

import mlflow
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import BEGUN, blocks, deliver, layout, started, values, write

from mlflow_tfmon.delivery.tally import load_manifest, missing
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import EpochEnded, Facts, Record, RunEnded

NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)  # others are changed
FIGURES = st.dictionaries(NAMES, st.floats(width=64), min_size=1, max_size=4)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epochs=st.lists(FIGURES, max_size=4),
    losses=st.lists(st.floats(width=64), min_size=1, max_size=60),
    tags=st.dictionaries(st.text(max_size=12), st.text(max_size=20), max_size=3),
    max_points=st.integers(20, 320),
    max_variables=st.integers(0, 4),
    total=st.none() | st.integers(1, 200),
    size=st.integers(1, 30),
)
def test_what_was_recorded_is_what_the_store_holds(
    epochs: list[dict[str, float]],
    losses: list[float],
    tags: dict[str, str],
    max_points: int,
    max_variables: int,
    total: int | None,
    size: int,
    store: str,
    home: Path,
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    rows = values(len(losses))
    rows[:, 4] = losses
    ended: list[Record] = [EpochEnded(at, len(losses), BEGUN + at, one) for at, one in enumerate(epochs)]
    begun = started(store, run_id, max_points=max_points, max_variables=max_variables)
    facts = Facts(tags={f"t{key}": value for key, value in tags.items()}, time=BEGUN)
    end = RunEnded(BEGUN + 99, "FINISHED", True)
    done = deliver(write(home, begun, layout(total), *blocks(rows, size), *ended, facts, end))
    assert done.done and done.status.error is None

    recorded = load_run(run_id, store)
    np.testing.assert_array_equal(recorded.steps["loss"], losses)
    for at, figures in enumerate(epochs):
        for name, value in figures.items():
            np.testing.assert_array_equal(recorded.epochs.loc[at, name], value)
    run = client.get_run(run_id)
    charted = [key for key in run.data.metrics if key.startswith("grad_norm/")]
    assert len(charted) == min(max_variables, 2)  # two of the three are kernels
    finite = {(step, loss) for step, loss in enumerate(losses, 1) if math.isfinite(loss)}
    points = client.get_metric_history(run_id, "batch/loss") if "batch/loss" in run.data.metrics else []
    assert len(points) <= max_points and {(one.step, one.value) for one in points} <= finite
    # Where there is room for all (see `thinning`): three quarters up to an end that is known, else the first fifth.
    even = max_points * 3 // 4 - 4
    room = max_points // 5 if total is None else total if total <= even else 0
    if len(losses) <= room:
        assert len(points) == len(finite)
    if finite:  # the extremes are kept
        wanted = {f([loss for _, loss in finite]) for f in (min, max)}
        assert wanted <= {one.value for one in points}
    manifest = load_manifest(client, run_id)
    assert manifest is not None and missing(client, run_id, manifest) == []
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
