"""Monitoring of a training from its first step to its last, with `fit` or in a loop."""
