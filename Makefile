# `make demo` reads a book, `make test` runs every test, `make check` is what CI runs. A second call reinstalls nothing.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
BOOK ?= examples/portrait.pdf
QUESTION ?= "Who is the hero of this book?"

BOOK_TTT := build/$(basename $(notdir $(BOOK))).ttt

.PHONY: demo test check lint clean

# The CPU build of torch is pinned first, so that nothing that depends on torch pulls in a CUDA build.
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

# What is there already is neither downloaded nor read again.
demo: $(BIN)/.installed
	mkdir -p build
	$(BIN)/ttt-docs models pull smollm2-135m
	$(BIN)/ttt-docs ingest $(BOOK) -o $(BOOK_TTT)
	$(BIN)/ttt-docs summarize $(BOOK_TTT)
	$(BIN)/ttt-docs continue $(BOOK_TTT) --tokens 80
	$(BIN)/ttt-docs ask $(BOOK_TTT) $(QUESTION)

test: $(BIN)/.installed
	$(BIN)/python -m pytest

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) build .pytest_cache .hypothesis .mypy_cache .ruff_cache
