"""ttt-docs in LangChain: answers, passages and documents from memories of what was read.

Nothing here holds weights: objects name a model and a memory, and each process loads both once, at first use.
"""

from langchain_ttt_docs.chat_models import ChatTTTDocs
from langchain_ttt_docs.document_loaders import TTTDocsLoader
from langchain_ttt_docs.ingest import TTTDocsIngest
from langchain_ttt_docs.llms import TTTDocsLLM
from langchain_ttt_docs.retrievers import TTTDocsRetriever
from langchain_ttt_docs.tools import memory_tool

__all__ = ["ChatTTTDocs", "TTTDocsIngest", "TTTDocsLLM", "TTTDocsLoader", "TTTDocsRetriever", "memory_tool"]
