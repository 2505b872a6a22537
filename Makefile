# The two commands of a fresh machine: make demo, make test. Everything happens inside .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What is compared with: in an environment of its own that adds to .venv, so that torch is installed once.
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
ANOMALIB := 2.7.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Moments to kill runs at: of one process, of several; and the same on S3.
TORTURE ?= 16,12,6,4
# Times as many inputs to fuzz with as in make test.
FUZZ ?= 50

# What make bench measures, the most telling first.
BENCH ?= extraction statistics plan fixed-cost scale soak shortcuts

.PHONY: help venv demo test test-ceph torture lint format docs study study-large bench bench-peers scaling clean

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

torture: venv  ## Kill real runs at 16 + 12 moments, 6 + 4 on S3, and fuzz all that is read: half an hour; TORTURE=24,16,8,6 FUZZ=100
	PAIRE_TORTURE=$(TORTURE) $(BIN)/python -m pytest -s tests/torture
	PAIRE_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n auto --dist worksteal -o faulthandler_timeout=7200 tests/fuzz

test-ceph: venv  ## Run the storage tests on a real Ceph RADOS gateway: needs apt-get install radosgw ceph-mon ceph-osd
	PAIRE_TEST_CEPH=1 $(BIN)/python -m pytest tests/workers/storage -m ceph

lint: venv  ## Check style, types and the order of the folders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: venv  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv  ## Bring the tables of docs/options.md and docs/tables.md up to date
	$(BIN)/python -m tests.support.tables_of_docs

study: venv  ## Make docs/study.md again, an hour: DATA=folder/of/sets WEIGHTS=folder/of/weights STUDY='--sets bottle --seeds 1'
	$(BIN)/python -m studies.cleaning $(DATA) --weights $(WEIGHTS) $(STUDY)

study-large: venv  ## Add what is missing to docs/large-groups.md: synthetic groups to N = 50 000 and near-duplicates, 20 minutes; LARGE='--again grow'
	$(BIN)/python -m studies.large_groups $(LARGE)

bench: venv  ## Measure this machine and make benchmarks/RESULTS.md again, an hour; BENCH='statistics scale', QUICK=1 for minutes
	for name in $(BENCH); do \
	  timeout 1800 $(BIN)/python -m benchmarks $(if $(QUICK),--quick) $$name || exit 1; \
	done

bench-peers: $(PEERS_STAMP)  ## Compare with anomalib's PaDiM and with scikit-learn in one run, in .venv-peers: half an hour
	timeout 1800 $(PEERS)/bin/python -m benchmarks peers-scikit-learn
	timeout 1800 $(PEERS)/bin/python -m benchmarks peers-anomalib
	timeout 1800 $(PEERS)/bin/python -m benchmarks peers-memory

# The versions in .venv are constraints: what does not go with them fails here instead of taking their place.
$(PEERS_STAMP): $(STAMP)
	$(BIN)/python -m venv --clear $(PEERS)
	$(BIN)/python -m pip freeze --exclude-editable > $(PEERS)/constraints.txt
	site=$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  $(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$site/packages-of-venv.pth"
	$(PEERS)/bin/python -m pip install --quiet --constraint $(PEERS)/constraints.txt anomalib==$(ANOMALIB)
	@touch $@

scaling: venv  ## Make the tables and the plot of docs/scaling.md again, constants and check measured here: 3 minutes; SCALING='tables'
	$(BIN)/python -m benchmarks.scaling $(SCALING)

clean:  ## Remove what make made, the environment too
	rm -rf $(VENV) $(PEERS) demo-run build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
