"""The main project: one classifier, trained by `fit` and by a custom loop, both watched."""
