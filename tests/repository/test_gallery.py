"""Tests of the gallery: each kind of problem has a picture of a training that has it, and of one that is fixed."""

import subprocess
import sys

import pytest

from mlflow_tfmon.detectors import KINDS
from tests.notebooks import ROOT


def kinds() -> list[str]:
    """As the table of docs/problems.md names them."""
    text = (
        (ROOT / "docs" / "problems.md")
        .read_text()
        .partition("| kind | what is found |")[2]
        .partition("\n\n")[0]
    )
    return [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]


def test_every_kind_has_a_section_with_a_picture_and_a_fix():
    sections = (ROOT / "docs" / "gallery.md").read_text().split("\n### ")[1:]
    # No picture of what takes minutes and gigabytes, or several workers.
    without = {"memory_growth", "desync", "straggler", "worker_stopped"}
    assert sorted([*kinds(), *without]) == list(KINDS)
    assert sorted(one.split("\n")[0] for one in sections) == sorted(kinds())
    for one in sections:
        kind = one.split("\n")[0]
        assert f"(images/problems/{kind}.png)" in one and "**Fix:**" in one
        assert (ROOT / "docs" / "images" / "problems" / f"{kind}.png").stat().st_size < 100_000


@pytest.mark.thorough
def test_a_picture_is_drawn_of_a_problem_that_is_found_and_fixed(tmp_path, home):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gallery", "dead_relu", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "dead_relu: dead_relu, stagnant_weights; fixed: none\n"
    assert (tmp_path / "dead_relu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough
def test_problems_that_hand_made_recordings_do_not_show_are_found_and_fixed(tmp_path, home):
    """Of float16, of several outputs and of two optimizers: in real trainings, broken and fixed."""
    of = ["loss_scale_collapse", "output_not_learning", "one_class_predicted", "generator_collapse"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gallery", *of, "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(of)
    assert all(line.endswith("fixed: none") for line in done.stdout.splitlines())


@pytest.mark.thorough
def test_an_unknown_kind_is_told_in_a_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gallery", "dread"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 2 and "unknown kind: dread" in done.stderr.splitlines()[-1]
