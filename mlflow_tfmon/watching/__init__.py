"""Watching a training: from its first step to its last, by `fit` or by a loop."""
