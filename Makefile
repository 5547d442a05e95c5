# make demo and make test need Python 3.11 (or 3.10, 3.12, 3.13), make and git; the rest they install into .venv.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
OLDEST := .venv-oldest
STORE := sqlite:///mlflow.db
# A file's tests share a process, since TensorFlow takes seconds to import.
TWO_AT_ONCE := --numprocesses 2 --dist loadfile --no-loadscope-reorder
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

export MLFLOW_TRACKING_URI ?= $(STORE)
export MLFLOW_DISABLE_TELEMETRY ?= true
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo docs package soak test test-slow test-demos test-thorough test-oldest test-keras bench gallery ui clean
.PHONY: bench-fixed bench-turns bench-gpu bench-scale bench-sustained bench-lag bench-checkpoints bench-many bench-advice

demo: $(VENV)/demos.stamp  ## Train the main project's two runs, then say how to look at them.
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" mlflow run . --env-manager local
	@echo
	@echo "Both runs are in mlflow.db. To see them:  make ui   then open http://127.0.0.1:5000/#/experiments/0/runs?viewStateShareKey=tfmon&compareRunsMode=CHART&workflowType=machine_learning"

test: $(VENV)/test.stamp  ## Lint, types, and the tests of daily work.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m pytest $(TWO_AT_ONCE) -m "not slow and not thorough and not demos"

test-slow: $(VENV)/test.stamp  ## Tests that take seconds each: XLA, resuming, processes that are killed.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m pytest $(TWO_AT_ONCE) --session-timeout 1200 -m "slow and not thorough and not demos"

test-demos: $(VENV)/test.stamp  ## Each demo, in its quick form, by `mlflow run`; and what its runs hold.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m pytest $(TWO_AT_ONCE) --session-timeout 1800 -m "demos and not thorough"

test-thorough: $(VENV)/test.stamp  ## The tests that take long: outages, kills, Keras 2, several replicas, a browser.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m pytest $(TWO_AT_ONCE) -m thorough

soak: $(VENV)/test.stamp  ## An hour of trainings with 200 random kills, then every row is looked for; SOAK=--help shows how to choose.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m tests.soak $(SOAK)

test-oldest: $(OLDEST)/test.stamp  ## All tests on the oldest supported TensorFlow, Keras and MLflow.
	env -u MLFLOW_TRACKING_URI $(OLDEST)/bin/python -m pytest $(TWO_AT_ONCE)

test-keras: $(VENV)/test.stamp  ## Keras's own tests, watched and unwatched: each ends the same way. KERAS=trainers chooses.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m tests.keras_suite $(KERAS)

docs: $(VENV)/docs.stamp  ## Build the documentation site into site/, strictly.
	$(VENV)/bin/mkdocs build --strict --quiet

package: $(VENV)/package.stamp  ## Build wheel and sdist into dist/, and check them as PyPI does.
	rm -rf dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/python -m twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist/*.whl

bench: $(VENV)/bench.stamp  ## What watching costs: ratios to the same training unwatched; BENCH=--help shows how to choose.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m benchmarks.overhead $(BENCH)

bench-fixed bench-turns bench-gpu bench-scale bench-sustained bench-lag bench-checkpoints bench-many bench-advice: bench-%: $(VENV)/bench.stamp  ## What it costs once; what long and large trainings cost; whether advice mends.
	env -u MLFLOW_TRACKING_URI $(VENV)/bin/python -m benchmarks.$* $(BENCH)

ui: $(VENV)/demos.stamp  ## Serve the MLflow UI on http://127.0.0.1:5000.
	$(VENV)/bin/mlflow ui --backend-store-uri $(MLFLOW_TRACKING_URI) --port 5000

gallery: $(VENV)/test.stamp  ## Train with each kind of problem, and draw the pictures of docs/gallery.md.
	$(VENV)/bin/python -m benchmarks.gallery

clean:  ## Remove the environments and caches; runs (mlflow.db, mlruns) are kept.
	rm -rf $(VENV) $(OLDEST) dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache

$(VENV)/bin/python $(OLDEST)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 found: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/demos.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[demos]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[test,demos,opentelemetry]'
	@touch $@ $(VENV)/demos.stamp

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/package.stamp: | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) build check-wheel-contents twine
	@touch $@

$(VENV)/bench.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -e '.[bench]'
	@touch $@

$(OLDEST)/test.stamp: pyproject.toml constraints-oldest.txt | $(OLDEST)/bin/python
	$(OLDEST)/bin/python $(PIP_INSTALL) -c constraints-oldest.txt -e '.[test,demos]'
	@touch $@
