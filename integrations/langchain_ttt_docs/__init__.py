"""ttt-docs in LangChain: answers, passages and documents from memories of what was read.

Nothing here holds weights: objects name a model and a memory, and each process loads both once, at first use.
"""

from langchain_ttt_docs.chat_models import ChatTTTDocs, TTTDocsLLM
from langchain_ttt_docs.retrievers import TTTDocsIngest, TTTDocsLoader, TTTDocsRetriever, memory_tool

__all__ = ["ChatTTTDocs", "TTTDocsIngest", "TTTDocsLLM", "TTTDocsLoader", "TTTDocsRetriever", "memory_tool"]
