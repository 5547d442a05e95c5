"""Our own training configurations, for `benchmarks.detection`: those that were looked at, and those set aside."""
