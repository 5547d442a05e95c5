"""Judging a training while it goes on, and again later: what feeds the detectors, and what follows from their finds."""
