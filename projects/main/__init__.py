"""The main project: one classifier, trained with `fit` and in a custom loop, both monitored."""
