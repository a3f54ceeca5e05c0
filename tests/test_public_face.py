"""What `import ttt_docs` shows, and what a type checker makes of a program outside the package that uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttt_docs

ROOT = Path(__file__).parents[1]

PROGRAM = """
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

from ttt_docs import (
    Answer, CheckpointError, ChunkReport, Document, DocumentError, Evidence, Memory, MemoryFormatError,
    MemoryMismatchError, MemoryStore, ReadingInterrupted, StoreError, StoredMemory, Summary, TTTDocsError, TTTReader,
    UsageError, __version__,
)
from ttt_docs.documents import load_document
from ttt_docs.generation.chat import Reply
from ttt_docs.generation.summary import SummaryStream
from ttt_docs.memory import Span, inspect_memory, memories_equal
from ttt_docs.model.config import ReadingConfig


def heard(report: ChunkReport) -> None:
    assert_type(report.loss, float)


def main() -> None:
    assert_type(__version__, str)
    reader = TTTReader.from_pretrained("smollm2-135m", dtype="float32", window=2048, chunk=1024, inner_rule="sgd")
    assert_type(reader, TTTReader)
    assert_type(reader.reading, ReadingConfig)
    store = MemoryStore("memories", progress_every=4)
    document = load_document(Path("book.pdf"), password=None)
    assert_type(document, Document)
    memory = reader.ingest(document, store=store, on_chunk=heard, progress=False)
    assert_type(memory, Memory)
    assert_type(reader.ingest_batch([document, Document.from_text("a", name="b")]), list[Memory])
    assert_type(memory.save("book.ttt", precision="bfloat16"), Path)
    assert_type(Memory.load("book.ttt").compact(reader), Memory)
    assert_type(reader.summarize(memory, "page", seed=1), Summary)
    stream = reader.summarize(memory, "chapters", "Who?", stream=True)
    assert_type(stream, SummaryStream)
    assert_type([section.pages for section in stream], list[str | None])
    assert_type(stream.summary.sentences[0].evidence, tuple[Evidence, ...])
    assert_type(reader.score(memory, ["A summary."]), list[float])
    answer = reader.ask([memory, memory], "Who?", route="lookup", top_k=3)
    assert_type(answer, Answer)
    assert_type(answer.evidence, tuple[Evidence, ...])
    assert_type(answer.evidence[0].page, str | None)
    assert_type(reader.continue_text(memory, 20), str)
    assert_type(reader.continue_text(memory, 20, stream=True, temperature=0), Iterator[str])
    assert_type(reader.chat(memory, [("user", "Who?")]), Reply)
    assert_type(store.get(store.put(memory)), Memory | None)
    for entry in store.find(name="book.pdf"):
        assert_type(entry, StoredMemory)
    assert_type(memory.documents[0].spans, tuple[Span, ...])
    assert_type(memories_equal(memory, memory), bool)
    inspect_memory("book.ttt")
    try:
        reader.check(memory)
    except (CheckpointError, DocumentError, MemoryMismatchError, MemoryFormatError, StoreError, UsageError) as error:
        assert_type(error.exit_code, int)
    except ReadingInterrupted as interruption:
        interruption.memory.save("part.ttt")
    raise TTTDocsError("done")
"""

MISTAKES = """
from ttt_docs import Memory, TTTReader

reader = TTTReader.from_pretrained(windw=2048)
memory: str = reader.ingest("book.pdf")
reader.summarize(Memory.load("book.ttt"), "novel")
reader.ask(Memory.load("book.ttt"), 7)
"""


def checked(program: str, folder: Path) -> str:
    """What mypy says, in its strict mode, of a program in a folder of its own."""
    pytest.importorskip("mypy")
    file = folder / "program.py"
    file.write_text(program, "utf-8")
    strict = ("--strict", "--python-version", "3.11", "--follow-imports", "silent", "--ignore-missing-imports")
    command = [sys.executable, "-m", "mypy", *strict, "--cache-dir", str(ROOT / ".mypy_cache" / "public"), str(file)]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


@pytest.mark.long
def test_a_program_that_uses_every_public_name_passes_a_strict_type_check(tmp_path):
    assert all(name in PROGRAM for name in ttt_docs.__all__)
    assert "Success" in (said := checked(PROGRAM, tmp_path)), said


@pytest.mark.long
def test_mistakes_in_a_program_are_found(tmp_path):
    said = checked(MISTAKES, tmp_path)
    for mistake in ('Unexpected keyword argument "windw"', "in assignment", '"summarize"', '"ask"'):
        assert mistake in said, said
    assert "Found 4 errors" in said


def test_names_that_load_late_are_listed():
    assert set(ttt_docs.__all__) <= set(dir(ttt_docs))
    for name in ttt_docs.__all__:
        assert getattr(ttt_docs, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Redaer'"):
        ttt_docs.Redaer  # noqa: B018
    program = "import sys, ttt_docs; dir(ttt_docs); sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
