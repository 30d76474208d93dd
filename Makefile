# Everything from a fresh clone: Python >= 3.11, git and a package registry are enough.
#
#   make demo     quantize the embedded model to W4A8, draw images with it, compare it with the float model
#   make test     what CI runs: ruff, mypy, pytest
#   make format   lay the source out and mend what ruff can mend
#   make clean    remove the environment and everything that was made
#
#   PYTHON=python3.12 make test     the interpreter that .venv is made from
#   PIP_FLAGS="--find-links DIR"    more options for pip; constraints.txt says what for
#   WORKERS=4 make test             processes that run the tests

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2

BIN := .venv/bin
# Stamps: an install is repeated only when what it depends on has changed. constraints.txt pins every version, so that two
# machines, and the same machine a year later, run the same code.
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

DEMO := demo
DEMO_ARTIFACT := $(DEMO)/ddim-emoji-w4a8
DEMO_REPORT := $(DEMO)/report.html

.PHONY: demo test lint format clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("mezzotint needs Python >= 3.11; name one with PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/mezzotint quantize --bits w4a8 --recipe eda-dm --preset fast -o $(DEMO_ARTIFACT) --overwrite
	$(BIN)/mezzotint sample $(DEMO_ARTIFACT) --seeds 0..15 --steps 20 -o $(DEMO)/images --overwrite
	$(BIN)/mezzotint compare ddim-emoji $(DEMO_ARTIFACT) --samples 64 --steps 20 -o $(DEMO_REPORT) --overwrite

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
