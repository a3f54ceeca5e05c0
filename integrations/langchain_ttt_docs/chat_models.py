"""ChatTTTDocs: a chat model that has read a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict

from langchain_ttt_docs.answering import AnswerChoice, Answering, conversation_of, reply_to
from langchain_ttt_docs.opening import changed


class ChatTTTDocs(Answering, BaseChatModel):
    """Answers from what was read, kept in a memory file or a store.

        chat = ChatTTTDocs(memory="book.ttt")
        chat.invoke("Who is the captain?")

        library = ChatTTTDocs(store="s3://bucket/memories")
        library.invoke("Who is the captain?", document="moby-dick.txt")

    Each field may also be given to a single call. Without a memory the model answers from what it knows. Messages are
    text; tools, structured output and images are beyond it.
    """

    model_config = ConfigDict(extra="ignore")

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = reply_to(changed(self, AnswerChoice, {**kwargs, "stop": stop}), conversation_of(messages))
        message = AIMessage("".join(reply.pieces), usage_metadata=reply.usage, response_metadata=reply.about)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = reply_to(changed(self, AnswerChoice, {**kwargs, "stop": stop}), conversation_of(messages))
        for piece in reply.pieces:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        last = AIMessageChunk(
            content="", usage_metadata=reply.usage, response_metadata=reply.about, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last)
