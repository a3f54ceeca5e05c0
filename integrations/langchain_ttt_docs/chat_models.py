"""ChatTTTDocs, a chat model that has read a document, and TTTDocsLLM, the same, text to text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult, Generation, GenerationChunk, LLMResult
from pydantic import Field

from langchain_ttt_docs.choices import MemoryChoice, changed, open_memory, open_reader
from ttt_docs.errors import UsageError
from ttt_docs.lookup.router.routing import AskRoute, chosen_route

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
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

    @property
    def _llm_type(self) -> str:
        return "ttt-docs"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in AnswerChoice.model_fields}

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of `text`, by this model's own tokenizer."""
        return open_reader(self, open_memory(self)).tokenizer.encode(text)

    def _reply(
        self, conversation: Sequence[tuple[str, str]], stop: list[str] | None, given: dict[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The reply to a conversation of (role, text): its pieces, each with {}, and in the end "" with what is known.

        By the memory route it continues the whole conversation, as `TTTReader.chat` does. By the others it answers the
        last question, in one piece, and understands it from the turns before. Known in the end are model_name,
        documents, route, finish_reason and usage, and without the memory route also reason, verified, confidence,
        answered and evidence.

        Raises UsageError and the errors of `open_memory`, `open_reader`.
        """
        choice = changed(self, AnswerChoice, {**given, "stop": stop})
        memory = open_memory(choice)
        reader = open_reader(choice, memory)
        role, question = conversation[-1] if conversation else ("user", "")
        if role != "user" or not question.strip():
            raise UsageError("a conversation must end with a message of the user that is not empty")
        names = [document.name for document in memory.documents] if memory is not None else []
        about: dict[str, Any] = {"model_name": choice.model, "documents": names}
        if memory is not None and chosen_route([memory], question, choice.route)[0] != "memory":
            answer = reader.ask(memory, question, route=choice.route, history=turns_of(conversation))
            text = min((answer.text.partition(end)[0] for end in choice.stop or ()), key=len, default=answer.text)
            if text:
                yield text, {}
            # The question and the answer count, not the passages looked through.
            prompt, length = (len(reader.tokenizer.encode(words)) for words in (question, text))
            about |= {
                "finish_reason": "stop",
                "route": answer.route,
                "reason": answer.reason,
                "verified": answer.verified,
            }
            about |= {"confidence": answer.confidence, "answered": answer.answered}
            about["evidence"] = [asdict(found) for found in answer.evidence]
        else:
            sampling = {name: getattr(choice, name) for name in SAMPLING}
            end = tuple(choice.stop or ())
            reply = reader.chat(memory, conversation, max_new_tokens=choice.max_tokens, stop=end, **sampling)
            for piece in reply:
                yield piece, {}
            prompt, length = reply.prompt_tokens, reply.tokens
            about |= {"finish_reason": reply.ending, "route": "memory"}
        usage = UsageMetadata(input_tokens=prompt, output_tokens=length, total_tokens=prompt + length)
        yield "", about | {"usage": usage}


def turns_of(conversation: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The (question, answer) pairs before the last message."""
    said = [message for message in conversation if message[0] != "system"]
    pairs = pairwise(said)
    return [(one, other) for (role, one), (by, other) in pairs if (role, by) == ("user", "assistant")]


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
        for piece, about in self._reply(conversation_of(messages), stop, kwargs):
            message = AIMessageChunk(content=piece)
            if about:
                usage = about.pop("usage")
                message = AIMessageChunk(
                    content="", usage_metadata=usage, response_metadata=about, chunk_position="last"
                )
            chunk = ChatGenerationChunk(message=message)
            if run_manager is not None and piece:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


class TTTDocsLLM(Answering, BaseLLM):
    """Answers a prompt from what was read, kept in a memory file or a store; see `ChatTTTDocs`.

    TTTDocsLLM(memory="book.ttt").invoke("Who is the captain?")
    """

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        generations: list[list[Generation]] = []
        total = Counter[str]()
        for prompt in prompts:
            *pieces, (_, about) = self._reply([("user", prompt)], stop, kwargs)
            generations.append([Generation(text="".join(piece for piece, _ in pieces), generation_info=about)])
            total.update(about["usage"])
        model = changed(self, AnswerChoice, kwargs).model
        return LLMResult(generations=generations, llm_output={"model_name": model, "token_usage": dict(total)})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for piece, about in self._reply([("user", prompt)], stop, kwargs):
            chunk = GenerationChunk(text=piece, generation_info=about or None)
            if run_manager is not None and piece:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
