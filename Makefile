# Two commands do everything on a fresh machine: `make run` starts the assistant, `make test` runs all tests.
# Needs Python >= 3.11, a C++ compiler and make; everything else is installed into .venv (running), .venv-test (tests) and .venv-peers (`make bench`).
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
MODEL ?= auto
PORT ?= 8000
BENCH_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist loadgroup

RUN := .venv/bin
DEV := .venv-test/bin
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc -type f)
WEB_SOURCES := $(shell find web -type f -not -path '*/node_modules/*' 2>/dev/null)
STATIC := src/qwenstack/serving/static/index.html

.PHONY: help run serve chat pull test test-arm test-long test-python test-sanitize test-web lint format bench peers web install clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: .venv/installed web ## Start the assistant at http://127.0.0.1:8000 (MODEL=name, PORT=number)
	@exec $(RUN)/qwenstack serve $(MODEL) --port $(PORT)

chat: .venv/installed ## Talk in the terminal
	@exec $(RUN)/qwenstack chat $(MODEL)

install: .venv/installed web ## Install into .venv without starting anything

# The package is installed in place: a change of a Python file needs no new installation, a change of a kernel does.
.venv/installed: pyproject.toml $(NATIVE_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qwenstack needs Python 3.11 or newer; say which with: make run PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(RUN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python cannot make environments here; on Debian: apt install python3-venv"; exit 1; }
	@echo "Installing into .venv: building the kernels takes a minute the first time ..."
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv-test/installed: pyproject.toml constraints/ci.txt $(NATIVE_SOURCES)
	@test -x $(DEV)/pip || $(PYTHON) -m venv .venv-test || { rm -rf .venv-test; echo "Python cannot make environments here; on Debian: apt install python3-venv"; exit 1; }
	@echo "Installing the test environment into .venv-test ..."
	@$(DEV)/python -m pip install --quiet --disable-pip-version-check -c constraints/ci.txt torch
	@$(DEV)/python -m pip install --quiet --disable-pip-version-check -c constraints/ci.txt -e '.[dev]' \
	    --config-settings=cmake.define.QWENSTACK_WERROR=ON
	@touch $@

web: $(STATIC) ## Build the web page (Node from the system, else from PyPI)

$(STATIC): $(WEB_SOURCES)
	@PYTHON=$(PYTHON) tools/build_web.sh || echo "The web page was not built; the API works without it."

test: test-web test-python ## Run all tests

test-python: .venv-test/installed web
	@tools/install_chromium.sh
	@$(DEV)/qwenstack pull smollm2-135m && $(DEV)/qwenstack pull qwen2.5-coder-0.5b
	$(DEV)/python -m pytest --ignore tests/e2e $(PYTEST_FLAGS)
	$(DEV)/python -m pytest tests/e2e

test-web: web
	@PYTHON=$(PYTHON) tools/build_web.sh test

test-long: .venv-test/installed web ## Run the tests that take hours
	@tools/install_chromium.sh
	@$(DEV)/qwenstack pull smollm2-135m && $(DEV)/qwenstack pull qwen2.5-coder-0.5b
	QWENSTACK_FUZZ_SECONDS=1800 QWENSTACK_FUZZ_SEED=0 $(DEV)/python -m pytest tests/fuzz/test_reader_fuzz.py \
	    --timeout 4000
	QWENSTACK_GRPC_CASES=10000 QWENSTACK_FUZZ_SEED=0 $(DEV)/python -m pytest -s tests/fuzz/test_grpc_fuzz.py
	QWENSTACK_PARSER_CASES=20000 $(DEV)/python -m pytest tests/unit/engine/test_output_parser.py \
	    tests/unit/engine/test_answer.py --timeout 4000
	QWENSTACK_STATEFUL=5000x200 $(DEV)/python -m pytest tests/unit/engine/test_engine_machine.py --timeout 7200
	QWENSTACK_STORM_STREAMS=1000 $(DEV)/python -m pytest tests/integration/engine/test_cancel_storm.py
	QWENSTACK_STRUCTURED_PROMPTS=100 $(DEV)/python -m pytest tests/integration/engine/test_structured_output.py \
	    --timeout 4000
	QWENSTACK_TIMING_SAMPLES=250 $(DEV)/python -m pytest -s tests/integration/serving/test_prefix_cache_timing.py
	QWENSTACK_ISA_PROMPTS=50 $(DEV)/python -m pytest tests/integration/engine/test_instruction_sets.py --timeout 4000
	$(DEV)/python benches/reliability.py --scale long --write-doc
	QWENSTACK_SOAK_SECONDS=3600 $(DEV)/python -m pytest -s tests/integration/engine/test_soak.py

test-arm: .venv-test/installed ## Check the ARM kernels in an emulator, against those of this processor
	@tools/install_arm_tools.sh
	$(DEV)/python -m pytest tests/numerics/kernels/test_kernel_sums.py

test-sanitize: .venv-test/installed ## Run the kernels' tests under the address and undefined-behaviour sanitizers
	@tools/test_sanitized.sh $(DEV)/python

lint: .venv-test/installed ## Check format, style, types, import contracts and spelling
	$(DEV)/ruff format --check .
	$(DEV)/ruff check .
	$(DEV)/basedpyright --pythonpath $(DEV)/python
	$(DEV)/basedpyright --pythonpath $(DEV)/python --project tests/pyrightconfig.json
	$(DEV)/lint-imports
	$(DEV)/codespell
	$(DEV)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cc')

format: .venv-test/installed ## Put the code into its format
	$(DEV)/ruff format .
	$(DEV)/ruff check --fix .
	$(DEV)/clang-format -i $$(git ls-files '*.h' '*.cc')

bench: .venv/installed peers ## Measure the engine beside others on this machine (BENCH_FLAGS="--files stored")
	$(RUN)/qwenstack bench peers $(BENCH_FLAGS)

peers: ## Install the engines that we are compared with, built for this machine
	@PYTHON=$(PYTHON) tools/install_peers.sh

clean: ## Remove environments and build results (downloaded models stay)
	rm -rf .venv .venv-test .venv-node .venv-peers build dist web/node_modules src/qwenstack/serving/static
