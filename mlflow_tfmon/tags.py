"""Every tag that this package sets, all named `tfmon.…`: other tools read them, so they keep their names."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "tfmon."
_HIDDEN = "mlflow."  # prefix of tags that MLflow's page (3.17) does not show people
# -- of a run: its delivery -------------------------------------------------------------------------------------------
DELIVERY_TAG = "tfmon.delivery"  # "streaming", "complete" or "incomplete"
RECORDING_TAG = "tfmon.recording"  # the recording for which delivery made the run
# How far the recordings have come, for the one that goes on (`stream.continuation.Past`).
REACHED_TAG = f"{_HIDDEN}tfmon.reached"
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


_POINTERS_SHOWN = ("best_model", "checkpoint_error")  # the others are ids that programs read


def pointer(kind: str, prefix: str = "") -> str:
    """The run's tag that holds the id of one of its models, or what became of one.

    Args:
        kind: such as "best_model".
        prefix: of the model's series where a run has several models, such as "generator.".

    Example:
        >>> pointer("best_model", "generator.")
        'tfmon.generator.best_model'
        >>> pointer("last_model")
        'mlflow.tfmon.last_model'
    """
    return f"{'' if kind in _POINTERS_SHOWN else _HIDDEN}{PREFIX}{prefix}{kind}"


def pointed(tags: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """What the tags of a run hold, by the kind and the prefix of which `pointer` makes their names.

    Example:
        >>> pointed({"tfmon.generator.best_model": "m-1"})
        {('best_model', 'generator.'): 'm-1'}
    """
    found = {}
    for tag in sorted(tags, reverse=True):  # up to version 0.1 all were shown; what there is now counts
        name = tag.removeprefix(_HIDDEN)
        if name.startswith(PREFIX):
            prefix, dot, kind = name.removeprefix(PREFIX).rpartition(".")
            found[kind, prefix + dot] = tags[tag]
    return found
