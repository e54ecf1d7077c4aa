# Everything starts from nothing but Python and make:
#
#   make test        style, types, layers, docs and tests, on the Python that PYTHON names
#   make test-all    the tests on every Python found, and with the lowest Celery and Flask
#   make faults      kill workers at random and check what was promised; FAULTS holds options
#   make contention  many producers and workers on one queue file; CONTENTION holds options
#   make stops       stop workers under load, as containers are; STOPS holds options
#   make power       cut the power, simulated, and look for what was confirmed; POWER holds options
#   make upstream    Celery's own integration suite, on Redis and on SQLite; needs redis-server
#   make demo        the example site with a worker and a mail receiver; ONCE=1 checks and ends
#   make bench       Celeriac beside its peers, measured; BENCH holds the options
#   make bench-retention   one million tasks: does the queue file stop growing?
#   make bench-memory      one million tasks: does a producer or a worker grow?
#   make format      put source in form
#   make lock        look for newer versions of what `make test` installs

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The peers that `make bench` measures are installed here, and nowhere else.
BENCH_VENV ?= .venvs/bench
# Options for the programs below: `make tests PYTEST=-x`, `make bench BENCH=--help`,
# `make upstream UPSTREAM="-k chord"`.
PYTEST ?=
# How many processes share the tests; `make tests JOBS=0` keeps them in one, for a debugger.
JOBS ?= auto
BENCH ?=
UPSTREAM ?=
FAULTS ?=
STOPS ?=
POWER ?=
CONTENTION ?=

.PHONY: test lint tests docs test-all faults contention stops power demo bench bench-retention \
	bench-memory format lock clean
.DEFAULT_GOAL := test

# pytest last: its summary is the last thing to be read.
test: lint docs
	@$(MAKE) --no-print-directory tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

tests: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST)

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W -q -b dirhtml docs docs/_build/dirhtml

test-all: $(VENV)/.installed
	$(BIN)/python -m tests.matrix $(PYTEST)

faults: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m faults $(FAULTS)

contention: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m contention $(CONTENTION)

stops: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m stops $(STOPS)

power: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m power $(POWER)

upstream: $(VENV)/.installed
	$(BIN)/python -m tests.upstream $(UPSTREAM)

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py $(if $(ONCE),--once)

bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m benchmarks $(BENCH)

bench-retention: $(VENV)/.installed
	$(BIN)/python -m benchmarks.retention $(BENCH)

bench-memory: $(VENV)/.installed
	$(BIN)/python -m benchmarks.memory $(BENCH)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One stamp: everything is in the lock file, so there is nothing to resolve and little to wait for.
$(VENV)/.installed: pyproject.toml requirements/dev.txt $(wildcard examples/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Celeriac needs Python 3.10 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation \
		-e . $(patsubst %/pyproject.toml,-e %,$(wildcard examples/*/pyproject.toml))
	@touch $@

$(BENCH_VENV)/.installed: pyproject.toml requirements/bench.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements/bench.txt
	$(BENCH_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	--no-emit-index-url --no-emit-find-links --no-emit-package pandas --no-emit-package numpy \
	--custom-compile-command 'make lock'

lock: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	$(LOCK) pyproject.toml --extra redis --group dev --output-file requirements/dev.txt
	$(LOCK) pyproject.toml --extra redis --group tests requirements/tests-min.in \
		--output-file requirements/tests-min.txt
	$(LOCK) pyproject.toml --extra redis requirements/upstream.in \
		--output-file requirements/upstream.txt
	$(LOCK) pyproject.toml --extra redis requirements/bench.in \
		--output-file requirements/bench.txt

clean:
	rm -rf $(VENV) .venvs docs/_build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
