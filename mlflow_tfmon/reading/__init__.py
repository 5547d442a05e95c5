"""Readers of a run's recording."""
