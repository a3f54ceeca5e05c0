"""A memory as a tool, for agents on other models."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, StructuredTool

from langchain_ttt_docs.chat_models import ChatTTTDocs


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
