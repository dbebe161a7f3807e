# make demo   set up, then quantize the real Gemma 3 270M and show what came out
# make test   set up, then lint, types and tests
# make train-demo  pretrain, tune and quantize it for a few steps
# make sanitize  the kernels' own test with the sanitizers of memory, undefined behaviour, threads
#
# Variables: PYTHON (default: the first Python 3.11 or newer that can build the extension),
# TORCH (the requirement to install), TORCH_INDEX (index with CPU wheels of torch, if pip's own
# has none), PYTEST_ARGS, TRAIN_ARGS (of `soroq train demo`: --text tg=FILE, …).

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.soroq-setup
PYTEST_ARGS ?= -n 2
TORCH_INDEX ?=

# On Linux a plain `torch` may resolve to the CUDA build, several GB: ask for +cpu by name.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= torch==$(TORCH_VERSION)$(if $(filter Linux,$(shell uname -s)),+cpu)

PROBE := import sys, sysconfig, os, venv, ensurepip; \
  sys.exit(not (sys.version_info >= (3, 11) and \
  os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))

.PHONY: setup test sanitize demo train-demo lint types clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(BIN)/python:
	@set -e; found=; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	  if "$$python" -c '$(PROBE)' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "setup: no usable Python: tried $(or $(PYTHON),python3.11 python3.12 python3.13 python3); \
	install Python 3.11 or newer with venv and headers (Debian: python3.11-venv python3.11-dev), \
	or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	echo "setup: $(VENV) from $$found ($$($$found --version))"; \
	"$$found" -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/csrc/* kernels/cpu/ort/*) | $(BIN)/python
	@$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)' || { \
	  echo "setup: pip could not install '$(TORCH)'; name an index that has CPU wheels of torch \
	(make setup TORCH_INDEX=...), or choose another build (make setup TORCH=torch==$(TORCH_VERSION))" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo]'
	@touch $@

# Triton either compiles or interprets in a process: its kernels' results are tested in their own.
test: lint types
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/kernels/interpreted

# What pip put into the environment, else the system's.
CMAKE ?= $(or $(wildcard $(BIN)/cmake),cmake)
SELFTEST := tests/kernels/cpu/selftest

# The second is for races: only what threads share, without the arithmetic.
sanitize: setup
	$(CMAKE) -S $(SELFTEST) -B build/selftest-address -DSOROQ_SANITIZE=address,undefined >/dev/null
	$(CMAKE) --build build/selftest-address --parallel 2
	build/selftest-address/selftest
	$(CMAKE) -S $(SELFTEST) -B build/selftest-thread -DSOROQ_SANITIZE=thread >/dev/null
	$(CMAKE) --build build/selftest-thread --parallel 2
	build/selftest-thread/selftest pool decoder

demo: setup
	$(BIN)/soroq demo

train-demo: setup
	$(BIN)/soroq train demo $(TRAIN_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The links are made anew each time, so that files that came or went are seen.
types: setup
	rm -rf build/typing && mkdir -p build/typing/soroq
	for part in soroq/* kernels calib bench train; do \
	  if [ -e "$$part" ]; then ln -s "$(CURDIR)/$$part" build/typing/soroq/; fi; \
	done
	cd build/typing && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" -p soroq

clean:
	rm -rf build dist $(STAMP) .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
