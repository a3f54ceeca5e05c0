"""Answers from the document's text: find the passages, take or read the answer, and show where it stands."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ttt_docs.errors import UsageError
from ttt_docs.generation.results import Answer, Evidence
from ttt_docs.lookup.index import TOKEN, PassageIndex, index_of, stop_words, terms, token_terms
from ttt_docs.lookup.passage_reading import LONGEST, asking, copy_answer, read_passages
from ttt_docs.lookup.proximity import Hit, hits, related, surroundings
from ttt_docs.lookup.question import Query, candidates, form_of, measured, only, understand
from ttt_docs.lookup.search import COVERED, Found, Value, extract, occurrences, search
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.sentences import Span
from ttt_docs.text.tokenizer import Tokenizer

#: Passages that are read and shown, and tokens of text that are read, unless the caller says otherwise.
TOP_K, MAX_CONTEXT = 5, 2048
#: Below this share of the question's weight in the best sentence, the text does not speak of what was asked.
LEAST = 0.2
#: Sentences whose surroundings are read, characters that are read around each, and how far apart they are at least.
HITS, READ, APART = 16, 500, 700
#: Characters of the evidence for an answer that was read (about a paragraph), and of the sentences quoted as an answer.
SHOWN, QUOTED = 1200, 300
#: How much of a paragraph the ones before may have shown already.
AGAIN = 0.1
#: Nats that a hit's score is worth beside how well the question follows what was read.
LEXICAL = 4.0
#: Nats per token from which on the words the model copied are the answer; below, the sentences they stand in are.
SURE = -0.5


@dataclass(frozen=True)
class Looked:
    """What was found in one memory."""

    which: int
    memory: Memory
    index: PassageIndex
    query: Query
    found: Found

    @property
    def score(self) -> float:
        return self.found.sentences[0].score if self.found.sentences else 0.0

    @property
    def coverage(self) -> float:
        return self.found.sentences[0].coverage if self.found.sentences else 0.0

    def written(self, start: int, end: int) -> str:
        """text[start:end] on one line."""
        return " ".join(self.index.text[start:end].split())

    def about(self, query: Query) -> Looked:
        return Looked(self.which, self.memory, self.index, query, search(self.index, query))


def answer_from_text(
    model: Decoder,
    tokenizer: Tokenizer,
    memories: Sequence[Memory],
    question: str,
    top_k: int | None = None,
    max_context: int | None = None,
) -> Answer:
    """The answer that the memories' texts give, copied from them, with the passages it was found in.

    Nothing of it is the model's own wording. Where no text speaks of what was asked, the answer says so and has no
    evidence. `top_k` passages are shown, and read up to `max_context` tokens.

    Raises UsageError for a question that does not fit, a bad limit, or a memory without text.
    """
    began = time.perf_counter()
    top_k = TOP_K if top_k is None else top_k
    budget = _budget(model, tokenizer, question, top_k, max_context)
    looked = [_look(i, memory, question) for i, memory in enumerate(memories)]
    looked.sort(key=lambda one: -one.score)
    text, evidence, reason = _missing(looked) or _extracted(looked, top_k) or ("", [], "")
    if not text:
        text, evidence, reason = _read(model, tokenizer, looked, question, top_k, budget)
    verified = bool(evidence) and not unsupported(text, [e.quote for e in evidence], question, looked[0].index.language)
    return Answer(text, "lookup", tuple(evidence), time.perf_counter() - began, reason, verified)


def _budget(model: Decoder, tokenizer: Tokenizer, question: str, top_k: int, max_context: int | None) -> int:
    """Tokens of text that can be read beside the question."""
    if not question.strip():
        raise UsageError("the question is empty")
    for name, value in (("top_k", top_k), ("max_context", max_context)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: use at least 1")
    longest = model.config.max_positions
    room = longest - sum(map(len, asking(tokenizer, question))) - LONGEST
    if room < min(256, longest // 4):
        raise UsageError(
            f"the question has {len(tokenizer.encode(question)):,} tokens: the model reads {longest:,}, and the "
            "passages must fit beside it; ask more briefly"
        )
    return min(room, MAX_CONTEXT if max_context is None else max_context)


def _look(which: int, memory: Memory, question: str) -> Looked:
    if memory.text is None:
        names = ", ".join(document.name for document in memory.documents) or "the document"
        raise UsageError(
            f"this memory was saved without the text of {names}, so nothing can be looked up in it: "
            'ask with route="memory", or ingest the document again'
        )
    if not memory.text.strip():
        raise UsageError("this memory holds no text: read a document first")
    index = index_of(memory.text, memory.index)
    query = understand(question, index.language)
    return Looked(which, memory, index, query, search(index, query))


Result = tuple[str, list[Evidence], str]


def _missing(looked: Sequence[Looked]) -> Result | None:
    """What to say where no text holds a key or name that the question is about."""
    document = "The document" if len(looked) == 1 else "None of the documents"
    does = "does not contain" if len(looked) == 1 else "contains"
    query = looked[0].query
    keys = [key for key in query.keys if all(key in one.found.missing for one in looked)]
    said = {
        name: [(one.index, term) for one in looked for term in terms(name, one.index.language)] for name in query.names
    }
    names = [name for name, found in said.items() if not any(len(index.held_by(term)) for index, term in found)]
    absent = keys if keys and len(keys) == len(query.keys) else names
    if query.kind == "mention" and not absent and all(one.coverage < COVERED for one in looked):
        return f"{document} {does} what was asked about.", [], "no sentence names it"
    if not absent:
        return None
    named = " or ".join(f"“{name}”" for name in absent)
    return f"{document} {does} {named}.", [], f"looked for {named} everywhere"


def _extracted(looked: Sequence[Looked], top_k: int) -> Result | None:
    """Values that sentences give without doubt, for each thing the question names."""
    best = looked[0]
    if best.query.kind == "mention":
        spans = [(s.start, s.end) for s in best.found.sentences[:top_k] if s.coverage >= COVERED]
        return "Yes.", [_scored(best, *span) for span in spans], "a sentence names all that the question names"
    parts = [_values(looked)]
    things = _things(best)
    if things:
        whole = best.found.sentences[0] if best.found.sentences else None
        if whole is None or not all(occurrences(best.index.text[whole.start : whole.end], thing) for thing in things):
            queries = [only(best.query, thing, things, best.index.language) for thing in things]
            parts = [_values([one.about(query) for one in looked]) for query in queries]
    if not all(parts):
        return None
    values = [pair for part in parts for pair in part]
    texts = dict.fromkeys(one.written(value.start, value.end) for one, value in values)
    evidence = {(one.which, value.sentence.index): _around(one, value.start, value.end) for one, value in values}
    count = "one sentence names" if len(evidence) == 1 else f"{len(evidence)} sentences name"
    reason = f"{count} what the question names, and the answer"
    return ", ".join(texts), _filled(list(evidence.values()), _passage_quotes(looked, top_k), top_k), reason


def _things(one: Looked) -> tuple[str, ...]:
    """Several keys, or members of a list, that the question asks about."""
    if len(one.query.keys) > 1:
        return one.query.keys
    return one.query.items if one.query.many and one.coverage < COVERED else ()


def _values(looked: Sequence[Looked]) -> list[tuple[Looked, Value]]:
    """The values of the best memory, or those of all if the question wants all."""
    found = [[(one, value) for value in extract(one.index, one.query, one.found)] for one in looked]
    if looked[0].query.many:
        return [pair for pairs in found for pair in pairs]
    return next((pairs for pairs in found if pairs), [])


def _read(
    model: Decoder, tokenizer: Tokenizer, looked: Sequence[Looked], question: str, top_k: int, budget: int
) -> Result:
    """The sentences around the hit that fits the question best, or what the model surely copies from them."""
    best = looked[0]
    near = related(model, tokenizer, list(best.query.words.values()))
    found = hits(best.index, best.query, near, HITS, APART)
    if best.coverage < LEAST or not found:
        document = "The document does" if len(looked) == 1 else "The documents do"
        return f"{document} not say.", [], "no passage is about what was asked"
    spans = _spans(best, tokenizer, found, budget)
    read = read_passages(model, tokenizer, best.index.text, spans, question)
    fits = [LEXICAL * hit.score + fit for hit, fit in zip(found, read.fits, strict=False)]
    order = sorted(range(len(fits)), key=lambda row: -fits[row])
    paragraphs = [_paragraph(best, found[row]) for row in order]
    shown = _filled([], paragraphs, len(paragraphs), AGAIN)
    evidence = _filled(shown[:1], [*shown[1:], *_passage_quotes(looked, top_k)], top_k)
    start, end = _surroundings(best, found[order[0]].sentence, QUOTED)
    allowed, beginnings = _candidates(best, start, end), _new_words(best, start, end)
    copied = copy_answer(model, tokenizer, best.index.text, read, order[0], (start, end), allowed, beginnings)
    reason = f"the model read {len(spans)} passages and found these sentences to fit the question best"
    if copied is not None and copied.confidence >= SURE:
        words = f"copied its answer from the best ({copied.confidence:.2f} nats per token)"
        return best.written(copied.start, copied.end), evidence, f"the model read {len(spans)} passages and {words}"
    return best.written(start, end), evidence, reason


def _spans(one: Looked, tokenizer: Tokenizer, found: Sequence[Hit], budget: int) -> list[Span]:
    """The spans to read around the best hits, at least one, as many as fit into `budget` tokens."""
    chosen: list[Span] = []
    for hit in found:
        start, end = _surroundings(one, hit.sentence, READ)
        budget -= len(tokenizer.encode(one.index.text[start:end]))
        if budget < 0 and chosen:
            break
        chosen.append((start, end))
    return chosen


def _surroundings(one: Looked, sentence: int, size: int) -> Span:
    """Characters of whole sentences around one, within its document."""
    spans = one.index.sentences
    document = one.memory.document_at(spans[sentence][0])
    within = (document.start, document.end) if document else None
    first, last = surroundings(one.index, sentence, size, within)
    return spans[first][0], spans[last - 1][1]


def _paragraph(one: Looked, hit: Hit) -> Evidence:
    """The text around a hit, with what is quoted of it: SHOWN has room for that beside the longest sentence."""
    start, end = _surroundings(one, hit.sentence, SHOWN)
    return quote(one.memory, start, end, hit.score, one.which, one.index.sentences[hit.sentence][0])


def _candidates(one: Looked, start: int, end: int) -> list[Span]:
    """Spans of text[start:end] of the kind asked for that the question does not say itself."""
    form, kind = form_of(one.query.text), one.query.kind
    if form is not None and kind in ("span", "number", "date", "name"):
        kind = form.kind
    text = one.index.text
    spans = measured(text, start, end) if kind == "number" else candidates(text, start, end, kind)
    return [span for span in spans if not one.query.says(one.index.terms(*span))]


def _new_words(one: Looked, start: int, end: int) -> set[int]:
    """Where the words of text[start:end] begin that say something, and something that the question does not."""
    return {
        match.start()
        for match in TOKEN.finditer(one.index.text, start, end)
        if (new := token_terms(match.group(), one.index.language)) and not one.query.says(new)
    }


def _scored(one: Looked, start: int, end: int, at: int | None = None) -> Evidence:
    at = start if at is None else at
    score = next((s.score for s in one.found.sentences if s.start <= at < s.end), 0.0)
    return quote(one.memory, start, end, score, one.which, at)


def _around(one: Looked, start: int, end: int) -> Evidence:
    """The sentences that hold text[start:end], and the one before and after while that is short."""
    spans = one.index.sentences
    document = one.memory.document_at(start)
    low, high = (document.start, document.end) if document else (0, len(one.index.text))
    first, last = one.index.sentence_at(start), one.index.sentence_at(end - 1)
    for a, b in ((first - 1, last), (first, last + 1)):
        inside = a >= 0 and b < len(spans) and low <= spans[a][0] and spans[b][1] <= high
        if inside and spans[b][1] - spans[a][0] <= QUOTED:
            first, last = min(first, a), max(last, b)
    return _scored(one, spans[first][0], max(spans[last][1], end), start)


def _passage_quotes(looked: Sequence[Looked], top_k: int) -> list[Evidence]:
    """The best passages of all memories, best first."""
    ranked = sorted(((score, one, p) for one in looked for p, score in one.found.passages[:top_k]), key=lambda r: -r[0])
    return [quote(one.memory, *one.index.span(passage), score, one.which) for score, one, passage in ranked]


def _filled(evidence: list[Evidence], more: Sequence[Evidence], top_k: int, again: float = 0.8) -> list[Evidence]:
    """`evidence`, and after it what of `more` shows at most the share `again` once more, up to `top_k` in all."""
    filled = list(evidence)
    for new in more:
        if len(filled) >= top_k:
            break
        shown = (min(e.end, new.end) - max(e.start, new.start) for e in filled if e.memory == new.memory)
        if max(shown, default=0) <= again * (new.end - new.start):
            filled.append(new)
    return filled


_NUMBER = re.compile(r"\d+(?:[.,:/-]?\d+)*")
_NAME = re.compile(r"[^\W\d_a-z][\w’'-]+")
_POSSESSIVE = re.compile(r"['’]s?$")
#: Capitalized where a sentence begins, and no names.
_PLAIN = {"yes", "no", "according"}
_QUOTED = re.compile(r"[“\"«„]([^“”\"«»„]{2,})[”\"»“]")


def quote(memory: Memory, start: int, end: int, score: float, which: int = 0, at: int | None = None) -> Evidence:
    """The memory's text[start:end] with the page, chapter and document of character `at` (its start).

    Raises ValueError for a span outside the text.
    """
    text, at = memory.text, start if at is None else at
    if text is None or not 0 <= start < end <= len(text):
        raise ValueError(f"there is no text at characters {start} to {end}")
    document = memory.document_at(at)
    return Evidence(
        text[start:end],
        memory.label_at(at, "page"),
        start,
        end,
        score,
        chapter=memory.label_at(at, "chapter"),
        document=document.name if document else None,
        memory=which,
    )


def unsupported(answer: str, quotes: Sequence[str], question: str = "", language: str = "english") -> list[str]:
    """The numbers, names and quoted strings of an answer that stand neither in a quote nor in the question."""
    shown = " ".join(" ".join(quotes).split()).lower()
    if re.search(rf"(?<!\w){re.escape(' '.join(answer.split()).lower())}(?!\w)", shown):
        return []
    known = f"{shown} {question.lower()}"
    missing = [n for n in _NUMBER.findall(answer) if not re.search(rf"(?<!\d){re.escape(n)}(?!\d)", known)]
    missing += [q for q in _QUOTED.findall(answer) if " ".join(q.split()).lower() not in shown]
    for word in _NAME.findall(answer):
        name = _POSSESSIVE.sub("", word).lower()
        if name not in stop_words(language) | _PLAIN and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", known):
            missing.append(word)
    return list(dict.fromkeys(missing))
