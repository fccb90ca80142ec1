# What you do with a checkout. `make` alone lists it. Needs Linux and Python 3.11 or newer, nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# torch's CPU build has an index of its own (200 MB; PyPI's build pulls some GB of CUDA). Set TORCH_INDEX= to take PyPI's.
# It is used only where it answers: pip would retry a closed one for every package.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help serve test bench check clean .venv

help: ## list what there is
	@sed -n 's/^\([a-z.]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

serve: $(STAMP) ## run the whole service on this machine until Ctrl-C
	@$(BIN)/intents up

test: $(STAMP) ## run every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/unit tests/load # each test has what it needs to itself
	$(BIN)/python -m pytest tests/contract tests/graph tests/e2e tests/faults # these share one service

bench: $(STAMP) ## measure the README's table of numbers on this machine, about 8 minutes
	@$(BIN)/python -m loadgen.bench --readme README.md

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv: $(STAMP) ## install into .venv, with the tested versions

$(STAMP): pyproject.toml cluster/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed and $(or $(PYTHON),none) was found; name one with PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); } || \
	    { rm -rf $(VENV); echo "this Python cannot make environments; on Debian: apt-get install python3-venv"; exit 1; }
	@if $(BIN)/python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)' $(TORCH_INDEX) 2>/dev/null; \
	    then index="--extra-index-url $(TORCH_INDEX)"; fi; \
	    echo "installing into $(VENV)$${index:+, torch from $(TORCH_INDEX)}"; \
	    $(BIN)/pip install --disable-pip-version-check $$index -c cluster/constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove .venv and everything the tools left
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
