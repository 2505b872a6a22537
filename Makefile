# The two commands of a fresh machine: make demo, make test. Everything happens inside .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv demo test lint format docs study study-large bench clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

venv: $(STAMP)  ## Set up .venv with the package and its development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "paire needs Python 3.11 or newer; found $$($(PYTHON) --version). Use make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: venv  ## Clean a synthetic archive with known defects, end to end, without data or network
	$(BIN)/paire demo --out demo-run

test: venv  ## Run all tests on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: venv  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv  ## Bring the README's reference tables up to date
	$(BIN)/python -m tests.readme

study: venv  ## Make docs/study.md anew: BOTTLE=path/to/mvtec/bottle KOLEKTOR=path/to/kolektor_sdd WEIGHTS=squeezenet1_1.pth STUDY='--seeds 2'
	$(BIN)/python -m tests.studies.cleaning $(BOTTLE) $(KOLEKTOR) --weights $(WEIGHTS) $(STUDY)

study-large: venv  ## Add what is missing to docs/large-groups.md: synthetic groups to N = 50 000 and near-duplicates, 20 minutes; LARGE='--again grow'
	$(BIN)/python -m tests.studies.large_groups $(LARGE)

bench: venv  ## Measure this machine and make tests/benchmarks/RESULTS.md anew; each benchmark within half an hour
	timeout 1800 $(BIN)/python -m tests.benchmarks extraction
	timeout 1800 $(BIN)/python -m tests.benchmarks fixed-cost
	timeout 1800 $(BIN)/python -m tests.benchmarks soak

clean:  ## Remove what make made, the environment too
	rm -rf $(VENV) demo-run build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
