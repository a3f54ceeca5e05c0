"""ChatTTTDocs, a chat model that has read a document, and TTTDocsLLM, the same, text to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult, Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field

from langchain_ttt_docs.choices import MemoryChoice, changed, open_memory, open_reader
from ttt_docs.errors import UsageError
from ttt_docs.lookup.router.routing import AskRoute, chosen_route

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
    """What LangChain asks of chat models and LLMs alike."""

    model_config = ConfigDict(extra="ignore")

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


class Reply:
    """The reply to a conversation of (role, text). It is written while its pieces are taken.

    By the memory route it continues the whole conversation, as `TTTReader.chat` does. By the lookup route it answers
    the last question alone, in one piece that is copied from the text. Afterwards `usage` is complete, and `about`
    holds model_name, documents, route and finish_reason, of a lookup also reason, verified and evidence.

    Raises UsageError and the errors of `open_memory`, `open_reader`.
    """

    def __init__(self, choice: AnswerChoice, conversation: Sequence[tuple[str, str]]) -> None:
        self.choice, self.conversation = choice, conversation
        self.memory = open_memory(choice)
        self.reader = open_reader(choice, self.memory)
        names = [document.name for document in self.memory.documents] if self.memory is not None else []
        self.about: dict[str, Any] = {"model_name": choice.model, "documents": names}
        self.usage = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
        role, self.question = conversation[-1] if conversation else ("user", "")
        if role != "user" or not self.question.strip():
            raise UsageError("a conversation must end with a message of the user that is not empty")

    def pieces(self) -> Iterator[str]:
        memory, route = self.memory, self.choice.route
        looked_up = memory is not None and chosen_route([memory], self.question, route)[0] == "lookup"
        return self._looked_up() if looked_up else self._written()

    def _written(self) -> Iterator[str]:
        sampling = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        reply = self.reader.chat(
            self.memory,
            self.conversation,
            max_new_tokens=self.choice.max_tokens,
            stop=tuple(self.choice.stop or ()),
            **{name: getattr(self.choice, name) for name in sampling},
        )
        yield from reply
        self._count(reply.prompt_tokens, reply.tokens)
        self.about |= {"finish_reason": reply.ending, "route": "memory"}

    def _looked_up(self) -> Iterator[str]:
        assert self.memory is not None
        answer = self.reader.ask(self.memory, self.question, route="lookup")
        text = min((answer.text.partition(end)[0] for end in self.choice.stop or ()), key=len, default=answer.text)
        if text:
            yield text
        # The words are the document's. The question and the answer count, not the passages looked through.
        encode = self.reader.tokenizer.encode
        self._count(len(encode(self.question)), len(encode(text)))
        self.about |= {"finish_reason": "stop", "route": "lookup", "reason": answer.reason, "verified": answer.verified}
        self.about["evidence"] = [asdict(found) for found in answer.evidence]

    def _count(self, prompt: int, reply: int) -> None:
        self.usage |= {"input_tokens": prompt, "output_tokens": reply, "total_tokens": prompt + reply}


def conversation_of(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    """LangChain's messages as (role, text).

    Raises UsageError for a message that is not text, or of a tool.
    """
    conversation = []
    for message in messages:
        kind = message.role if isinstance(message, ChatMessage) else message.type
        if kind not in _ROLES:
            raise UsageError(
                f"a message of {kind!r}: this model takes system, human and ai messages, and calls no tools"
            )
        for block in [] if isinstance(message.content, str) else message.content:
            form = "text" if isinstance(block, str) else block.get("type")
            if form != "text":
                raise UsageError(f"a message holds {form!r}: this model reads text alone")
        conversation.append((_ROLES[kind], str(message.text)))
    return conversation


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
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = Reply(changed(self, AnswerChoice, {**kwargs, "stop": stop}), conversation_of(messages))
        for piece in reply.pieces():
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        last = AIMessageChunk(
            content="", usage_metadata=reply.usage, response_metadata=reply.about, chunk_position="last"
        )
        yield ChatGenerationChunk(message=last)


class TTTDocsLLM(Answering, BaseLLM):
    """Answers a prompt from what was read, kept in a memory file or a store; see `ChatTTTDocs`.

    TTTDocsLLM(memory="book.ttt").invoke("Who is the captain?")
    """

    model_config = ConfigDict(extra="ignore")

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        generations: list[list[Generation]] = []
        total = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        for prompt in prompts:
            chunks = list(self._stream(prompt, stop, **kwargs))
            about = chunks[-1].generation_info or {}
            generations.append([Generation(text="".join(chunk.text for chunk in chunks), generation_info=about)])
            total = {name: count + about["usage"][name] for name, count in total.items()}
        model = changed(self, AnswerChoice, kwargs).model
        return LLMResult(generations=generations, llm_output={"model_name": model, "token_usage": total})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        reply = Reply(changed(self, AnswerChoice, {**kwargs, "stop": stop}), [("user", prompt)])
        for piece in reply.pieces():
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=reply.about | {"usage": reply.usage})
