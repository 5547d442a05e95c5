"""Reading what was recorded of a run."""
