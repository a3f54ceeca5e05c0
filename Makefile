# `make demo` reads a story, `make test` runs the tests that decide, `make check` is what CI runs. A second call reinstalls
# nothing.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
BOOK ?= examples/ice-maiden.pdf
QUESTION ?= "Who was the miller's daughter?"
PYTEST := $(BIN)/python -m pytest --numprocesses 2

BOOK_TTT := build/$(basename $(notdir $(BOOK))).ttt
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-long test-all check lint coverage clean

# The CPU build of torch is pinned first, so that nothing that depends on torch pulls in a CUDA build.
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --editable .
	touch $@

$(BIN)/.installed-dev: pyproject.toml $(BIN)/.installed
	$(PIP) --editable ".[dev]"
	touch $@

# What is there already is neither downloaded nor read again.
demo: $(BIN)/.installed
	mkdir -p build
	$(BIN)/ttt-docs models pull smollm2-135m
	$(BIN)/ttt-docs ingest $(BOOK) -o $(BOOK_TTT) > $(BOOK_TTT).log
	$(BIN)/ttt-docs summarize $(BOOK_TTT)
	$(BIN)/ttt-docs continue $(BOOK_TTT) --tokens 80
	$(BIN)/ttt-docs ask $(BOOK_TTT) $(QUESTION)
	@echo; cat $(BOOK_TTT).log; echo "A whole novel: make demo BOOK=examples/portrait.pdf"

test: $(BIN)/.installed-dev
	OMP_NUM_THREADS=1 $(PYTEST)

# Compilers, clusters and random runs: minutes each, and nothing that a change to another room breaks.
test-long: $(BIN)/.installed-dev
	OMP_NUM_THREADS=1 $(PYTEST) -m "long and not real and not gpu"

test-all: test test-long

lint: $(BIN)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:cli:integrations $(BIN)/lint-imports

coverage: $(BIN)/.installed-dev
	OMP_NUM_THREADS=1 $(PYTEST) --cov=ttt_docs --cov=ttt_docs_cli --cov=langchain_ttt_docs --cov-report=term:skip-covered

check: lint test-all

clean:
	rm -rf $(VENV) build .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage
