"""`mlflow-tfmon check RUN`: a gate for CI; its exit status tells whether a run passes."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon import tables
from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo, echo_written


class NoVerdictError(click.ClickException):
    """A run that cannot be judged, or a wrong input: neither passes, and neither says that the training is bad."""

    exit_code = 2

    @classmethod
    def of(cls, error: Exception) -> NoVerdictError:
        """What an error says to a user."""
        from mlflow.exceptions import MlflowException

        if isinstance(error, click.ClickException):
            return cls(error.format_message())
        said = str(error) or "no message"
        return cls(
            said if isinstance(error, (MlflowException, ValueError)) else f"{type(error).__name__}: {said}"
        )


@click.command(epilog=RUN_IS, short_help="Check a run: a gate for CI.")
@click.argument("reference", metavar="RUN")
@click.option("--baseline", metavar="RUN", help="A run to compare it with.")
@click.option(
    "--fail-on",
    metavar="WHAT",
    default="critical",
    show_default=True,
    help="Problems to fail on: critical, warning (any), or kinds, separated by commas.",
)
@click.option(
    "--metric",
    "conditions",
    metavar="CONDITION",
    multiple=True,
    help="A condition that must hold, such as 'val_accuracy>=0.9' or 'best(val_loss)<=0.3'. May be repeated.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json", "junit", "markdown"]),
    default="text",
    show_default=True,
    help="Form of the verdict.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the verdict to; it is printed as text then.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for an SVG of both losses; with --baseline. Markdown shows it from there.",
)
@store_option
def command(
    reference: str,
    baseline: str | None,
    fail_on: str,
    conditions: tuple[str, ...],
    format_: str,
    output: Path | None,
    picture: Path | None,
    tracking_uri: str | None,
) -> None:
    """Check a run: diagnose it again, and look at its metrics.

    The exit status is 0 if RUN passes, 1 if it fails: it has a problem of `--fail-on`, a condition of `--metric` does
    not hold, or it ended as FAILED or KILLED. It is 2 if that cannot be said: an input is wrong, a metric is not
    there, or not everything recorded has arrived.

    A condition is about the final value of an epoch metric (or of any other metric of the run), `best(METRIC)` about
    that of its best epoch. The setting `detectors` holds here too. Changes nothing in the run.
    """
    from mlflow_tfmon.problems.failing import Failing
    from mlflow_tfmon.report.condition import Condition
    from mlflow_tfmon.report.picture import losses
    from mlflow_tfmon.report.verdict import UNDECIDED, check
    from mlflow_tfmon.report.verdict_formats import FORMATS, markdown, text

    if picture is not None and baseline is None:
        raise click.UsageError("--picture shows the losses of two runs: give --baseline too.")

    try:
        failing = Failing.parsed(fail_on)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--fail-on") from error
    try:
        asked = [Condition.parsed(one) for one in conditions]
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--metric") from error
    try:
        run_id = find_run(reference, tracking_uri)
        baseline_id = find_run(baseline, tracking_uri) if baseline else None
        verdict = check(run_id, failing, asked, baseline_id, tracking_uri)
    except Exception as error:
        raise NoVerdictError.of(error) from error
    try:
        shown = "" if picture is None else picture.as_posix()
        written = markdown(verdict, shown) if format_ == "markdown" else FORMATS[format_](verdict)
    except Exception as error:
        raise NoVerdictError.of(error) from error
    if picture is not None and verdict.baseline is not None:
        base = verdict.baseline
        tables.write("--picture", picture, losses(base.losses, base.parting.step if base.parting else None))
    if output is not None:
        tables.write("--output", output, written)
        echo(text(verdict))
    else:
        try:
            echo_written(written)
        except UnicodeEncodeError as error:
            raise NoVerdictError(
                f"this terminal cannot show {error.object[error.start]!a}: set PYTHONIOENCODING=utf-8, or give "
                "--output FILE."
            ) from error
    if verdict.status == UNDECIDED:
        echo(f"mlflow-tfmon: run {run_id} cannot be judged: {verdict.why}.", err=True)
    raise click.exceptions.Exit(verdict.status)
