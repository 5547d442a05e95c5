"""Tests that monitoring adds nothing to a step that makes a GPU and its host wait for each other."""

from __future__ import annotations

from collections import Counter

import pytest
import tensorflow as tf

from tests.devices import audit
from tests.devices.audited import BATCH, DAILY, FEATURES, FIGURES, PARTITIONS
from tests.devices.conftest import Script

pytestmark = pytest.mark.timeout(600)  # the first test waits for the trainings of all
RARE = [name for name in FIGURES if name not in DAILY]


def check(found: dict[str, object]) -> None:
    assert found["errors"] == [None, None]
    assert min(found["functions"]) >= 1, "no function that trains was seen"
    more = Counter(found["added"])
    assert not more, f"{len(more)} things that a GPU would suffer from:\n" + "\n".join(
        f"{count} x {text}" for text, count in more.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DAILY)
def test_a_step_crosses_to_the_host_no_more_than_unwatched(script: Script, name: str) -> None:
    check(script("audited", *DAILY, PARTITIONS)[name])


@pytest.mark.thorough
@pytest.mark.parametrize("name", RARE)
def test_nor_does_it_in_other_modes(script: Script, name: str) -> None:
    check(script("audited", *RARE)[name])


def test_tensorflow_places_it_so_that_no_batch_and_no_answer_is_sent_back(script: Script) -> None:
    found = script("audited", *DAILY, PARTITIONS)[PARTITIONS]
    assert found["unwatched"]["error"] is None and found["watched"]["error"] is None
    sent = {
        name: Counter((way, op) for way, op, _, _ in found[name]["sent"]) for name in ("unwatched", "watched")
    }
    assert sent["unwatched"], "TensorFlow placed all on one device"
    more = sent["watched"] - sent["unwatched"]
    back = [one for one in found["watched"]["sent"] if one[0] == "CPU:1 -> CPU:0" and more[one[0], one[1]]]
    assert not back, f"sent from the device to the host: {back}"
    large = [
        one for one in found["watched"]["sent"] if (one[3] or 0) >= BATCH * FEATURES and more[one[0], one[1]]
    ]
    assert not large, f"as large as a batch: {large}"


# -- the audit itself ----------------------------------------------------------------------------------------------
def findings(
    function: tf.types.experimental.PolymorphicFunction, *inputs: tf.Tensor
) -> list[tuple[str, tuple[str, ...]]]:
    with audit.executed() as calls:
        function(*inputs)
    return [(one.kind, one.ops) for one in audit.audit(calls[-1], whole=100)]


def test_the_audit_sees_what_a_gpu_would_suffer_from() -> None:
    small, large = tf.ones([2]), tf.ones([200])

    @tf.function
    def decides(x: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)

    assert findings(decides, small) == [(audit.TO_HOST, ("Greater", "StatelessIf"))]

    @tf.function
    def tells_time(x: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([x + 1]):
            return tf.timestamp()

    assert findings(tells_time, small) == [(audit.CONTROL, ("AddV2", "Timestamp"))]

    @tf.function
    def counts(x: tf.Tensor) -> tf.Tensor:  # int32 arithmetic is done on the host
        return tf.bitcast(x, tf.int32) * 2

    assert (audit.WHOLE, ("Bitcast", "Mul")) in findings(counts, large)
    assert (audit.WHOLE, ("Bitcast", "Mul")) not in findings(counts, small)

    @tf.function
    def wraps(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, tf.int64) % 3

    assert findings(wraps, small) == [(audit.COMPILED, ("FloorMod",))]

    @tf.function
    def on_the_host(x: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU:0"):
            return tf.cast(tf.identity(tf.timestamp()), tf.int64) % 3

    assert findings(on_the_host, small) == []


def test_the_audit_names_the_line() -> None:
    @tf.function
    def wraps(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, tf.int64) % 3

    with audit.executed() as calls:
        wraps(tf.ones([2]))
    [found] = audit.audit(calls[-1], whole=100)
    assert f"{__file__}:" in str(found) and not found.ours
