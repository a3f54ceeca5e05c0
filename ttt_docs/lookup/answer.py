"""Answers from the document's text: find the passages, read the answer in them, and show where it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ttt_docs.errors import UsageError
from ttt_docs.generation.grounding import unsupported
from ttt_docs.generation.results import Answer, Evidence, quote
from ttt_docs.lookup.confidence import probabilities, same_words
from ttt_docs.lookup.exact import exact_answer
from ttt_docs.lookup.passage_reading import asked_tokens, question_fits
from ttt_docs.lookup.proximity import hits, related, sentence_scores, surroundings
from ttt_docs.lookup.question import Query, following, leans, only, understand
from ttt_docs.lookup.reader import History, PassageReader
from ttt_docs.lookup.search import COVERED, Found, Sentence, extract, search
from ttt_docs.memory.memory import Memory
from ttt_docs.text.index import PassageIndex, index_of, terms
from ttt_docs.text.sentences import Span

#: Passages that are read and shown, and tokens of text that are read, unless the caller says otherwise.
TOP_K, MAX_CONTEXT = 5, 2048
#: Below this share of the question's weight in the best sentence, the text does not speak of what was asked.
LEAST = 0.2
#: Sentences whose surroundings are read, characters that are read around each, and how far apart they are at least: by
#: a reader that answers, and by a model that only tells which of them fits.
READ_BY, READ, APART = 6, 1200, 900
FIT_BY, FIT, FIT_APART = 16, 500, 700
#: The probability of values that a sentence gives for a key by its wording.
CERTAIN = 0.95
#: The probability below which an answer is not given.
ANSWERED = 0.15
#: Characters of the evidence for an answer that was read (about a paragraph), and of the sentences quoted as an answer.
SHOWN, QUOTE = 1200, 300
#: Words of an extract, which answers where the document is not in English.
EXTRACT = 20
#: Sentences that hold an answer together, at most.
TOGETHER = 3
#: How much of a piece of evidence the ones before may have shown already.
AGAIN = 0.1
#: Nats that a hit's score is worth beside how well the question follows what was read.
LEXICAL = 4.0


@dataclass(frozen=True)
class Looked:
    """What was found in one memory, the `which`th of those that were asked."""

    which: int
    memory: Memory
    index: PassageIndex
    query: Query
    found: Found

    def line(self, start: int, end: int) -> str:
        """text[start:end] on one line."""
        return " ".join(self.index.text[start:end].split())

    def around(self, sentence: int, size: int) -> Span:
        """The characters of whole sentences around one, at most `size` unless it is longer, within its document."""
        spans = self.index.sentences
        document = self.memory.document_at(spans[sentence][0])
        within = (document.start, document.end) if document else None
        first, last = surroundings(self.index, sentence, size, within)
        return spans[first][0], spans[last - 1][1]

    def quoted(self, span: Span, score: float, at: int | None = None) -> Evidence:
        return quote(self.memory, *span, score, self.which, at)


def answer_from_text(
    reader: PassageReader,
    memories: Sequence[Memory],
    question: str,
    top_k: int | None = None,
    max_context: int | None = None,
    history: History = (),
) -> Answer:
    """The answer that the memories' texts give, with the places it was found in.

    Where no text says what was asked, the answer says so, and its evidence is what comes nearest. `top_k` passages are
    shown, and read up to `max_context` tokens.

    Raises UsageError for a question that does not fit, a bad limit, or a memory without text.
    """
    began = time.perf_counter()
    top_k = TOP_K if top_k is None else top_k
    budget = _budget(reader, question, top_k, max_context, history)
    about_before = bool(history) and leans(question)
    if not about_before and (exact := exact_answer(memories, question)) is not None:
        return exact
    looked = [look(i, memory, question, history) for i, memory in enumerate(memories)]
    looked.sort(key=lambda one: -one.found.best.score)
    answer = (
        _missing(looked) or _extracted(reader, looked, top_k) or _read(reader, looked, question, top_k, budget, history)
    )
    return replace(answer, seconds=time.perf_counter() - began)


def _budget(reader: PassageReader, question: str, top_k: int, max_context: int | None, history: History) -> int:
    """Tokens of text that can be read beside the question."""
    for name, value in (("top_k", top_k), ("max_context", max_context)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: use at least 1")
    longest = reader.model.config.max_positions
    room = longest - len(asked_tokens(reader.tokenizer, " ".join([*chain.from_iterable(history), question])))
    if room < min(256, longest // 4):
        raise UsageError(
            f"the question has {len(reader.tokenizer.encode(question)):,} tokens: the model reads {longest:,}, and the "
            "passages must fit beside it and what was said before; ask more briefly"
        )
    return min(room, MAX_CONTEXT if max_context is None else max_context)


def look(which: int, memory: Memory, question: str, history: History = ()) -> Looked:
    """What the memory's text has of the words of a question. Raises UsageError for a memory without text."""
    if memory.text is None:
        names = ", ".join(document.name for document in memory.documents) or "the document"
        raise UsageError(
            f"this memory was saved without the text of {names}, so nothing can be looked up in it: "
            'ask with route="memory", or ingest the document again'
        )
    if not memory.text.strip():
        raise UsageError("this memory holds no text: read a document first")
    index = index_of(memory.text, memory.index)
    query = following(understand(question, index.language), history)
    return Looked(which, memory, index, query, search(index, query))


