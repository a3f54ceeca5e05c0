"""Summaries made of the document's own sentences.

A small model that writes freely about a book invents. In a trial with the default model, most of its own sentences said
what the document does not. So a few sentences of each part of the document are nominated (`sections`), and the model
that has read the document chooses one of them: the likeliest after its fast weights and the summary so far. Without
prose to choose from, or without a text in the memory, the model writes by itself, and what it writes is checked.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import torch

from ttt_docs.errors import UsageError
from ttt_docs.generation.chat import Reply, prompt_tokens
from ttt_docs.generation.results import Summary, quote
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.sections import NOMINATED, Quote, nominate, opening_of, written
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.restoring import state_of
from ttt_docs.text.names import proper_names
from ttt_docs.text.sentences import sentences
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState

Length = Literal["sentence", "paragraph", "page"]
#: Parts of the document that get a sentence each, sentences to a paragraph, and tokens if the model writes by itself.
PARTS: dict[Length, tuple[int, int, int]] = {"sentence": (1, 1, 60), "paragraph": (7, 7, 160), "page": (20, 5, 480)}
#: What a nat per token weighs against a sentence's score.
WEIGHT = 0.8
#: Tokens of an outline that the model sees when it writes by itself.
SHOWN = 700
RETRIES = 3


def summarize(model: Decoder, tokenizer: Tokenizer, memory: Memory, length: Length, seed: int = 0) -> Summary:
    """A summary of what the memory has read; `seed` matters only where the model writes by itself.

    Raises UsageError for an unknown length or an empty memory.
    """
    if length not in get_args(Length):
        raise UsageError(f"length={length!r}: use {', '.join(get_args(Length))}")
    if not len(memory.tokens):
        raise UsageError("this memory is empty: read a document first")
    parts, to_paragraph, _ = PARTS[length]
    text = memory.text or ""
    if not text.strip():
        return _written(model, tokenizer, memory, length, seed, "")
    names = proper_names(text, 8)
    nominated = nominate(text, memory, tokenizer, names, parts)
    if not nominated:
        return _written(model, tokenizer, memory, length, seed, text)
    opening = opening_of(text, names) if parts > 1 and len(nominated) > 3 else ""
    chosen = _choose(model, tokenizer, memory, nominated, opening)
    lines = [*([opening] if opening else []), *(one.written for one in chosen)]
    joined = "\n\n".join(" ".join(lines[i : i + to_paragraph + 1]) for i in range(0, len(lines), to_paragraph + 1))
    sentences = tuple(quote(memory, one.start, one.end, one.score) for one in chosen)
    return Summary(joined, len(tokenizer.encode(joined)), outline=sentences)


def _choose(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, nominated: list[list[Quote]], opening: str
) -> list[Quote]:
    """One sentence of each part: well scored, and likely to the model after the document and the summary so far."""
    text = memory.text or ""
    state = state_of(model, memory) if memory.position else ReadingState(model, memory.reading)
    device = model.embed.weight.device
    prompt = prompt_tokens(tokenizer, [("user", "Summarize the document.")], opening)
    held = [*memory.pending.tolist(), *prompt]
    state.run(torch.tensor([held[:-1]], device=device))
    last, said = held[-1], opening
    chosen: list[Quote] = []
    names = proper_names(text, 8)
    for group in nominated:
        fresh = [name for name in names if not name.within(said)]
        ranked = sorted(group, key=lambda q: (-q.score - 0.8 * any(name.within(q.written) for name in fresh), q.start))
        ranked = [q for q in ranked if _overlap(q.written, said) < 0.5][:NOMINATED]
        if not ranked:
            continue
        encoded = [tokenizer.encode(f" {one.written}" if said else one.written) for one in ranked]
        losses = [float(state.score(torch.tensor([[last, *ids]], device=device)).mean()) for ids in encoded]
        best = max(range(len(ranked)), key=lambda i: ranked[i].score - WEIGHT * losses[i])
        state.run(torch.tensor([[last, *encoded[best][:-1]]], device=device))
        last, said = encoded[best][-1], f"{said} {ranked[best].written}"
        chosen.append(ranked[best])
    return chosen


def _overlap(line: str, said: str) -> float:
    """Share of the line's runs of four words that were said before."""
    runs = _runs(line)
    return len(runs & _runs(said)) / max(len(runs), 1)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}


def _written(model: Decoder, tokenizer: Tokenizer, memory: Memory, length: Length, seed: int, text: str) -> Summary:
    """The model's own words; the first line of the text if none of its tries is a finished text without loops."""
    task = {"sentence": "in one sentence", "paragraph": "in one paragraph", "page": "in detail"}[length]
    limit = min(PARTS[length][2], memory.reading.window // 3)
    shown = tokenizer.decode(tokenizer.encode(text[: 8 * SHOWN])[: min(SHOWN, memory.reading.window // 4)])
    user = f"{shown}\n\nSummarize this document {task}." if shown else f"Summarize the document above {task}."
    prompt = prompt_tokens(tokenizer, [("user", user)])
    total = 0
    for attempt in range(RETRIES):
        sampling = Sampling(
            temperature=0.0 if attempt == 0 else 0.4,
            repetition_penalty=1.1,
            no_repeat_ngram=6,
            seed=seed + attempt,
            max_new_tokens=limit,
        )
        reply = Reply(model, tokenizer, memory, prompt, sampling)
        whole = finished("".join(reply))
        total += reply.tokens
        if whole and distinct_runs(whole) >= 0.9:
            return Summary(whole, total)
    lines = [line for line in text.splitlines() if line.strip()]
    return Summary(written(lines[0])[:300] if lines else "", total)


def finished(text: str) -> str:
    """`text` up to the end of its last whole sentence; empty if it has none."""
    text = text.strip()
    ends = [end for _, end in sentences(text) if text[end - 1] in '.!?。！？"”’)']
    return text[: ends[-1]] if ends else ""


def distinct_runs(text: str) -> float:
    """Distinct runs of four words / all of them: 1 without repetition."""
    words = re.findall(r"\w+", text.lower())
    return len(_runs(text)) / max(len(words) - 3, 1) if len(words) > 3 else 1.0
