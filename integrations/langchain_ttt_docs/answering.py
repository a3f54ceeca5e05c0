"""What chat model and LLM share: their settings, and one reply to a conversation, in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from langchain_core.messages import BaseMessage, ChatMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import Field

from langchain_ttt_docs.opening import MemoryChoice, open_memory, open_reader
from ttt_docs.errors import UsageError
from ttt_docs.lookup.router.routing import AskRoute, chosen_route
from ttt_docs.memory.memory import Memory
from ttt_docs.reader import TTTReader

_ROLES = {"system": "system", "human": "user", "user": "user", "ai": "assistant", "assistant": "assistant"}


class AnswerChoice(MemoryChoice):
    """Which memory answers, in which way, and how its words are chosen. A call may give each of these anew."""

    route: AskRoute = Field("auto", description="from the memory, looked up in its text, or as the question demands")
    temperature: float = Field(0.0, description="0: always the likeliest token")
    max_tokens: int = Field(160, description="of a reply, at most")
    top_p: float = 0.95
    top_k: int = Field(0, description="0: no limit")
    repetition_penalty: float = 1.1
    seed: int = 0
    stop: list[str] | None = Field(None, description="a reply ends before any of these texts")


class Answering(AnswerChoice):
    """What LangChain asks of both."""

    @property
    def _llm_type(self) -> str:
        return "ttt-docs"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in AnswerChoice.model_fields}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of `text`, by this model's own tokenizer."""
        return open_reader(self, open_memory(self)).tokenizer.encode(text)


@dataclass
class Replying:
    """A reply in progress: `pieces` are its text; afterwards `usage` and `about` are complete."""

    pieces: Iterator[str]
    usage: UsageMetadata
    about: dict[str, Any]  # model_name, documents, route, finish_reason; looked up: reason, verified, evidence


def reply_to(choice: AnswerChoice, conversation: Sequence[tuple[str, str]]) -> Replying:
    """The reply to a conversation of (role, text). It is written while its pieces are taken.

    By the memory route it goes on with the whole conversation, as `TTTReader.chat`; by the lookup route the last
    question alone is answered, in one piece that is copied from the text.

    Raises UsageError and the errors of `open_memory`, `open_reader`.
    """
    memory = open_memory(choice)
    reader = open_reader(choice, memory)
    names = [document.name for document in memory.documents] if memory is not None else []
    usage = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
    about: dict[str, Any] = {"model_name": choice.model, "documents": names}
    role, question = conversation[-1] if conversation else ("user", "")
    if role != "user" or not question.strip():
        raise UsageError("a conversation must end with a message of the user that is not empty")
    if memory is not None and chosen_route([memory], question, choice.route)[0] == "lookup":
        return Replying(_looked_up(reader, memory, question, choice, usage, about), usage, about)
    return Replying(_written(reader, memory, conversation, choice, usage, about), usage, about)


def _written(
    reader: TTTReader,
    memory: Memory | None,
    conversation: Sequence[tuple[str, str]],
    choice: AnswerChoice,
    usage: UsageMetadata,
    about: dict[str, Any],
) -> Iterator[str]:
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
    yield from reply
    _count(usage, reply.prompt_tokens, reply.tokens)
    about |= {"finish_reason": reply.ending, "route": "memory"}


def _looked_up(
    reader: TTTReader,
    memory: Memory,
    question: str,
    choice: AnswerChoice,
    usage: UsageMetadata,
    about: dict[str, Any],
) -> Iterator[str]:
    answer = reader.ask(memory, question, route="lookup")
    text = min((answer.text.partition(stop)[0] for stop in choice.stop or ()), key=len, default=answer.text)
    if text:
        yield text
    # The words are the document's: what counts is the question and the answer, not the passages looked through.
    _count(usage, len(reader.tokenizer.encode(question)), len(reader.tokenizer.encode(text)))
    evidence = [asdict(found) for found in answer.evidence]
    about |= {"finish_reason": "stop", "route": "lookup", "reason": answer.reason, "verified": answer.verified}
    about["evidence"] = evidence


def _count(usage: UsageMetadata, prompt: int, reply: int) -> None:
    usage["input_tokens"], usage["output_tokens"], usage["total_tokens"] = prompt, reply, prompt + reply


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
