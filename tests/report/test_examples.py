"""Tests of the examples that a report shows: pictures as pictures, all else as tables."""

import base64
import io

import numpy as np
from PIL import Image

from mlflow_tfmon.reading.batches import KeptBatch
from mlflow_tfmon.report.examples import examples


def batch(step: int, inputs: np.ndarray, **about: object) -> KeptBatch:
    kept = tuple(range(len(inputs)))
    arrays = {"inputs": inputs, "targets": np.arange(len(inputs))}
    return KeptBatch(
        step, kind="spike", examples=len(inputs), kept=kept, odd=(2,), _read=lambda: arrays, **about
    )  # type: ignore[arg-type]


def test_a_picture_is_shown_as_one() -> None:
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 12, 10, 3))
    pixels[2, 0, 0, 0] = np.nan
    grey = pixels[..., 0]
    for inputs, mode in ((pixels, "RGB"), (grey, "L"), (grey[..., None], "L")):
        (found,) = examples([batch(3, inputs)])
        kind, _, content = found.picture.partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (kind, picture.mode, picture.size) == ("data:image/png;base64", mode, (10, 12))
        assert found.title == "step 3: example 2 of 4" and found.rows == [("targets", "2", "1.5")]


def test_all_else_is_a_table_with_what_is_farthest_off_first() -> None:
    values = np.random.default_rng(0).normal(size=(9, 30))
    values[2, 7], values[2, 3] = 50.0, np.nan
    (found,) = examples([batch(3, values)])
    assert not found.picture and len(found.rows) == 20
    assert [row[0] for row in found.rows[:2]] == ["inputs[3]", "inputs[7]"] and found.rows[0][1] == "nan"


def test_of_many_batches_the_worst_are_shown() -> None:
    many = [batch(step, np.zeros((3, 2)), loss=float(step % 5)) for step in range(1, 9)]
    losses = {one.step: one.loss for one in many}
    shown = [int(one.title.split(":")[0].removeprefix("step ")) for one in examples(many)]
    assert shown == sorted(sorted(losses, key=lambda step: -losses[step])[:4])
    (absent,) = examples([KeptBatch(5, text="The batch of step 5 could not be kept.")])
    assert (absent.title, absent.rows) == ("step 5", ())
