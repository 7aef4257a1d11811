# Everything there is to run; `make help` lists it. Each target first makes what it needs of .venv.

# The first Python on PATH that is new enough; `make PYTHON=/path/to/python3.12 test` picks another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
TEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
EXAMPLES = $(sort $(wildcard examples/*.py examples/*/run.py))

# Where this is set Python compiles every module at every start, and imports take three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-kubernetes test-skypilot lint type docs examples bench services clean

help: ## List these commands
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' Makefile
	@echo 'Variables: PYTHON=python3.12  TEST_ARGS="-k local -x"  BENCH_ARGS=--quick'

demo: $(VENV)/made-examples ## Set up, then run the main example: train on digits
	$(BIN)/python examples/digits/run.py

# In CI nothing is skipped; elsewhere torch, Ray and Google's client, which are large, are there if somebody wants them.
test: $(VENV)/made-dev $(if $(CI),$(VENV)/made-dev-torch $(VENV)/made-dev-ray $(VENV)/made-dev-vertex) ## Set up, then run the tests; TEST_ARGS goes to pytest
	$(PYTEST) -n auto --maxprocesses 8 --dist worksteal $(TEST_ARGS)
	@echo "make test: passed, with $$($(BIN)/python -V) in $(VENV)"

test-kubernetes: $(VENV)/made-dev $(VENV)/made-kubernetes $(if $(CI),$(VENV)/made-dev-torch) ## Run the tests that need a Kubernetes, beside one (Debian, as root)
	test/services/kubernetes/with $(PYTEST) -n 4 --dist worksteal -m kubernetes $(TEST_ARGS)

test-skypilot: $(VENV)/made-dev $(if $(CI),$(VENV)/made-dev-torch) ## Run the tests that need SkyPilot, beside a real one (Debian, as root)
	$(BIN)/python test/skies.py sh -c ' \
		$(PYTEST) -n 3 --dist worksteal -m "skypilot and not alone" $(TEST_ARGS) && \
		$(PYTEST) -m "skypilot and alone" $(TEST_ARGS)'

lint: $(VENV)/made-dev ## Check style, layout, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -q test/test_layers.py
	@echo 'make lint: nothing to mend'

type: $(VENV)/made-dev ## Check types alone
	$(BIN)/mypy

docs: $(VENV)/made-docs ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo 'make docs: open docs/_build/html/index.html'

examples: $(VENV)/made-examples ## Run every example, the demo included
	@set -e; for example in $(EXAMPLES); do needs=; case "$$example" in \
		*torch*) $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' || \
			needs='torch: $(BIN)/pip install torch';; \
		*xm_train*) docker image inspect "$${IMAGE:-debian-py:12}" >/dev/null 2>&1 || \
			needs='a Docker Engine and the image that `make services` makes';; \
		*xm_bazel*) command -v bazel >/dev/null || needs='bazel: make services';; esac; \
		if [ -n "$$needs" ]; then echo "== $$example: left out, it needs $$needs"; continue; fi; \
		echo "== $$example"; $(BIN)/python "$$example"; done
	@echo 'make examples: ran to their ends'

bench: $(VENV)/made-bench ## Measure against the floor; BENCH_ARGS goes to bench/run.py
	$(BIN)/python bench/run.py $(BENCH_ARGS)

services: ## Start the services that tests need (Debian, as root)
	@test/services/start

clean: ## Remove what make made
	rm -rf $(VENV) dist docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench docs examples nemo_run test -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo 'nemo_run needs Python 3.10 or newer, and PATH holds none.'; \
		echo 'Install one (Debian: apt install python3 python3-venv; macOS: brew install python),'; \
		echo 'or name one: make PYTHON=/path/to/python3.12 ...'; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo 'nemo_run needs Python 3.10 or newer; $(PYTHON) is not. Name another: make PYTHON=...'; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo '$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv'; exit 1; } >&2
	$(PYTHON) -m venv --clear $(VENV)

# One stamp per extra: made-dev says that nemo_run[dev] is installed as pyproject.toml has it now.
# Compiled at once, whatever the environment says; files that are not meant to compile do not matter.
$(VENV)/made-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
