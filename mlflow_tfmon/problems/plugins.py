"""Third-party detectors: subclasses of `Detector`, defined in the script or named by an installed package."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points

from mlflow_tfmon.detectors import Detect, History, Problem
from mlflow_tfmon.detectors.problem import SEVERITIES
from mlflow_tfmon.errors import contained, say_once

GROUP = "mlflow_tfmon.detectors"
_defined: list[type[Detector]] = []


class Detector:
    """Base class of custom detectors: a subclass defined before the training runs with the built-in ones.

    It is called now and then on the measuring thread, with everything recorded so far; an error in it is logged once,
    and training continues. A package provides one through the entry-point group `mlflow_tfmon.detectors`.

    Example:
        ```python
        class LossTooHigh(mlflow_tfmon.Detector):
            def detect(self, history):
                loss = history.steps.column("loss")
                if len(loss) and loss.mean[-1, 0] > 100:
                    yield mlflow_tfmon.Problem(
                        "loss_too_high", "warning", int(loss.first[-1]), (),
                        f"The loss is {loss.mean[-1, 0]:.3g}.", "Look."
                    )
        ```
    """

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        name = cls.__module__, cls.__qualname__  # that of a cell that is run again is the same
        _defined[:] = [one for one in _defined if (one.__module__, one.__qualname__) != name]
        _defined.append(cls)

    def detect(self, history: History) -> Iterable[Problem]:
        """Returns the problems of a training.

        Args:
            history: the training so far, of one optimizer; see `mlflow_tfmon.detectors.History`.

        Returns:
            The problems found; their kinds must be new ones.
        """
        raise NotImplementedError


def others() -> list[Detect]:
    """The detectors that were defined or are installed, one of each, contained."""
    for point in entry_points(group=GROUP):
        with contained(f"loading the detector {point.name}", "it is not used"):
            point.load()
    return [_contained(cls) for cls in _defined if cls.detect is not Detector.detect]


def _contained(cls: type[Detector]) -> Detect:
    made: list[Detector] = []

    def detect(history: History) -> list[Problem]:
        try:
            if not made:
                made.append(cls())
            return [_plain(problem) for problem in made[0].detect(history) or ()]
        except Exception as error:  # another's error, not ours: never raised, not even in tests
            say_once(
                f"detector {cls.__qualname__}",
                f"mlflow_tfmon: the detector {cls.__qualname__} failed ({type(error).__name__}: {error}); fix or "
                "remove it; training continues.",
            )
            return []

    return detect


def _plain(problem: Problem) -> Problem:
    """A problem whose numbers are Python's, so that it can be written down.

    Raises:
        TypeError: it is none.
        ValueError: something of it has no sense.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"detect yields {type(problem).__name__}, not mlflow_tfmon.Problem")
    if problem.severity not in SEVERITIES:
        raise ValueError(f"severity={problem.severity!r} is not one of {', '.join(SEVERITIES)}")
    return Problem(
        str(problem.kind), problem.severity, int(problem.first_step), tuple(map(str, problem.variables)),
        str(problem.evidence), str(problem.advice), int(problem.last_step), float(problem.confidence),
    )  # fmt: skip
