# make help lists the targets. The environment is made once, in $(VENV), and remade only when the dependencies change.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
KEY := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
RUN := $(VENV)/.eao-run-$(KEY)
DEV := $(VENV)/.eao-dev-$(KEY)
# An installed copy: neither mypy nor import-linter can follow the package-dir mapping in a source tree.
COPY := build/check
PIP = PYTHONWARNINGS=ignore $(BIN)/python -m pip --quiet --disable-pip-version-check
TOOL := $(abspath $(BIN))

.PHONY: help demo test check lint types words format clean
.NOTPARALLEL:

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 10

demo: $(RUN)  ## the whole chain on a small real data set; QUICK=1 for a short one, ARGS="--stamps DIR" for more
	$(BIN)/eao demo $(if $(QUICK),--quick) $(ARGS)

# A file's tests stay in one process, and the files in their order: the longest are not the last.
test: $(DEV)  ## all tests; ARGS="tests/model -k audio" for some, JOBS=0 for one process
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint types words  ## format, lint, types, import layers, spelling, links

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV)
	@rm -rf $(COPY) && mkdir -p $(COPY)
	@printf '[build]\nbuild_base=%s\n[egg_info]\negg_base=%s\n' $(abspath $(COPY)) $(abspath $(COPY)) > $(COPY)/build.cfg
	@DIST_EXTRA_CONFIG=$(abspath $(COPY))/build.cfg $(PIP) install --no-deps --no-build-isolation --target $(COPY)/site .
	cd $(COPY)/site && $(TOOL)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p eao
	cd $(COPY)/site && $(TOOL)/lint-imports --no-cache --config $(CURDIR)/pyproject.toml

words: $(DEV)
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/test_docs.py

format: $(DEV)  ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what was built; data and runs stay
	rm -rf $(VENV) build dist *.egg-info .cache/check .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(RUN): $(BIN)/pip
	@echo "installing the dependencies into $(VENV), which takes some minutes the first time"
	$(PIP) install --no-compile -c constraints.txt -e '.[cpu,demo,index]'
	@rm -f $(VENV)/.eao-run-* && touch $@

$(DEV): $(RUN)
	@echo "installing the development tools into $(VENV)"
	$(PIP) install --no-compile -c constraints.txt -e '.[cpu,demo,index,openvino,serve,triton-client,trt-rtx,tracking,dev]'
	@rm -f $(VENV)/.eao-dev-* && touch $@

# pip is the last thing that venv installs: an interrupted one is begun anew.
$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) was not found: apt install python3 python3-venv, or make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$$($(PYTHON) --version) is too old, 3.11 is needed: install a newer one and say make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	    { echo "$(PYTHON) cannot make environments: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
