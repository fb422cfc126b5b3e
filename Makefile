# Everything runs in a virtual environment of its own, made from the pinned requirements.

# A name on the PATH may be a shim of a version that is not active, a Python that is too old, or one without venv.
SUITS = -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
WANTED := Python 3.11 or later that runs and has venv
NAMES := python3.11 python3.12 python3.13 python3.14 python3 python
PYTHON ?= $(shell for name in $(NAMES); do if "$$name" $(SUITS); then echo "$$name"; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types docs lock clean

demo: $(VENV)/.runtime  ## the 2-D study on a small budget, with a report to look at
	$(BIN)/vamf study toys --quick

test: $(VENV)/.dev  ## the test suite
	VAMF_QUICK_COMPILATION=1 $(BIN)/python -m pytest -n auto -m "not slow and not long"

test-slow: $(VENV)/.dev  ## the long tests
	VAMF_QUICK_COMPILATION=1 $(BIN)/python -m pytest -n auto -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

docs: $(VENV)/.docs  ## the documentation as HTML, in docs/_build
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml
	@if test -d $(VENV); then \
	  $(BIN)/python $(SUITS) || { echo "$(VENV): holds no $(WANTED); make clean removes it" >&2; exit 1; }; \
	else \
	  test -n "$(PYTHON)" || { echo "no $(WANTED) was found; name one with make PYTHON=..." >&2; exit 1; }; \
	  $(PYTHON) $(SUITS) || { echo "PYTHON=$(PYTHON): not a $(WANTED)" >&2; exit 1; }; \
	  echo "$(PYTHON) -m venv $(VENV)"; $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	touch $@

$(VENV)/.docs: $(VENV)/.runtime requirements/docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	touch $@

lock:  ## pin the requirements anew (needs uv)
	for set in runtime build dev docs; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    requirements/$$set.in --output-file requirements/$$set.txt; \
	done

clean:
	rm -rf $(VENV) docs/_build
