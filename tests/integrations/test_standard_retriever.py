"""LangChain's own suite for retrievers, as it is."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langchain_ttt_docs import TTTDocsRetriever


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _place(self, library):
        self.memory = library.memory

    @property
    def retriever_constructor(self):
        return TTTDocsRetriever

    @property
    def retriever_constructor_params(self):
        return {"memory": self.memory}

    @property
    def retriever_query_example(self):
        return "How many waves did the captain count?"
