"""The configurations that are set aside: written without a look at any detector, to be looked at once, at the end.

Whether a training goes as it is meant to may be tried with `--unwatched`: no detector is asked.
"""

from __future__ import annotations

from benchmarks.sets.recipes import Configuration

CONFIGURATIONS: tuple[Configuration, ...] = ()
