# Every target runs in .venv, which is built on first use and after a change of the requirements.

# To train on a GPU: make clean, then make EXTRAS=dev,cuda12 demo.
EXTRAS ?= dev
PYTHON ?= python3
DEMO_DIR ?= runs/demo
BIN := .venv/bin

# Compiled programs are kept between runs, outside the repository.
export JAX_COMPILATION_CACHE_DIR ?= $(HOME)/.cache/ndsm_jax/xla
# Imports take three times as long without .pyc files.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo gm2d test test-all fuzz lint format constraints clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.stamp ## Train a model of the 8x8 digits, evaluate it and write a report
	$(BIN)/python experiments/train.py --config=configs/digits.py --workdir=$(DEMO_DIR)
	$(BIN)/python experiments/evaluate.py --workdir=$(DEMO_DIR)

gm2d: .venv/.stamp ## Train and evaluate on rings and bars in the plane
	$(BIN)/python experiments/train.py --config=configs/gm2d.py --workdir=runs/gm2d
	$(BIN)/python experiments/evaluate.py --workdir=runs/gm2d

test: .venv/.stamp ## Run the tests but the slow ones
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m "not slow"

test-all: .venv/.stamp ## Run all tests
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

fuzz: .venv/.stamp ## Try thousands of bad inputs, and count them
	NDSM_FUZZ=long $(BIN)/python -m pytest tests/fuzz

lint: .venv/.stamp ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.stamp ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: ## Update constraints.txt to the newest versions (needs uv)
	uv pip compile --quiet --universal --upgrade --all-extras --no-header --no-annotate \
	    --no-emit-index-url pyproject.toml --output-file constraints.txt

clean: ## Remove .venv and all caches; runs/ and the compilation cache stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is \
	needed, $(PYTHON) is " + sys.version.split()[0] + ". Choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@set -e; if command -v uv >/dev/null; then \
	    echo "Setting up .venv with uv (less than a minute) ..."; \
	    uv venv --quiet --allow-existing \
	        --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv; \
	    uv pip install --quiet --python $(BIN)/python --compile-bytecode \
	        --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	else \
	    echo "Setting up .venv with pip (one to three minutes) ..."; \
	    $(PYTHON) -m venv .venv; \
	    $(BIN)/python -m pip install -qq --disable-pip-version-check \
	        --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	fi
	@touch $@
	@echo "Ready."
