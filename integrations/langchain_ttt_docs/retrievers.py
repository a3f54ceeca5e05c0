"""TTTDocsRetriever: passages of the text that a memory holds."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field

from langchain_ttt_docs.opening import MemoryChoice, changed, open_memory
from ttt_docs.errors import UsageError
from ttt_docs.lookup.evidence import quote
from ttt_docs.lookup.query import understand
from ttt_docs.lookup.search import search
from ttt_docs.lookup.stored import index_of


class PassageChoice(MemoryChoice):
    """Which memory is searched, and how many passages come back. A call may give each of these anew."""

    k: int = Field(4, ge=1, description="passages at most, best first")


class TTTDocsRetriever(BaseRetriever, PassageChoice):
    """Finds the passages of a memory's text that a question is about, without any model.

    Each comes with `metadata`: `source` (the document's name), `page` and `chapter` where known, the characters
    `start` to `end` of the memory's text that it is, word for word, and its `score`, larger for better.

        TTTDocsRetriever(memory="book.ttt", k=3).invoke("Who is the captain?")
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        choice = changed(self, PassageChoice, kwargs)
        memory = open_memory(choice)
        if memory is None:
            raise UsageError("a retriever needs a memory: give memory=, a file, or store= and document=")
        if memory.text is None:
            raise UsageError("this memory was saved without its text, so it holds no passages: ingest it again")
        index = index_of(memory.text, memory.index)
        found = search(index, understand(query, index.language))
        passages = [quote(memory, *index.span(number), score) for number, score in found.passages[: choice.k]]
        return [
            Document(
                passage.quote,
                metadata={
                    "source": passage.document,
                    "page": passage.page,
                    "chapter": passage.chapter,
                    "start": passage.start,
                    "end": passage.end,
                    "score": passage.score,
                },
            )
            for passage in passages
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        sync = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=sync, **kwargs)
