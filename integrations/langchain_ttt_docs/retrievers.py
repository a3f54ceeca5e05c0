"""Around the models: passages of a memory, documents, reading as a step of a chain, and a memory as a tool."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document as Text
from langchain_core.messages import AIMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import ConfigDict, Field

from langchain_ttt_docs.chat_models import ChatTTTDocs
from langchain_ttt_docs.choices import MemoryChoice, ModelChoice, changed, open_memory, open_reader, open_store
from ttt_docs.documents import Document, load_document
from ttt_docs.documents.load import DEFAULT_MAX_BYTES
from ttt_docs.errors import UsageError
from ttt_docs.generation.results import quote
from ttt_docs.lookup.question import understand
from ttt_docs.lookup.search import search
from ttt_docs.store.store import key_of
from ttt_docs.text.index import index_of

Place = str | os.PathLike[str]
#: What is read: a path or URL, a document of LangChain's or a list of its parts, or one of ttt-docs.
Readable = Place | Text | Sequence[Text] | Document


class PassageChoice(MemoryChoice):
    """Which memory is searched, and how many passages come back. A call may give each of these anew."""

    k: int = Field(4, ge=1, description="passages at most, best first")


class TTTDocsRetriever(PassageChoice, BaseRetriever):
    """Finds the passages of a memory's text that a question is about, without any model.

    Each comes with `metadata`: `source` (the document's name), `page` and `chapter` where known, the characters
    `start` to `end` of the memory's text that it is, word for word, and its `score`, larger for better.

        TTTDocsRetriever(memory="book.ttt", k=3).invoke("Who is the captain?")
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Text]:
        choice = changed(self, PassageChoice, kwargs)
        memory = open_memory(choice)
        if memory is None:
            raise UsageError("a retriever needs a memory: give memory=, a file, or store= and document=")
        if memory.text is None:
            raise UsageError("this memory was saved without its text, so it holds no passages: ingest it again")
        index = index_of(memory.text, memory.index)
        found = search(index, understand(query, index.language)).passages[: choice.k]
        passages = [quote(memory, *index.span(number), score) for number, score in found]
        names = ("page", "chapter", "start", "end", "score")
        return [
            Text(one.quote, metadata={"source": one.document} | {name: getattr(one, name) for name in names})
            for one in passages
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Text]:
        sync = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=sync, **kwargs)


class TTTDocsLoader(BaseLoader):
    """Loads PDF, EPUB, HTML, Markdown and text from files or URLs, one after the other, whole or by page or chapter.

    A document without such parts comes whole. `metadata` has the source as given, the document's name and sha256, its
    format, title and author where known, and of a part its page or chapter and its characters `start` to `end` in the
    document's text.

        for page in TTTDocsLoader("book.pdf", parts="page").lazy_load():
            ...
    """

    def __init__(
        self,
        sources: Place | Sequence[Place],
        *,
        parts: Literal["document", "page", "chapter"] = "document",
        password: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        one = isinstance(sources, (str, os.PathLike))
        self.sources: list[Place] = [sources] if one else list(sources)  # type: ignore[list-item, arg-type]
        self.parts, self.password, self.max_bytes = parts, password, max_bytes

    def lazy_load(self) -> Iterator[Text]:
        """Raises DocumentError at the first source that cannot be read, after the documents before it."""
        for source in self.sources:
            document = load_document(source, password=self.password, max_bytes=self.max_bytes)
            about = {"source": os.fspath(source), "name": document.name, "sha256": document.sha256}
            spans = [span for span in document.spans if span.kind == self.parts]
            parts: list[tuple[int, int, dict[str, str]]] = [(s.start, s.end, {s.kind: s.label}) for s in spans]
            for start, end, where in parts or [(0, len(document.text), {})]:
                metadata = {**document.metadata, **about, **where, "start": start, "end": end}
                yield Text(document.text[start:end], metadata=metadata)


class TTTDocsIngest(ModelChoice, RunnableSerializable[Any, dict[str, str]]):
    """Reads a document into a store, unless it was read before, and tells where its memory is.

    What comes out goes into a call of the chat model, LLM or retriever:

        where = TTTDocsIngest(store="memories").invoke("book.pdf")
        ChatTTTDocs().invoke("Who is the captain?", **where)
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    store: str = Field(description="folder or fsspec URL of a MemoryStore")
    window: int | None = Field(None, description="tokens that attention sees back; None: the model's usual")
    chunk: int | None = Field(None, description="tokens per update; None: the model's usual")

    def invoke(self, input: Readable, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, str]:
        """`{"store": ..., "document": key}` of the memory.

        Raises:
            DocumentError: a document that cannot be read.
            StoreError: the store cannot be used.
        """
        return self._call_with_config(self._read, input, config)

    def _read(self, source: Readable) -> dict[str, str]:
        reader = open_reader(self, window=self.window, chunk=self.chunk)
        memory = reader.ingest(_document(source), store=open_store(self.store), progress=False)
        return {"store": self.store, "document": key_of(memory)}


def _document(source: Readable) -> Document:
    if isinstance(source, (str, os.PathLike, Document)):
        return load_document(source)
    parts = [source] if isinstance(source, Text) else list(source)
    name = next((os.path.basename(str(part.metadata["source"])) for part in parts if "source" in part.metadata), "text")
    return Document.from_text("\n\n".join(part.page_content for part in parts), name=name)


def memory_tool(chat: ChatTTTDocs, *, name: str = "ask_the_document", description: str) -> BaseTool:
    """A tool that answers a `question` from the chat model's memory.

    `description` tells the agent what was read. The tool's artifact is the answer's `response_metadata`: route,
    documents, and evidence where the answer was looked up.
    """

    def told(answer: AIMessage) -> tuple[str, dict[str, Any]]:
        return str(answer.text), answer.response_metadata

    def ask(question: str) -> tuple[str, dict[str, Any]]:
        """Asks what was read."""
        return told(chat.invoke(question))

    async def ask_async(question: str) -> tuple[str, dict[str, Any]]:
        return told(await chat.ainvoke(question))

    return StructuredTool.from_function(
        ask, ask_async, name=name, description=description, response_format="content_and_artifact"
    )
