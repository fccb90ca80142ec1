# What you do with a checkout. `make` alone lists it. Needs Linux and Python 3.11 or newer, nothing else.

# The distribution's own first: it is built with profile-guided optimisation, which pyenv leaves out; a start takes a fifth
# less time with it. Debian has what makes environments in a package of its own: a Python without is passed over.
PYTHON ?= $(shell for each in /usr/bin/python3.11 python3.11 /usr/bin/python3 python3; do \
    $$each -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && \
    { command -v $$each; break; }; done)
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

# Tests of the first command have what they need to themselves. A file is one process's, for what its tests share, and
# the files that take longest come first.
test: $(STAMP) ## run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/load tests/unit
	$(BIN)/python -m pytest tests/contract tests/graph tests/e2e tests/faults # they share one service

bench: $(STAMP) ## measure the README's table of numbers on this machine, about 8 minutes
	@$(BIN)/python -m loadgen.bench --readme README.md

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv: $(STAMP) ## install into .venv, with the tested versions

$(STAMP): pyproject.toml cluster/constraints.txt
	@$(or $(PYTHON),false) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer with its venv is needed and $(or $(PYTHON),none) was found; on Debian:" \
	    "apt-get install python3-venv; or name one with PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); exit 1; }
	@if $(BIN)/python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)' $(TORCH_INDEX) 2>/dev/null; \
	    then index="--extra-index-url $(TORCH_INDEX)"; fi; \
	    echo "installing into $(VENV)$${index:+, torch from $(TORCH_INDEX)}"; \
	    $(BIN)/pip install --disable-pip-version-check --no-compile $$index -c cluster/constraints.txt -e '.[dev]'
	@echo "compiling what was installed" # on all cores, where pip would on one; hardly anything of the excluded is imported
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests|transformers/models)/' $(VENV)/lib > /dev/null || true # some are templates
	@touch $@

clean: ## remove .venv and everything the tools left
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
