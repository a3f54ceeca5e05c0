"""The small book, read."""

from __future__ import annotations

import pytest
from report_book import HOSTILE, small_book

from ttt_docs.memory import Memory, inspect_memory
from ttt_docs.report import Findings, examine


@pytest.fixture(scope="session")
def small_memory(tiny_reader) -> Memory:
    return tiny_reader.ingest(small_book(f"book {HOSTILE}.txt"), progress=False)


@pytest.fixture(scope="session")
def facts(small_memory, tmp_path_factory) -> dict:
    return inspect_memory(small_memory.save(tmp_path_factory.mktemp("report") / "book.ttt"))


@pytest.fixture(scope="session")
def findings(small_memory, facts, tiny_reader) -> Findings:
    return examine(small_memory, facts, tiny_reader)
