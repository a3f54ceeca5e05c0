"""Answers from the document's text: find the passages, take or read the answer, and show where it stands."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ttt_docs.errors import UsageError
from ttt_docs.generation.results import Answer, Evidence, quote
from ttt_docs.lookup.index import POSSESSIVE, PassageIndex, index_of, stop_words, terms
from ttt_docs.lookup.passage_reading import asked_tokens, question_fits
from ttt_docs.lookup.proximity import hits, related, sentence_scores, surroundings
from ttt_docs.lookup.question import Query, only, quoted, understand
from ttt_docs.lookup.search import COVERED, Found, Sentence, extract, search
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
SHOWN, QUOTE = 1200, 300
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
    looked.sort(key=lambda one: -one.found.best.score)
    text, evidence, reason = (
        _missing(looked) or _extracted(looked, top_k) or _read(model, tokenizer, looked, question, top_k, budget)
    )
    verified = bool(evidence) and not unsupported(text, [e.quote for e in evidence], question, looked[0].index.language)
    return Answer(text, "lookup", tuple(evidence), time.perf_counter() - began, reason, verified)


def _budget(model: Decoder, tokenizer: Tokenizer, question: str, top_k: int, max_context: int | None) -> int:
    """Tokens of text that can be read beside the question."""
    for name, value in (("top_k", top_k), ("max_context", max_context)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: use at least 1")
    longest = model.config.max_positions
    room = longest - len(asked_tokens(tokenizer, question))
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


#: The answer's text, its evidence, and how it was found.
Result = tuple[str, list[Evidence], str]


def _missing(looked: Sequence[Looked]) -> Result | None:
    """What to say where no text holds a key or name that the question is about."""
    document, does = ("The document", "does not contain") if len(looked) == 1 else ("None of the documents", "contains")
    query = looked[0].query
    keys = [key for key in query.keys if all(key in one.found.missing for one in looked)]
    absent = keys if keys and len(keys) == len(query.keys) else [n for n in query.names if not _named(looked, n)]
    if absent:
        named = " or ".join(f"“{name}”" for name in absent)
        return f"{document} {does} {named}.", [], f"looked for {named} everywhere"
    if query.kind == "mention" and all(one.found.best.coverage < COVERED for one in looked):
        return f"{document} {does} what was asked about.", [], "no sentence names it"
    return None


def _named(looked: Sequence[Looked], name: str) -> bool:
    """Whether a text has any word of a name."""
    return any(len(one.index.held_by(term)) for one in looked for term in terms(name, one.index.language))


def _extracted(looked: Sequence[Looked], top_k: int) -> Result | None:
    """Values that sentences give without doubt, for each key that the question names."""
    best = looked[0]
    if best.query.kind == "mention":
        naming = [s for s in best.found.sentences[:top_k] if s.coverage >= COVERED]
        evidence = [best.quoted((s.start, s.end), s.score) for s in naming]
        return "Yes.", evidence, "a sentence names all that the question names"
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
    return ", ".join(texts), _filled(list(shown.values()), _passage_quotes(looked, top_k), top_k), reason


def _values(looked: Sequence[Looked]) -> list[tuple[Looked, tuple[Sentence, Span]]]:
    """The values of the best memory, or those of all if the question wants all."""
    found = [[(one, value) for value in extract(one.index, one.query, one.found)] for one in looked]
    if looked[0].query.many:
        return [pair for pairs in found for pair in pairs]
    return next((pairs for pairs in found if pairs), [])


def _read(
    model: Decoder, tokenizer: Tokenizer, looked: Sequence[Looked], question: str, top_k: int, budget: int
) -> Result:
    """The sentences around the hit that fits the question best."""
    best = looked[0]
    near = related(model, tokenizer, list(best.query.words.values()))
    found = hits(best.index, sentence_scores(best.index, best.query, near), HITS, APART)
    if best.found.best.coverage < LEAST or not found:
        document = "The document does" if len(looked) == 1 else "The documents do"
        return f"{document} not say.", [], "no passage is about what was asked"
    passages: list[str] = []
    for hit in found:
        start, end = best.around(hit.sentence, READ)
        budget -= len(tokenizer.encode(best.index.text[start:end]))
        if budget < 0 and passages:
            break
        passages.append(best.index.text[start:end])
    fits = question_fits(model, tokenizer, passages, question)
    ranked = sorted(zip(found, fits, strict=False), key=lambda pair: -(LEXICAL * pair[0].score + pair[1]))
    paragraphs = [
        best.quoted(best.around(hit.sentence, SHOWN), hit.score, best.index.sentences[hit.sentence][0])
        for hit, _ in ranked
    ]
    evidence = _filled([], [*paragraphs, *_passage_quotes(looked, top_k)], top_k)
    reason = f"the model read {len(passages)} passages and found these sentences to fit the question best"
    return best.line(*best.around(ranked[0][0].sentence, QUOTE)), evidence, reason


def _passage_quotes(looked: Sequence[Looked], top_k: int) -> list[Evidence]:
    """The best passages of all memories, best first."""
    quotes = [one.quoted(one.index.span(p), score) for one in looked for p, score in one.found.passages[:top_k]]
    return sorted(quotes, key=lambda found: -found.score)


def _filled(evidence: list[Evidence], more: Sequence[Evidence], top_k: int) -> list[Evidence]:
    """`evidence`, and after it what of `more` it did not show before, up to `top_k` in all."""
    filled = list(evidence)
    for new in more:
        shown = (min(e.end, new.end) - max(e.start, new.start) for e in filled if e.memory == new.memory)
        if len(filled) < top_k and max(shown, default=0) <= AGAIN * (new.end - new.start):
            filled.append(new)
    return filled


_NUMBER = re.compile(r"\d+(?:[.,:/-]?\d+)*")
_NAME = re.compile(r"[^\W\d_a-z][\w’'-]+")
#: Capitalized where a sentence begins, and no names.
_PLAIN = {"yes", "no", "according"}


def unsupported(answer: str, quotes: Sequence[str], question: str = "", language: str = "english") -> list[str]:
    """The numbers, names and quoted strings of an answer that stand neither in a quote nor in the question."""
    shown = " ".join(" ".join(quotes).split()).lower()
    if re.search(rf"(?<!\w){re.escape(' '.join(answer.split()).lower())}(?!\w)", shown):
        return []
    known = f"{shown} {question.lower()}"
    missing = [n for n in _NUMBER.findall(answer) if not re.search(rf"(?<!\d){re.escape(n)}(?!\d)", known)]
    missing += [q for q in quoted(answer) if " ".join(q.split()).lower() not in shown]
    for word in _NAME.findall(answer):
        name = POSSESSIVE.sub("", word).lower()
        if name not in stop_words(language) | _PLAIN and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", known):
            missing.append(word)
    return list(dict.fromkeys(missing))
