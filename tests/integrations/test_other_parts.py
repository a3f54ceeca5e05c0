"""Retriever, loader, ingestion, tool; and that everything can be sent to another process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from langchain_core.documents import Document as Text
from langchain_core.load import dumpd, load
from langchain_core.messages import ToolCall
from langchain_ttt_docs import ChatTTTDocs, TTTDocsIngest, TTTDocsLLM, TTTDocsLoader, TTTDocsRetriever, memory_tool
from langchain_ttt_docs.choices import open_store

from ttt_docs import Document
from ttt_docs.errors import DocumentError, UsageError

QUESTION = "How many waves did the captain count on day 37?"


def test_passages_are_exact_and_say_where_they_stand(library, memory):
    found = TTTDocsRetriever(memory=library.memory, k=3).invoke(QUESTION)
    assert len(found) == 3
    for passage in found:
        about = passage.metadata
        assert passage.page_content == memory.text[about["start"] : about["end"]]
        assert about["source"] == "log.txt" and about["page"] in ("1", "2") and about["score"] > 0
    scores = [passage.metadata["score"] for passage in found]
    assert scores == sorted(scores, reverse=True)


async def test_passages_from_a_store(library):
    retriever = TTTDocsRetriever(store=library.store, document="log.txt")
    assert {p.metadata["source"] for p in retriever.invoke(QUESTION)} == {"log.txt"}
    assert {p.metadata["source"] for p in retriever.invoke("Where is the farm?", document="farm.txt")} == {"farm.txt"}
    assert len(await retriever.ainvoke(QUESTION, k=1)) == 1
    with pytest.raises(UsageError, match="needs a memory"):
        TTTDocsRetriever().invoke(QUESTION)


def test_passages_need_the_text(memory, tmp_path):
    bare = memory.save(tmp_path / "bare.ttt", text=False)
    with pytest.raises(UsageError, match="without its text"):
        TTTDocsRetriever(memory=str(bare)).invoke(QUESTION)


def test_documents_whole_and_in_parts(library, tmp_path):
    text = library.book.read_text("utf-8")
    (whole,) = TTTDocsLoader(library.book).load()
    assert whole.page_content == text and whole.metadata["source"] == str(library.book)
    chapters = tmp_path / "book.md"
    chapters.write_text("# One\n\nThe first part.\n\n# Two\n\nThe second part.\n", "utf-8")
    one, two = TTTDocsLoader(chapters, parts="chapter").lazy_load()
    assert (one.metadata["chapter"], two.metadata["chapter"]) == ("One", "Two") and "second" in two.page_content
    lazy = TTTDocsLoader([library.book, tmp_path / "missing.txt"]).lazy_load()
    assert next(lazy).page_content == text
    with pytest.raises(DocumentError, match="missing"):
        next(lazy)


def test_ingesting_reads_once_and_tells_where(library, tmp_path):
    ingest = TTTDocsIngest(model=library.model, dtype="float32", store=str(tmp_path), window=2048, chunk=512)
    where = ingest.invoke(str(library.book))
    text = library.book.read_text("utf-8")
    parts = [Text(text[:500], metadata={"source": "x/log.txt"}), Text(text[500:])]
    for same in (Document.from_text(text, name="again.txt"), Text(text), [Text(text)]):
        assert ingest.invoke(same) == where
    assert len(open_store(str(tmp_path)).keys()) == 1
    assert ingest.invoke(parts) != where  # parts are joined as paragraphs
    chat = ChatTTTDocs(model=library.model, dtype="float32", max_tokens=8, route="memory")
    assert chat.invoke(QUESTION, **where).response_metadata["documents"] == ["log.txt"]


async def test_a_memory_as_a_tool(settings):
    chat = ChatTTTDocs(**settings, route="lookup")
    tool = memory_tool(chat, name="log", description="Answers questions about the captain's log.")
    assert tool.name == "log" and list(tool.args) == ["question"]
    answer = tool.invoke({"question": QUESTION})
    assert answer == chat.invoke(QUESTION).text == await tool.ainvoke({"question": QUESTION})
    message = tool.invoke(ToolCall(name="log", args={"question": QUESTION}, id="1", type="tool_call"))
    assert message.content == answer and message.artifact["route"] == "lookup" and message.artifact["evidence"]


@pytest.mark.parametrize("kind", [ChatTTTDocs, TTTDocsLLM, TTTDocsRetriever, TTTDocsIngest])
def test_serialization(kind, library):
    place = {"store": library.store} if kind is TTTDocsIngest else {"memory": library.memory}
    made = kind(model=library.model, **place)
    written = dumpd(made)
    assert written["type"] == "constructor" and written["kwargs"]["model"] == library.model
    again = load(written, valid_namespaces=["langchain_ttt_docs"], allowed_objects=[kind])
    assert type(again) is kind and again.model_dump() == made.model_dump()
    copied = pickle.loads(pickle.dumps(made))
    assert copied.model_dump() == made.model_dump() and len(pickle.dumps(made)) < 4000


def test_a_pickled_model_answers_the_same_after_it_was_used(settings):
    chat = ChatTTTDocs(**settings)
    answer = chat.invoke(QUESTION)
    assert len(pickle.dumps(chat)) < 4000
    assert pickle.loads(pickle.dumps(chat)).invoke(QUESTION).text == answer.text


def test_ttt_docs_itself_does_without_langchain():
    code = "import sys, ttt_docs, ttt_docs.reader; sys.exit(any(m.startswith('langchain') for m in sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
