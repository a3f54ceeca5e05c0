"""TTTDocsLLM: the same, text to text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict

from langchain_ttt_docs.answering import AnswerChoice, Answering, reply_to
from langchain_ttt_docs.opening import changed


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
        choice = changed(self, AnswerChoice, {**kwargs, "stop": stop})
        replies = [reply_to(choice, [("user", prompt)]) for prompt in prompts]
        generations = [
            [Generation(text="".join(reply.pieces), generation_info=reply.about | {"usage": reply.usage})]
            for reply in replies
        ]
        counts = ("input_tokens", "output_tokens", "total_tokens")
        usage = {name: sum(reply.usage[name] for reply in replies) for name in counts}  # type: ignore[literal-required]
        return LLMResult(generations=generations, llm_output={"model_name": choice.model, "token_usage": usage})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        reply = reply_to(changed(self, AnswerChoice, {**kwargs, "stop": stop}), [("user", prompt)])
        for piece in reply.pieces:
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield GenerationChunk(text="", generation_info=reply.about | {"usage": reply.usage})
