"""Tests of the check: conditions, the verdict of a run, its formats, and the exit status of the command."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import mlflow
import numpy as np
import pytest

from mlflow_tfmon import cli
from mlflow_tfmon.detectors import KINDS, Problem
from mlflow_tfmon.problems.failing import Failing
from mlflow_tfmon.report import picture, verdict_formats
from mlflow_tfmon.report.comparison import Parting
from mlflow_tfmon.report.condition import Condition
from mlflow_tfmon.report.verdict import Baseline, Verdict
from mlflow_tfmon.stream.records import EpochEnded, Facts, Record, Steps
from tests.report import recordings

ROOT = Path(__file__).parents[2]
STEPS = 400
NAN = float("nan")
CAUSE = Problem("learning_rate_too_high", "critical", 0, (), "Steps of 490%.", "Lower it to 0.0006.")
EFFECT = Problem(
    "dead_relu", "warning", 45, ("net.<b>|x@team</b>",), "100% are\x1b[2J zero.", "",
    consequence_of="learning_rate_too_high",
)  # fmt: skip


def metrics(*epochs: dict[str, float]) -> list[Record]:
    """A training whose epochs have these metrics."""
    records = [one for one in recordings.training(STEPS) if not isinstance(one, EpochEnded)]
    each = STEPS // len(epochs)
    return records + [
        EpochEnded(at, each * (at + 1), recordings.recordings.BEGUN + at, found)
        for at, found in enumerate(epochs)
    ]


@pytest.fixture
def deliver(store: str, home: Path) -> Callable[..., str]:
    return lambda *records, name="a run": recordings.delivered(store, home, *records, name=name)


# -- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values", "value", "holds"),
    [
        ("val_accuracy>=0.9", [0.5, 0.95, 0.9], 0.9, True),
        ("val_accuracy > 0.9", [0.5, 0.95, 0.9], 0.9, False),
        ("best(val_accuracy)>0.9", [0.5, 0.95, 0.9], 0.95, True),
        ("best(val_loss) <= 0.3", [0.9, 0.2, 0.4], 0.2, True),
        ("val_loss<=3e-1", [0.9, 0.2, 0.4], 0.4, False),
        ("best(loss)==0.25", [0.1, 0.24, 0.9], 0.24, False),
        ("loss==0.25", [0.5, 0.25], 0.25, True),
        ("loss<-1", [-2.0], -2.0, True),
        ("a<b>c>=1", [2.0], 2.0, True),  # a name may have anything in it
        ("loss<=1", [0.5, NAN], NAN, False),  # a final value that is not finite is no earlier one
        ("best(loss)<=1", [0.5, NAN], 0.5, True),
        ("best(loss)<=1", [NAN, -math.inf], -math.inf, False),
        ("accuracy>=0", [], None, False),
    ],
)
def test_a_condition_is_on_the_final_value_or_on_the_best(
    text: str, values: list[float], value: float | None, holds: bool
) -> None:
    outcome = Condition.parsed(f" {text} ").outcome(dict(enumerate(values)))
    np.testing.assert_equal(outcome.value, value)
    assert outcome.holds == holds and outcome.condition.text == text


def test_the_name_of_a_condition_ends_at_its_sign() -> None:
    assert Condition.parsed("a<b>c>=1").metric == "a<b>c"
    assert Condition.parsed("best(generator.val_loss)<2").metric == "generator.val_loss"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "val_accuracy",
        "val_accuracy=>0.9",
        "val_accuracy=0.9",
        ">=0.9",
        "loss<nan",
        "loss<=",
        "loss<1<2 x",
    ],
)
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no condition; write .* in quotes"):
        Condition.parsed(text)


# -- formats ----------------------------------------------------------------------------------------------------------


def verdict(**changes: object) -> Verdict:
    """A verdict on a run with one cause, one consequence, and a condition that fails."""
    usual: dict[str, object] = {
        "run_id": "8f3a51", "name": "digits *1*", "ended": "FINISHED", "complete": True, "steps": 1200, "epochs": 12,
        "problems": (CAUSE, EFFECT), "failing": Failing.parsed("critical"),
        "outcomes": tuple(
            Condition.parsed(text).outcome(values)
            for text, values in (
                ("val_accuracy>=0.9", {0: 0.2, 1: 0.41}),
                ("best(val_loss)<=0.3", {0: 0.25, 1: NAN}),
            )
        ),
        "baseline": Baseline(
            "77aa", "base", {"loss": (0.5, 0.25), "val_f1": (None, 0.75), "acc": (NAN, 0.5)},
            Parting(12, "head.kernel", 0.5, 1200), "digits diverges from base at step 12.",
        ),
        "metrics": ("loss", "val_loss", "val_accuracy"),
    }  # fmt: skip
    return Verdict(**{**usual, **changes})  # type: ignore[arg-type]


def test_a_verdict_fails_before_it_is_undecided_and_passes_only_if_all_is_known() -> None:
    unknown = (Condition.parsed("val_acuracy>=0.9").outcome({}),)
    held = (Condition.parsed("loss<=1").outcome({0: 0.5}),)
    good = verdict(problems=(), outcomes=held)
    assert (good.word, good.status, good.why) == ("passed", 0, "no problem was found, 1 condition met")
    assert verdict(problems=(EFFECT,), outcomes=()).word == "passed"  # which is a warning
    assert verdict(outcomes=held).why == "learning_rate_too_high (critical)"
    assert verdict(problems=(), outcomes=held, ended="FAILED").why == "the run ended as FAILED"
    assert verdict(problems=(), outcomes=held, ended="RUNNING").word == "passed"  # further things go on in it
    assert verdict(outcomes=unknown, complete=False).status == 1
    missing = verdict(problems=(), outcomes=unknown)
    assert missing.status == 2 and "no metric 'val_acuracy': did you mean 'val_accuracy'?" in missing.why
    late = verdict(problems=(), outcomes=held, complete=False)
    assert late.status == 2 and "mlflow-tfmon sync" in late.why
    assert verdict(problems=(), complete=False).status == 2  # its metrics may still change
    assert verdict(complete=False).status == 1  # its critical problem is there
    assert verdict(problems=(), outcomes=held, steps=0).why.startswith("no step was recorded")
    short = verdict(problems=(), outcomes=held, steps=12)
    assert short.status == 0 and "in 12 steps (most kinds are only found after 30)" in short.why


def test_the_text_has_the_verdict_first_and_no_control_characters() -> None:
    lines = verdict_formats.text(verdict()).splitlines()
    assert lines[0] == (
        "failed: run digits *1* (8f3a51): learning_rate_too_high (critical); val_accuracy>=0.9 does not hold: 0.41"
    )
    assert lines[1].startswith(
        "critical: learning_rate_too_high from the start: Steps of 490%. Lower it to 0.0006."
    )
    assert lines[2].startswith("warning: dead_relu") and lines[2].endswith(
        "A consequence of learning_rate_too_high."
    )
    assert "\x1b" not in lines[2]
    assert lines[3:5] == [
        "val_accuracy>=0.9: 0.41: does not hold",
        "best(val_loss)<=0.3: 0.25 (epoch 1): holds",
    ]
    assert [line.split() for line in lines[5:9]] == [
        ["METRIC", "RUN", "BASELINE", "CHANGE"],
        ["loss", "0.5", "0.25", "+0.25"],
        ["val_f1", "-", "0.75", "-"],
        ["acc", "nan", "0.5", "+nan"],
    ]
    assert lines[9] == "digits diverges from base at step 12."


def test_json_is_strict_and_has_all_of_it() -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    found = json.loads(verdict_formats.as_json(verdict()), parse_constant=refuse)
    assert found["verdict"] == "failed" and found["run"]["id"] == "8f3a51" and len(found["why"]) == 2
    assert [one["fails"] for one in found["problems"]] == [True, False]
    assert {**found["problems"][0], "fails": 0, "variables": ()} == {**dataclasses.asdict(CAUSE), "fails": 0}
    assert found["conditions"][1] == {
        "condition": "best(val_loss)<=0.3", "value": 0.25, "at": 0, "holds": True,
    }  # fmt: skip
    assert found["baseline"]["metrics"]["acc"] == {"run": "nan", "baseline": 0.5}
    assert found["baseline"]["parting"]["step"] == 12


def test_junit_has_a_case_for_each_kind_whatever_was_found() -> None:
    root = ElementTree.fromstring(verdict_formats.junit(verdict()))
    (suite,) = root.findall("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert set(cases) == {*KINDS, "val_accuracy>=0.9", "best(val_loss)<=0.3", "ended and recorded"}
    assert {name for name, case in cases.items() if case.find("failure") is not None} == {
        "learning_rate_too_high",
        "val_accuracy>=0.9",
    }
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(cases)), "2", "0")
    failure = cases["learning_rate_too_high"].find("failure")
    assert failure is not None and "Lower it to 0.0006." in str(failure.get("message"))
    assert "consequence of learning_rate_too_high" in str(cases["dead_relu"].findtext("system-out"))
    odd = Problem("odd\ufffe", "critical", 0, (), "\x00\x1b\ud800<&>]]>", "")
    one = ElementTree.fromstring(verdict_formats.junit(verdict(problems=(odd,), complete=False, outcomes=())))
    assert one.find(".//testcase[@name='odd\ufffd']/failure") is not None
    late = one.find(".//testcase[@name='ended and recorded']/error")
    assert late is not None and "sync" in str(late.text)


def test_markdown_says_the_verdict_first_and_names_stay_text() -> None:
    page = verdict_formats.markdown(verdict())
    lines = page.splitlines()
    assert lines[0] == "## Training check: failed"
    assert lines[2].startswith("Run **digits \\*1\\***: learning\\_rate\\_too\\_high (critical); ")
    assert page.index("learning\\_rate\\_too\\_high** (critical, fails the check)") < page.index(
        "dead\\_relu** (warning)"
    )
    assert "<b>" not in page.replace("\\<b\\>", "") and "@team" not in page and "\x1b" not in page
    assert "| best(val\\_loss)\\<=0.3 | 0.25 (epoch 1) | holds |" in lines
    assert "| loss | 0.5 | 0.25 | +0.25 |" in lines and "digits diverges from base at step 12." in lines


def test_noise_is_a_column_where_it_is_known_and_the_picture_is_shown_from_where_it_is() -> None:
    base = verdict().baseline
    assert base is not None
    noisy = verdict(baseline=dataclasses.replace(base, noise={"loss": 0.0125}, earlier=4))
    lines = verdict_formats.markdown(noisy, "out/check.svg").splitlines()
    assert "| metric | run | baseline | change | noise |" in lines and "|---|---:|---:|---:|---:|" in lines
    assert "| loss | 0.5 | 0.25 | +0.25 | 0.013 |" in lines and "| val\\_f1 | - | 0.75 | - | - |" in lines
    assert any(line.startswith("Noise: the median absolute deviation over 4 earlier runs") for line in lines)
    assert "![Loss of both runs](<out/check.svg>)" in lines
    assert ["METRIC", "RUN", "BASELINE", "CHANGE", "NOISE"] in [
        line.split() for line in verdict_formats.text(noisy).splitlines()
    ]


def test_the_picture_has_both_losses_with_their_extremes_and_where_they_part() -> None:
    first, second = [(1, 2.0), (50, 80.0), (100, 0.5)], [(1, 2.0), (100, 0.4)]
    root = ElementTree.fromstring(picture.losses([("<b>one", first), ("two", second)], parting=50))
    space = "{http://www.w3.org/2000/svg}"
    drawn = [
        [tuple(map(float, point.split(","))) for point in one.attrib["points"].split()]
        for one in root.iter(f"{space}polyline")
    ]
    (start, peak, end), _ = drawn
    assert [len(one) for one in drawn] == [3, 2] and start[0] < peak[0] < end[0]
    assert peak[1] < start[1] < end[1] < drawn[1][1][1]  # downwards, and logarithmic: 80 is 200 times 0.4
    texts = [one.text for one in root.iter(f"{space}text")]
    assert texts == ["80", "0.4", "step 1", "step 100", "<b>one", "two", "loss (log)"]
    (line,) = (one.attrib["d"] for one in root.iter(f"{space}path") if "stroke-dasharray" in one.attrib)
    assert line.startswith(f"M{peak[0]}")
    assert len(list(ElementTree.fromstring(picture.losses([("one", []), ("two", [])])).iter())) > 3


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_healthy_run_passes_and_one_with_a_critical_problem_fails(
    deliver: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = deliver(*recordings.training(STEPS), name="good")
    bad = deliver(*recordings.training(STEPS, nan_at=200), name="bad")
    assert cli.main(["check", good]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"passed: run good ({good}): ") and err == ""
    assert cli.main(["check", "bad"]) == 1
    assert "nan_or_inf (critical)" in capsys.readouterr().out.splitlines()[0]
    assert cli.main(["check", bad, "--fail-on", "overfitting"]) == 0
    capsys.readouterr()
    assert cli.main(["check", bad, "--fail-on", "nan_or_inf,overfitting", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "failed"
    report = tmp_path / "junit.xml"
    assert cli.main(["check", bad, "--format", "junit", "--output", str(report)]) == 1
    assert capsys.readouterr().out.startswith("failed: run bad")  # as text, for the job's log
    assert ElementTree.parse(report).find(".//testcase[@name='nan_or_inf']/failure") is not None


def test_conditions_are_on_what_was_recorded_and_on_the_metrics_of_the_run(
    deliver: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = deliver(
        *metrics({"loss": 1.0, "val_accuracy": 0.8}, {"loss": 0.5, "val_accuracy": 0.95}, {"loss": NAN}),
        name="a",
    )
    client = mlflow.MlflowClient()
    for step, value in enumerate((0.97, 0.91)):
        client.log_metric(run_id, "test_accuracy", value, step=step)
    holds = {
        "val_accuracy>=0.95": True,  # of the last epoch that has one
        "best(loss)<=0.5": True,
        "loss<=0.5": False,  # which is NaN: MLflow has no such value, and would tell the one before
        "test_accuracy>=0.95": False,
        "best(test_accuracy)>=0.95": True,
    }
    asked = [word for condition in holds for word in ("--metric", condition)]
    assert cli.main(["check", run_id, "--fail-on", "dead_relu", "--format", "json", *asked]) == 1
    found = json.loads(capsys.readouterr().out)["conditions"]
    assert {one["condition"]: one["holds"] for one in found} == holds
    assert found[2]["value"] == "nan"


def test_the_comparison_tells_metrics_their_noise_and_the_first_step_that_differs(
    deliver: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_accuracy(accuracy: float) -> list[Record]:
        return [
            dataclasses.replace(one, metrics={**one.metrics, "val_accuracy": accuracy})
            if isinstance(one, EpochEnded)
            else one
            for one in recordings.training(STEPS)
        ]

    base = deliver(*recordings.training(STEPS), name="base")
    for accuracy in (0.52, 0.53):
        deliver(*with_accuracy(accuracy), Facts(params={"seed": str(accuracy)}))
    deliver(*with_accuracy(0.9), Facts(params={"rate": "0.3"}))  # is not comparable
    records = recordings.training(STEPS)
    for at, record in enumerate(records):
        if isinstance(record, Steps):
            record.values[119:, len(recordings.COLUMNS) + 1] *= 1.001  # the gradient of the second kernel
        elif isinstance(record, EpochEnded):
            found = {**record.metrics, "loss": record.metrics["loss"] + 0.125}
            records[at] = dataclasses.replace(record, metrics=found)
    other = deliver(*records, name="other")
    assert cli.main(["check", other, "--baseline", "base", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["baseline"]
    assert found["id"] == base and found["metrics"]["loss"] == {"run": 0.525, "baseline": 0.4}
    assert (found["parting"]["step"], found["parting"]["variable"]) == (120, recordings.KERNELS[1])
    assert found["earlier"] == 3 and found["noise"]["loss"] == 0
    assert found["noise"]["val_accuracy"] == pytest.approx(
        np.median(np.abs(np.array([0.5, 0.52, 0.53]) - 0.52))
    )
    drawn = tmp_path / "losses.svg"
    arguments = ["check", other, "--baseline", base, "--format", "markdown", "--picture", str(drawn)]
    assert cli.main(arguments) == 0
    assert f"![Loss of both runs](<{drawn}>)" in capsys.readouterr().out
    names = [one.text for one in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert names[4:6] == ["other", "base"]
    assert cli.main(["check", other, "--baseline", base]) == 0
    out = capsys.readouterr().out
    assert "other diverges from base at step 120 (largest difference: gradient of net.second.kernel" in out
    assert "validation_loss" not in out and "+0.125" in out
    assert cli.main(["check", other, "--baseline", other]) == 2
    assert "give another run as the baseline" in capsys.readouterr().err


def test_a_run_that_broke_off_fails_and_one_that_has_not_arrived_is_undecided(
    deliver: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, client = deliver(*recordings.training(STEPS)), mlflow.MlflowClient()
    client.set_terminated(run_id, "KILLED")
    assert cli.main(["check", run_id]) == 1
    assert "the run ended as KILLED" in capsys.readouterr().out
    client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, "tfmon.delivery", "incomplete")
    assert cli.main(["check", run_id]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("undecided: ") and err.count("\n") == 1 and "mlflow-tfmon sync" in err


def test_each_wrong_input_ends_with_2_and_one_line_that_says_what_to_do(
    deliver: Callable[..., str], store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = deliver(*recordings.training(STEPS), name="good")
    unwatched = mlflow.MlflowClient().create_run("0", run_name="unwatched").info.run_id
    absent = tmp_path / "absent" / "report.xml"
    for arguments, said in {
        ("nothing",): "there is no run 'nothing'",
        (unwatched,): "call mlflow_tfmon.autolog() before the training",
        (run_id, "--baseline", "nothing"): "there is no run 'nothing'",
        (run_id, "--baseline", unwatched): "call mlflow_tfmon.autolog() before the training",
        (run_id, "--fail-on", "critcal"): "'critcal' is no severity",
        (run_id, "--metric", "accuracy"): "in quotes, such as 'val_accuracy>=0.9'",
        (run_id, "--metric", "acuracy>=0.1"): "did you mean 'accuracy'?",
        (run_id, "--metric", "zzz>=0.1"): "the run has loss, val_loss, accuracy",
        (run_id, "--format", "xml"): "'junit'",
        (run_id, "--picture", "x.svg"): "give --baseline too",
        (run_id, "--output", str(absent)): "name a file in a folder that is there",
        (run_id, "--tracking-uri", f"sqlite:///{absent}"): "Check --tracking-uri",
    }.items():
        assert cli.main(["check", *arguments]) == 2, arguments
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("mlflow-tfmon: ") and said in err, (arguments, err)


@pytest.mark.thorough
def test_the_benchmark_counts_what_the_command_fails(tmp_path: Path) -> None:
    """Of two trainings of which one fails; `aside`, the held-out ones, takes long."""
    command = [sys.executable, "-m", "benchmarks.detection", "seen", "--only", "mlp logits", "--keep"]
    done = subprocess.run(
        [*command, str(tmp_path), "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {line[:42].strip(): line[42:].split() for line in done.stdout.splitlines()}
    for what in ("critical", "warning"):
        assert rows[f"mlflow-tfmon check --fail-on {what}"] == ["1", "of", "1", "0", "of", "1", "0"], (
            done.stdout
        )
