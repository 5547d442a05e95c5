"""Every tag that this package sets, all named `tfmon.…`: other tools read them, so they keep their names."""

from __future__ import annotations

PREFIX = "tfmon."
# -- of a run: its delivery -------------------------------------------------------------------------------------------
DELIVERY_TAG = "tfmon.delivery"  # "streaming", "complete" or "incomplete"
RECORDING_TAG = "tfmon.recording"  # the recording for which delivery made the run
# How far the recordings have come, for the one that goes on (`stream.continuation.Past`). MLflow's page does not show
# people the tags of this prefix.
REACHED_TAG = "mlflow.tfmon.reached"
PROGRESS_TAG = "tfmon.progress"  # the same in words
REFUSED_TAG = "tfmon.refused"  # what could not be delivered, and why
LOST_TAGS = "tfmon.lost_"  # what was overwritten before it was read: "steps", "deep_steps", "histograms"
LEFT_OUT_TAG = "tfmon.not_kept"  # what was measured and not kept, and why
# -- of a run: its training -------------------------------------------------------------------------------------------
ABSENT_TAG = "tfmon.absent"  # the expected series that can't be measured in this training
SEAMS_TAG = "tfmon.seams"  # the steps at which a further fit began
RESUMED_TAG = "tfmon.resumed"  # where it was resumed
ENVIRONMENT_TAG = "tfmon.environment"
COMMAND_TAG = "tfmon.command"  # by which the script was started
STALLED_TAG = "tfmon.stalled"  # "since …" while no step comes, "no longer: …" afterwards
PROBLEMS_TAG = "tfmon.problems"  # the kinds of the problems that stand
STOPPED_TAG = "tfmon.stopped"  # the problem that ended it
RANGE_TEST_TAG = "tfmon.range_test"  # the learning rate that a range test before it suggests, and why
RESCUES_TAG = "tfmon.rescues"  # the problems from which it was brought back
SOURCE_TAG = "tfmon.tensorboard"  # the event files that it was imported from
# -- of a run, a logged model or a model version: checkpoints ---------------------------------------------------------
REGISTERED = "tfmon.registered"  # what became of the registered model
RECORDED_AS = "tfmon.recorded_as"  # path of its record
EPOCH, STEP = "tfmon.epoch", "tfmon.step"
METRIC, VALUE, MODE = "tfmon.metric", "tfmon.value", "tfmon.mode"  # by which it is the best
WEIGHTS_ONLY = "tfmon.weights_only"  # "true" of a checkpoint that MLflow cannot load
DATASET = "tfmon.dataset"  # digest of the data that the metric was measured on
RUN = "tfmon.run"  # whose best it is
ALIAS_TAGS = "tfmon.alias."  # of a version: since when it has an alias


def pointer(kind: str, prefix: str = "") -> str:
    """The run's tag that holds the id of one of its models.

    Args:
        kind: such as "best_model".
        prefix: of the model's series where a run has several models, such as "generator.".

    Example:
        >>> pointer("best_model", "generator.")
        'tfmon.generator.best_model'
    """
    return f"{PREFIX}{prefix}{kind}"
