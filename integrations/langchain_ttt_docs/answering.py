"""What chat model and LLM share: their settings, and one reply to a conversation, in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import BaseMessage, ChatMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_ttt_docs.opening import MemoryChoice, open_memory, open_reader
from pydantic import Field

from ttt_docs.errors import UsageError
from ttt_docs.memory.memory import Memory

_ROLES = {"system": "system", "human": "user", "user": "user", "ai": "assistant", "assistant": "assistant"}


class AnswerChoice(MemoryChoice):
    """Which memory answers, and how its words are chosen. A call may give each of these anew."""

    temperature: float = Field(0.0, description="0: always the likeliest token")
    max_tokens: int = Field(160, description="of a reply, at most")
    top_p: float = 0.95
    top_k: int = Field(0, description="0: no limit")
    repetition_penalty: float = 1.1
    seed: int = 0
    stop: list[str] | None = Field(None, description="a reply ends before any of these texts")


@dataclass
class Replying:
    """A reply in progress: `pieces` are its text; afterwards `usage` and `about` are complete."""

    pieces: Iterator[str]
    usage: UsageMetadata
    about: dict[str, Any] = field(default_factory=dict)  # model_name, finish_reason, route, documents, evidence


def reply_to(choice: AnswerChoice, conversation: Sequence[tuple[str, str]]) -> Replying:
    """The reply to a conversation of (role, text), as `TTTReader.chat` takes it; nothing is written before it is asked for.

    Raises UsageError and the errors of `open_memory`, `open_reader`.
    """
    memory = open_memory(choice)
    reader = open_reader(choice, memory)
    usage = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
    about = {"model_name": choice.model, "route": "memory", "documents": _names(memory)}
    reply = reader.chat(
        memory,
        conversation,
        max_new_tokens=choice.max_tokens,
        temperature=choice.temperature,
        top_p=choice.top_p,
        top_k=choice.top_k,
        repetition_penalty=choice.repetition_penalty,
        seed=choice.seed,
        stop=tuple(choice.stop or ()),
    )

    def pieces() -> Iterator[str]:
        yield from reply
        usage.update(
            input_tokens=reply.prompt_tokens,
            output_tokens=reply.tokens,
            total_tokens=reply.prompt_tokens + reply.tokens,
        )
        about["finish_reason"] = reply.ending

    return Replying(pieces(), usage, about)


def _names(memory: Memory | None) -> list[str]:
    return [document.name for document in memory.documents] if memory is not None else []


def conversation_of(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    """LangChain's messages as (role, text).

    Raises UsageError for a message that is not text, or of a tool.
    """
    return [(_role(message), _text(message)) for message in messages]


def _role(message: BaseMessage) -> str:
    kind = message.role if isinstance(message, ChatMessage) else message.type
    if kind not in _ROLES:
        raise UsageError(f"a message of {kind!r}: this model takes system, human and ai messages, and calls no tools")
    return _ROLES[kind]


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    for block in message.content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind != "text":
            raise UsageError(f"a message holds {kind!r}: this model reads text alone")
    return str(message.text)
