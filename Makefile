# Everything starts from a bare clone with Python 3.11+ and make: `make demo`, `make test`.
# The environment is .venv; it is brought up to date when pyproject.toml changes, and built anew when CI=true.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --color=no -q
SUITES := unit property sim integration e2e chaos
# Most tests wait for other processes, so a few more workers than cores; the chaos suite loads the machine by itself.
WORKERS ?= 3
DEMO_READY := $(VENV)/.ready-for-demo
TEST_READY := $(VENV)/.ready-for-test

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- the environment -------------------------------------------------------------------------------------------

.PHONY: venv
venv: $(TEST_READY) ## build the environment with all that development needs

.PHONY: python
python: # a virtual environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Spoke needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=..."; exit 1; }
	@if ! [ -x $(BIN)/python ]; then $(PYTHON) -m venv $(VENV); fi

# The stamps stand in .venv, so they go when it goes.
$(DEMO_READY): pyproject.toml | python
	$(BIN)/python -m pip install --quiet --editable '.[examples]'
	@touch $@

$(TEST_READY): pyproject.toml | python
	$(BIN)/python -m pip install --quiet --editable '.[dev,examples,torch]'
	@touch $@ $(DEMO_READY)

ifeq ($(CI),true)
.PHONY: fresh
fresh:
	rm -rf $(VENV)
python $(DEMO_READY) $(TEST_READY): fresh
endif

# --- run -------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(DEMO_READY) ## two nodes, a gang of 2 x 2 actors, a model trained, every GPU back (2 minutes at most)
	$(BIN)/python examples/digits.py

# --- test ------------------------------------------------------------------------------------------------------

.PHONY: test
test: lint types imports docs tests test-web test-rdma ## everything that a change must pass

.PHONY: tests
tests: $(TEST_READY) redis-tools ## every suite (root or sudo, if redis-cli is not there: installs it by apt)
	$(PYTEST) --numprocesses $(WORKERS) --dist loadfile $(patsubst %,tests/%,$(filter-out chaos,$(SUITES)))
	$(PYTEST) tests/chaos

# redis-cli, and in the same package a server that speaks TLS itself; it starts nothing.
.PHONY: redis-tools
redis-tools:
	tests/apt.sh redis-tools

.PHONY: $(SUITES)
unit: ## the parts, without a server
sim: ## a whole pool in simulated time, under faults; `make soak SEEDS=1000` for more
property: ## random histories against the invariants
integration: ## the parts on a real server
chaos: ## kill -9 of everything, and what the log says then
e2e: ## the command line and the examples, with real processes
$(SUITES): $(TEST_READY)
	$(PYTEST) tests/$@

.PHONY: test-web
test-web: $(TEST_READY) ## the dashboard in a real browser, headless (root or sudo, if Chromium is not there: installs it by apt)
	tests/web/run.sh

.PHONY: test-rdma
test-rdma: $(TEST_READY) ## real RDMA, in a small virtual machine with a software device (root or sudo; installs it by apt)
	tests/rdma/run.sh

SEEDS ?= 1000
STEPS ?= 4000
FIRST ?= 1
.PHONY: soak
soak: $(TEST_READY) ## the simulator over many seeds: make soak SEEDS=1000 FIRST=1 STEPS=4000
	$(BIN)/python -m tests.sim.run --soak $(SEEDS) --first $(FIRST) --steps $(STEPS)

EXAMPLES ?= 20000
.PHONY: fuzz
fuzz: $(TEST_READY) ## hostile bytes for everything that reads bytes, many of them: make fuzz EXAMPLES=20000
	SPOKE_FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) --timeout 0 tests/property/test_hostile_bytes.py tests/property/test_hostile_settings.py

SECONDS_LONG = $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),600)
SEED ?=
.PHONY: chaos-long
chaos-long: $(TEST_READY) ## the storm for longer, as root: make chaos-long SECONDS=3600 SEED=7
	$(BIN)/python -m tests.chaos.storm.run --seconds $(SECONDS_LONG) $(if $(SEED),--seed $(SEED))

.PHONY: lint
lint: $(TEST_READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(TEST_READY) ## mypy --strict
	$(BIN)/mypy

.PHONY: imports
imports: $(TEST_READY) ## which package may import which
	$(BIN)/lint-imports

.PHONY: format
format: $(TEST_READY) ## put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --- documentation ---------------------------------------------------------------------------------------------

.PHONY: docs
docs: $(TEST_READY) ## build the site into site/; a broken link is an error
	$(BIN)/python docs/gen/write.py --check
	$(BIN)/mkdocs build --strict --quiet

.PHONY: docs-gen
docs-gen: $(TEST_READY) ## write the generated pages anew
	$(BIN)/python docs/gen/write.py

.PHONY: docs-serve
docs-serve: $(TEST_READY) ## the site on this machine, rebuilt as you write
	$(BIN)/mkdocs serve

.PHONY: bench
bench: $(TEST_READY) ## every benchmark: figure, floor, ratio
	@for script in $(filter-out bench/rdma.py bench/synthetic.py bench/long_log.py,$(wildcard bench/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

.PHONY: bench-rdma
bench-rdma: $(TEST_READY) ## RDMA against perftest and bare pyverbs, in the virtual machine of test-rdma
	tests/rdma/run.sh bash -c '"$$PYTHON" bench/rdma.py'

.PHONY: clean
clean: ## remove what can be built again, the environment included
	rm -rf $(VENV) site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