def _absent(text: str, evidence: Sequence[Evidence], reason: str, probability: float = 0.0) -> Answer:
    """The word that the document does not say. `probability`: that there is an answer all the same."""
    return Answer(text, "lookup", tuple(evidence), reason=reason, confidence=1 - probability, answered=False)


def _missing(looked: Sequence[Looked]) -> Answer | None:
    """What to say where no text holds a key or name that the question is about."""
    document, does = ("The document", "does not contain") if len(looked) == 1 else ("None of the documents", "contains")
    query = looked[0].query
    keys = [key for key in query.keys if all(key in one.found.missing for one in looked)]
    absent = keys if keys and len(keys) == len(query.keys) else [n for n in query.names if not _named(looked, n)]
    if absent:
        named = " or ".join(f"“{name}”" for name in absent)
        return _absent(f"{document} {does} {named}.", [], f"looked for {named} everywhere")
    if query.kind == "mention" and all(one.found.best.coverage < COVERED for one in looked):
        return _absent(f"{document} {does} what was asked about.", [], "no sentence names it")
    return None


def _named(looked: Sequence[Looked], name: str) -> bool:
    """Whether a text has any word of a name."""
    return any(len(one.index.held_by(term)) for one in looked for term in terms(name, one.index.language))


def _extracted(reader: PassageReader, looked: Sequence[Looked], top_k: int) -> Answer | None:
    """Values that sentences give without doubt, for each key that the question names."""
    best = looked[0]
    if best.query.kind == "mention":
        naming = [s for s in best.found.sentences[:top_k] if s.coverage >= COVERED]
        evidence = [best.quoted((s.start, s.end), s.score) for s in naming]
        return _certain("Yes.", evidence, "a sentence names all that the question names")
    if not best.query.keys and reader.skilled:
        return None
    parts = [_values(looked)]
    if not parts[0] and len(best.query.keys) > 1:
        queries = [only(best.query, key, best.index.language) for key in best.query.keys]
        parts = [_values([replace(one, query=q, found=search(one.index, q)) for one in looked]) for q in queries]
    if not all(parts):
        return None
    values = [pair for part in parts for pair in part]
    texts = dict.fromkeys(one.line(*span) for one, (_, span) in values)
    shown = {
        (one.which, sentence.index): one.quoted(one.around(sentence.index, QUOTE), sentence.score, span[0])
        for one, (sentence, span) in values
    }
    count = "one sentence names" if len(shown) == 1 else f"{len(shown)} sentences name"
    reason = f"{count} what the question names, and the answer"
    return _certain(", ".join(texts), _filled(list(shown.values()), _passage_quotes(looked, top_k), top_k), reason)


def _certain(text: str, evidence: Sequence[Evidence], reason: str) -> Answer:
    return Answer(text, "lookup", tuple(evidence), reason=reason, verified=True, confidence=CERTAIN)


