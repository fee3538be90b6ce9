# Each target does all of its own set-up; a fresh machine needs Python 3.11 to 3.13, its venv module, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: quickstart test docs nightly

quickstart: $(VENV)/installed
	$(BIN)/arch-bench experiment=quickstart

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/pytest --numprocesses auto -m "not slow and not gpu"

docs: $(VENV)/installed-dev
	$(BIN)/python -m arch_bench.catalog docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

nightly: $(VENV)/installed-dev
	ARCH_BENCH_KILLS=5 $(BIN)/pytest -m slow tests/test_crash.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "arch-bench needs Python 3.11 to 3.13; $(PYTHON) is another, or none: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing arch-bench and what it needs into $(VENV) (about a minute)"
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing arch-bench and its test tools into $(VENV) (about a minute)"
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/installed
