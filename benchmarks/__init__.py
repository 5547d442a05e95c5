"""Benchmarks of the cost of monitoring, compared with the same training alone and with other tools: `make bench`."""