def _values(looked: Sequence[Looked]) -> list[tuple[Looked, tuple[Sentence, Span]]]:
    """The values of the best memory, or those of all if the question wants all."""
    found = [[(one, value) for value in extract(one.index, one.query, one.found)] for one in looked]
    if looked[0].query.many:
        return [pair for pairs in found for pair in pairs]
    return next((pairs for pairs in found if pairs), [])


def _read(
    reader: PassageReader, looked: Sequence[Looked], question: str, top_k: int, budget: int, history: History
) -> Answer:
    """What the reader makes of the passages that the question's words stand together in."""
    document = "The document does not say" if len(looked) == 1 else "The documents do not say"
    places = places_of(reader, looked, budget)
    if not places:
        return _absent(f"{document}.", [], "no passage is about what was asked")
    texts = [place.text for place in places]
    if not reader.answers:
        return _fitting(reader, looked, places, question, top_k)
    found = reader.read(texts, question, history)
    if not reader.skilled and any(answer.here for answer in found):
        found = [answer for answer in found if answer.here and _held(answer.text, texts[answer.passage])]
        if not found:
            return _fitting(reader, looked, places, question, top_k)
    rated = sorted(zip(probabilities(found, texts), found, strict=True), key=lambda pair: -pair[0])
    probability, best = rated[0]
    nearest = [places[answer.passage].shown() for _, answer in rated]
    if probability < ANSWERED or not best.text:
        reason = f"the model read {len(texts)} passages and found no answer in them"
        return _absent(f"{document}.", _filled([], nearest, top_k), reason, probability)
    place = places[best.passage]
    proof = place.looked.quoted(_proof(place, best.text), 1.0)
    others = [
        places[a.passage].looked.quoted(_proof(places[a.passage], a.text), p)
        for p, a in rated[1:]
        if same_words(a.text) == same_words(best.text)
    ]
    about = _beside(place.looked.index, proof.start, proof.end) & set(place.looked.query.weights)
    verified = bool(about) and not unsupported(best.text, [proof.quote], language=place.looked.index.language)
    evidence = _filled([proof], [*others, *nearest], top_k)
    text, reason = best.text, f"the model read {len(texts)} passages"
    if place.looked.index.language != "english":
        text, reason = extract_around(proof.quote, best.text), f"an extract: {reason}, and it knows English only"
    return Answer(text, "lookup", tuple(evidence), reason=reason, verified=verified, confidence=probability)


def extract_around(quote: str, answer: str) -> str:
    """At most `EXTRACT` words of a quote, with the answer in their middle if it stands there."""
    words, plain = quote.split(), [same_words(word) for word in quote.split()]
    wanted = same_words(answer).split()
    firsts = [i for i in range(len(words)) if [w for w in plain[i:] if w][: len(wanted)] == wanted]
    first = firsts[0] if firsts else 0
    before = max(EXTRACT - len(wanted), 0) // 2 if firsts else 0
    start = max(min(first - before, len(words) - EXTRACT), 0)
    return " ".join(words[start : start + EXTRACT])


def _held(answer: str, passage: str) -> bool:
    """Whether a passage has most of an answer's words: what a model that was not taught says must be checked."""
    said, there = set(same_words(answer).split()), set(same_words(passage).split())
    return len(said & there) > len(said) / 2


def _fitting(
    reader: PassageReader, looked: Sequence[Looked], places: Sequence[Place], question: str, top_k: int
) -> Answer:
    """The sentences around the hit that fits the question best: an extract, by a model that cannot be asked."""
    fits = question_fits(reader.model, reader.tokenizer, [place.text for place in places], question)
    ranked = sorted(zip(places, fits, strict=True), key=lambda pair: -(LEXICAL * pair[0].score + pair[1]))
    evidence = _filled([], [*(place.shown() for place, _ in ranked), *_passage_quotes(looked, top_k)], top_k)
    best = ranked[0][0]
    text = best.looked.line(*best.looked.around(best.sentence, QUOTE))
    reason = f"an extract: of {len(places)} places, the one that fits the question best"
    return Answer(text, "lookup", tuple(evidence), reason=reason, verified=True)


def _beside(index: PassageIndex, start: int, end: int) -> set[str]:
    """The terms of the sentences from `start` to `end`, and of one more on each side."""
    first, last = index.sentence_at(start) - 1, index.sentence_at(end - 1) + 1
    near = index.sentences[max(first, 0)], index.sentences[min(last, len(index.sentences) - 1)]
    return set(index.terms(near[0][0], near[1][1]))


