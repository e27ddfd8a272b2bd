# Everything a person or a CI job runs. A fresh machine needs only Python 3.11, git and make; `make help` lists the targets.
#
# Each install set has a stamp inside .venv. A stamp is written by the last line of its rule, so an install that stopped
# half-way leaves none, and it depends on the two files that say what is installed, so a second run installs nothing.

PYTHON ?= python3.11
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --no-input install -c constraints.txt

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.PHONY: demo test check bench format clean help

demo: $(DEMO)  ## train a small generator on real handwritten digits, on the CPU, and show what it makes
	$(BIN)/maskgen demo

test: check  ## formatting, lint, types and every test (WORKERS=2 processes, one torch thread each)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

check: $(DEV)  ## formatting, lint and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEV)  ## how fast tokens are sampled on this machine
	$(BIN)/python benchmarks/sampling_speed.py

format: $(DEV)  ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove .venv, builds and caches; what you trained (runs/, out/) stays
	rm -rf $(VENV) build dist maskgen.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PYTHON=$(PYTHON) makes .venv, WORKERS=$(WORKERS) is the number of test processes."

# --clear: an environment that was only half made is made again.
$(CREATED):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH: install Python 3.11, or name another one >= 3.11, e.g. make demo PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(DEMO): $(CREATED) pyproject.toml constraints.txt
	$(INSTALL) -e ".[demo]"
	@touch $@

# The dev set contains the demo set, so one install answers for both.
$(DEV): $(CREATED) pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch $(DEMO) $@
