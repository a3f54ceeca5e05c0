"""Extracts: a summary made of the document's own sentences, where no model can be trusted to write.

A few sentences of each part of the document are nominated (`sections`), and the model that has read the document
chooses one of them: the likeliest after its fast weights and the summary so far. Without a text in the memory the model
writes by itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

import torch

from ttt_docs.generation.chat import Reply, prompt_tokens
from ttt_docs.generation.results import SummarySentence, quote
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.sections import NOMINATED, Passage, Quote, nominate, opening_of, quotes, written
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.restoring import state_of
from ttt_docs.text.index import PassageIndex
from ttt_docs.text.names import Name, proper_names
from ttt_docs.text.sentences import PARAGRAPH, Span, sentences
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState

#: What a nat per token weighs against a sentence's score.
WEIGHT = 0.8
RETRIES = 3
#: Words of a line that is quoted where no sentence can be, if there are such lines.
LEAST_WORDS = 4


def extracts(model: Decoder, tokenizer: Tokenizer, memory: Memory, parts: int) -> list[SummarySentence]:
    """A sentence of each of so many parts of the document, in order, after one on what it is mostly about.

    Empty where the text has no prose.
    """
    text = memory.text or ""
    names = proper_names(text, 8)
    nominated = nominate(text, memory, tokenizer, names, parts)
    if not nominated:
        return []
    opening = opening_of(text, names) if parts > 1 and len(nominated) > 3 else ""
    chosen = _choose(model, tokenizer, memory, nominated, opening)
    return [*([counted(memory, opening, names)] if opening else []), *(extract(memory, one) for one in chosen)]


def extract(memory: Memory, one: Quote) -> SummarySentence:
    """A sentence of the memory's text, as one of a summary."""
    return SummarySentence(one.written, (quote(memory, one.start, one.end, one.score),), True)


def counted(memory: Memory, opening: str, names: Sequence[Name]) -> SummarySentence:
    """The opening that counts names, with the first place of each."""
    found = (
        re.search(rf"(?<!\w){re.escape(name.full)}(?!\w)", memory.text or "") for name in names if name.full in opening
    )
    return SummarySentence(opening, tuple(quote(memory, *match.span(), 1.0) for match in found if match), True)


def first_lines(memory: Memory, index: PassageIndex, words: int) -> list[SummarySentence]:
    """The sentences or lines that the text begins with, of about so many words in all."""
    found: list[SummarySentence] = []
    for span in index.sentences:
        if sum(len(one.text.split()) for one in found) >= words:
            break
        found.append(extract(memory, Quote(*span, " ".join(index.text[slice(*span)].split()), 0.0)))
    return found


def best_quotes(index: PassageIndex, span: Span, names: Sequence[Name], weights: dict[str, float]) -> list[Quote]:
    """The sentences of text[start:end] that are understood alone, best first; any sentences where there are none.

    Those that hold terms of `weights` come first, the rarer the terms the sooner.
    """
    text = index.text
    paragraphs = [Passage(*match.span(), 0.0) for match in PARAGRAPH.finditer(text, *span)]
    found = [one for passage in paragraphs for one in quotes(text, passage, names)]
    if not found:
        first, last = (bisect_left(index.sentences, at, key=lambda one: one[0]) for at in span)
        every = [Quote(a, b, written(text[a:b]), 0.0) for a, b in index.sentences[first:last]]
        found = [one for one in every if len(one.written.split()) >= LEAST_WORDS] or every

    def score(one: Quote) -> float:
        terms = set(index.terms(one.start, one.end))
        return one.score + 2 * sum(factor * index.weight(t) for t, factor in weights.items() if t in terms)

    return sorted(found, key=lambda one: (-score(one), one.start))


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


def written_from_memory(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, task: str, longest: int, seed: int
) -> list[SummarySentence]:
    """What the model writes of a memory without text, at most `longest` tokens; nothing of it can be checked.

    Empty where none of its tries is a finished text without loops.
    """
    prompt = prompt_tokens(tokenizer, [("user", f"Summarize the document above {task}.")])
    for attempt in range(RETRIES):
        sampling = Sampling(
            temperature=0.0 if attempt == 0 else 0.4,
            repetition_penalty=1.1,
            no_repeat_ngram=6,
            seed=seed + attempt,
            max_new_tokens=min(longest, memory.reading.window // 3),
        )
        whole = finished("".join(Reply(model, tokenizer, memory, prompt, sampling)))
        if whole and distinct_runs(whole) >= 0.9:
            return [SummarySentence(whole[a:b]) for a, b in sentences(whole)]
    return []


def finished(text: str) -> str:
    """`text` up to the end of its last whole sentence; empty if it has none."""
    text = text.strip()
    ends = [end for _, end in sentences(text) if text[end - 1] in '.!?。！？"”’)']
    return text[: ends[-1]] if ends else ""


def distinct_runs(text: str) -> float:
    """Distinct runs of four words / all of them: 1 without repetition."""
    words = re.findall(r"\w+", text.lower())
    return len(_runs(text)) / max(len(words) - 3, 1) if len(words) > 3 else 1.0