@dataclass(frozen=True)
class Place:
    """Characters that are read around a sentence."""

    looked: Looked
    sentence: int
    score: float
    span: Span

    @property
    def text(self) -> str:
        """What is read: where it begins in a table, with the table's head before it."""
        text, (start, end) = self.looked.index.text, self.span
        return table_head(text, start) + text[start:end]

    def shown(self) -> Evidence:
        start = self.looked.index.sentences[self.sentence][0]
        return self.looked.quoted(self.looked.around(self.sentence, SHOWN), self.score, start)


def places_of(reader: PassageReader, looked: Sequence[Looked], budget: int) -> list[Place]:
    """The places of all memories whose words are nearest to the question's, best first, within `budget` tokens; none
    where no text speaks of what was asked."""
    if looked[0].found.best.coverage < LEAST and not reader.answers:
        return []
    count, size, apart = (READ_BY, READ, APART) if reader.answers else (FIT_BY, FIT, FIT_APART)
    near = related(reader.model, reader.tokenizer, list(looked[0].query.words.values()))
    # Scores of different texts hardly compare: of several documents, those with most of the question's names are read.
    named = [sum(_named([one], name) for name in looked[0].query.names) for one in looked]
    found = []
    for one in (one for one, names in zip(looked, named, strict=True) if names == max(named)):
        for hit in hits(one.index, sentence_scores(one.index, one.query, near), count, apart):
            found.append(Place(one, hit.sentence, hit.score, one.around(hit.sentence, size)))
    found.sort(key=lambda place: -place.score)
    kept: list[Place] = []
    for place in found[:count]:
        budget -= len(reader.tokenizer.encode(place.text))
        if budget < 0 and kept:
            break
        kept.append(place)
    return kept


def _proof(place: Place, answer: str) -> Span:
    """The few sentences of a place that hold most of an answer's words; of those alike, the nearest to the question."""
    index, weights = place.looked.index, place.looked.query.weights
    inside = [i for i, (start, end) in enumerate(index.sentences) if place.span[0] <= start and end <= place.span[1]]
    wanted, whole = set(same_words(answer).split()), f" {same_words(answer)} "
    best, most = (inside or [place.sentence])[:1] * 2, float("-inf")
    for first in inside:
        for last in range(first, min(first + TOGETHER, inside[-1] + 1)):
            span = index.sentences[first][0], index.sentences[last][1]
            said = f" {same_words(index.text[slice(*span)])} "
            held = len(wanted & set(said.split())) / max(len(wanted), 1)
            named = sum(index.weight(term) for term in set(index.terms(*span)) & set(weights))
            score = 4 * (whole in said) + 4 * held + named / 10 - (last - first)
            if score > most:
                best, most = [first, last], score
    return index.sentences[best[0]][0], index.sentences[best[1]][1]


def _passage_quotes(looked: Sequence[Looked], top_k: int) -> list[Evidence]:
    """The best passages of all memories, best first."""
    quotes = [one.quoted(one.index.span(p), score) for one in looked for p, score in one.found.passages[:top_k]]
    return sorted(quotes, key=lambda found: -found.score)


def table_head(text: str, start: int) -> str:
    """The first two lines of the Markdown table that goes on at `start`; empty where none does."""
    row = text.rfind("\n", 0, start) + 1
    top = row
    while top and text.startswith("|", text.rfind("\n", 0, top - 1) + 1):
        top = text.rfind("\n", 0, top - 1) + 1
    if top == row or not text.startswith("|", row):
        return ""
    return "".join(text[top:row].splitlines(keepends=True)[:2])


def _filled(evidence: list[Evidence], more: Sequence[Evidence], top_k: int) -> list[Evidence]:
    """`evidence`, and after it what of `more` it did not show before, up to `top_k` in all."""
    filled = list(evidence)
    for new in more:
        shown = (min(e.end, new.end) - max(e.start, new.start) for e in filled if e.memory == new.memory)
        if len(filled) < top_k and max(shown, default=0) <= AGAIN * (new.end - new.start):
            filled.append(new)
    return filled
