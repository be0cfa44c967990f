# make train   trains with the defaults: make train ARGS="--net 2e0.1 --epochs 5"
# make test    runs the tests:           make test ARGS="-k events"
# make lint    ruff, pyright, clang-format
# make format  rewrites the files as lint wants them
# make clean   removes the environment and what was built
#
# The first call makes .venv and installs into it; later calls find it ready. Needed: Python 3.11 or later, and make.
# PYTHON=python3.12 names the interpreter; EXTRAS=test,cuda adds JAX for NVIDIA GPUs.

PYTHON ?=
VENV ?= .venv
EXTRAS ?= test
ARGS ?=

BIN := $(VENV)/bin
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)
CXX_FILES := $(wildcard csrc/*.cc csrc/*.h)

.PHONY: train test lint format clean FORCE
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

clean:
	rm -rf $(VENV) build dist

# One stamp for each set of extras. The install is editable: a changed Python file needs no new one, a file that came or
# went does, because the install knows the modules by name.
$(VENV)/installed-%: pyproject.toml CMakeLists.txt $(CXX_FILES) $(VENV)/modules
	@echo "installing ranvier[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@RANVIER_REQUIRE_NATIVE= $(BIN)/python -c \
	  "from ranvier.kernels import status; s = status(); s.found or print('ranvier: ' + s.reason)"
	@touch $@

$(VENV)/modules: FORCE | $(BIN)/python
	@find ranvier -name "*.py" | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# The newest interpreter that can make an environment.
INTERPRETER = $(firstword $(foreach python,$(CANDIDATES),$(shell \
  $(python) -c "import sys, ensurepip, venv; print('$(python)' if sys.version_info >= (3, 11) else '')" 2>/dev/null)))
$(BIN)/python:
	$(if $(INTERPRETER),,$(error ranvier needs Python 3.11 or later with venv; \
	  none among $(CANDIDATES); install one, or name it: make PYTHON=/path/to/python))
	$(INTERPRETER) -m venv $(VENV)
