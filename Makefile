# dfdc-ray from a checkout: `make help` lists the targets. Needs Python 3.11 or 3.12 with venv; everything else goes into .venv.
#   make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The package itself comes from this folder, so pip needs no index for it.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-long lint notebooks docs lock setup clean

help:
	@echo "make demo       set up, then the whole way in miniature: generate, preprocess, train, evaluate, score (out/demo)"
	@echo "make test       set up, then the tests"
	@echo "make test-long  set up, then the tests that take minutes"
	@echo "make lint       set up, then ruff and mypy"
	@echo "make notebooks  set up, then run the notebooks and store their outputs (minutes)"
	@echo "make docs       set up, then the site of docs/ and the docstrings (out/docs/index.html)"
	@echo "make setup      only set up: $(VENV) from requirements/all.lock, and the weights of the face detectors"
	@echo "make lock       resolve requirements/*.lock anew after a change in pyproject.toml"
	@echo "make clean      remove caches and the demo's output (not $(VENV))"

demo: setup
	$(BIN)/dfdc-ray demo --out out/demo

# In the order of the folders: tests that wait long, for lost hosts and for Ray, would else come last and leave a core idle.
test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: setup
	$(BIN)/python notebooks/store.py

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs out/docs

# The weights lie in the home folder, outside the stamps' sight: looked at every time, which takes a second.
setup: $(VENV)/.installed
	@$(BIN)/python -c 'from dfdc_ray.faces.weights import stage_weights; stage_weights()'

# .installing marks an installation under way. Found again at the start, the last one was cut off, and pip may take a half-written
# package for a whole one: begin afresh. Renamed at the end, it keeps the time of the start, so a lock changed meanwhile counts as newer.
$(VENV)/.locked: requirements/all.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "'$(PYTHON)' is not Python 3.11 or 3.12. Install one, or name it: make ... PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "'$(PYTHON)' cannot make virtual environments. On Debian: apt install python3-venv" >&2; exit 1; }
	@if [ -e $(VENV)/.installing ]; then echo "The last installation was cut off: $(VENV) is made afresh"; rm -rf $(VENV); fi
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.installing
	$(PIP) install --no-deps --require-hashes -r requirements/all.lock
	@mv $(VENV)/.installing $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(PIP) install --quiet --no-index --no-deps --no-build-isolation --editable .
	@touch $@

# Keeps what is locked where it still fits; delete a lock first to take the newest of everything.
lock:
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp"; "$$tmp/bin/python" -m pip --disable-pip-version-check install --quiet uv; \
	compile="$$tmp/bin/uv pip compile pyproject.toml --python-version 3.11 --overrides requirements/overrides.txt --quiet \
		--generate-hashes --no-header --no-emit-index-url"; \
	$$compile --extra train --extra serve --extra docs --extra dev --output-file requirements/all.lock; \
	$$compile --constraints requirements/all.lock --output-file requirements/preprocess.lock

clean:
	rm -rf out/demo out/docs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
