"""LangChain's own suites for chat models, as they are. Tools, structured output and media are declared as missing."""

from __future__ import annotations

from importlib import import_module

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from langchain_ttt_docs import ChatTTTDocs


class TestChatUnit(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _allowed(self, monkeypatch):
        """`load(allowed_objects="all")` means the classes on LangChain's own list, which no package can add to itself;
        users name the class (see `test_serialization`)."""
        loading = import_module("langchain_core.load.load")  # as an attribute, the function of that name hides it
        path = tuple(ChatTTTDocs.lc_id())
        monkeypatch.setitem(loading.ALL_SERIALIZABLE_MAPPINGS, path, path)
        monkeypatch.setattr(loading, "_default_class_paths_cache", {}, raising=False)

    @property
    def chat_model_class(self):
        return ChatTTTDocs

    @property
    def chat_model_params(self):
        return {"model": "smollm2-135m", "memory": "book.ttt"}  # only named: nothing is loaded before it is asked


class TestChatIntegration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _place(self, settings, library, tmp_path):
        link = tmp_path / "the-same-model"
        link.symlink_to(library.model)
        self.settings, self.other_name = settings, str(link)

    @property
    def chat_model_class(self):
        return ChatTTTDocs

    @property
    def chat_model_params(self):
        return self.settings | {"route": "memory"}

    @property
    def has_tool_calling(self):
        return False

    @property
    def has_structured_output(self):
        return False

    @property
    def model_override_value(self):
        return self.other_name
