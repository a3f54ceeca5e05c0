"""TTTDocsIngest: reading as a step of a chain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document as Text
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field

from langchain_ttt_docs.opening import ModelChoice, open_reader, open_store
from ttt_docs.documents import Document, load_document
from ttt_docs.store.store import key_of

#: What is read: a path or URL, a document of LangChain's or a list of its parts, or one of ttt-docs.
Source = str | os.PathLike[str] | Text | Sequence[Text] | Document


class TTTDocsIngest(RunnableSerializable[Any, dict[str, str]], ModelChoice):
    """Reads a document into a store, unless it was read before, and tells where its memory is.

    What comes out goes into a call of the chat model, LLM or retriever:

        where = TTTDocsIngest(store="memories").invoke("book.pdf")
        ChatTTTDocs().invoke("Who is the captain?", **where)
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    store: str = Field(description="folder or fsspec URL of a MemoryStore")
    window: int | None = Field(None, description="tokens that attention sees back; None: the model's usual")
    chunk: int | None = Field(None, description="tokens per update; None: the model's usual")

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def invoke(self, input: Source, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, str]:
        """`{"store": ..., "document": key}` of the memory.

        Raises:
            DocumentError: a document that cannot be read.
            StoreError: the store cannot be used.
        """
        return self._call_with_config(self._read, input, config)

    def _read(self, source: Source) -> dict[str, str]:
        reader = open_reader(self, window=self.window, chunk=self.chunk)
        memory = reader.ingest(_document(source), store=open_store(self.store), progress=False)
        return {"store": self.store, "document": key_of(memory)}


def _document(source: Source) -> Document:
    if isinstance(source, (str, os.PathLike, Document)):
        return load_document(source)
    parts = [source] if isinstance(source, Text) else list(source)
    name = next((os.path.basename(str(part.metadata["source"])) for part in parts if "source" in part.metadata), "text")
    return Document.from_text("\n\n".join(part.page_content for part in parts), name=name)
