"""The salient passages of each part of a document, and the sentences that a summary can quote from them.

A passage is a paragraph, or a few sentences of a long one, in running prose. Its score grows with the proper names and
the frequent words in it, and with how much it surprised the model that read it. Passages are grouped by the part of the
document they stand in, so that a summary covers all of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from ttt_docs.memory.memory import Memory
from ttt_docs.text.names import Name, proper_names, word_list
from ttt_docs.text.segments import segments
from ttt_docs.text.sentences import PARAGRAPH, SENTENCE_END, Span, sentences, trimmed
from ttt_docs.text.tokenizer import Tokenizer

#: Characters of a passage.
SHORTEST, LONGEST = 120, 900
_WORD = re.compile(r"[^\W\d_]{2,}")
_NOT_PROSE = re.compile(
    r"copyright|all rights reserved|gutenberg|transcriber|typograph|hyphenation|unbalanced quotation|isbn|proofread|"
    r"\[illustration|license|printed in|first edition|published by|et seq\b",
    re.IGNORECASE,
)
_QUOTES = '"“”«»„'
#: Characters of a sentence that a summary quotes; scripts without spaces say as much in fewer.
SIZE = (45, 260)
DENSE_SIZE = (12, 120)
#: Sentences of a part of the document that a summary chooses among.
NOMINATED = 6
#: A sentence that opens with one of these needs the one before it.
_LEANING = word_list("leaning")
_PRONOUN = re.compile(r"(?<!\w)(?:he|she|it|they|his|her|him|them|their|this|that|these|those|you|your)(?!\w)", re.I)
_FIRST_PERSON = re.compile(r"(?<!\w)(?:I|my|me|we|our|us|you|your)(?!\w)")
_CONNECTIVE = re.compile(
    r"(?:(?:and|but|now|so|for|yet|then|still|moreover|however|indeed|again|also|besides|accordingly|meanwhile),?\s+)+",
    re.IGNORECASE,
)
_SPOKEN = re.compile(r"[\"“”«»„?!\[\]{}|=<>]|^\W*[—–-]|\.\.\.|…|(?<!\w)'(?=\w)|^\S+:")
_MARKS = re.compile(r"(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Passage:
    """`text[start:end]` of the document, and its score."""

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Quote:
    """A sentence `text[start:end]` of the document, how a summary writes it, and its score."""

    start: int
    end: int
    written: str
    score: float


def surprise(memory: Memory, tokenizer: Tokenizer) -> np.ndarray | None:
    """Cumulative loss over the characters of the memory's text, float32 [characters + 1, 2]: nats, and tokens counted.

    Characters that were not read have none of either. None if the text is not there.
    """
    if memory.text is None:
        return None
    nats = np.zeros((len(memory.text) + 1, 2))
    ids, nll = memory.tokens.numpy(), memory.nll.numpy()
    at = memory.documents[0].first_token if memory.documents else 0  # a BOS in front is none of the text's
    offset = 0
    ends = [*(document.end for document in memory.documents[:-1]), len(memory.text)]
    parts = [memory.text[a:b] for a, b in pairwise([0, *ends])]  # each is fed by itself
    for segment in chain.from_iterable(segments([part]) for part in parts):
        pieces, spans = tokenizer.encode_with_offsets(segment)
        count = min(len(pieces), len(ids) - at)
        if at == len(ids) or list(ids[at : at + count]) != pieces[:count]:
            break  # nothing more was read, or another text: what follows stays neutral
        for (begin, _), loss in zip(spans[:count], nll[at : at + count].tolist(), strict=True):
            nats[offset + begin + 1] += (loss, 1)
        at, offset = at + count, offset + len(segment)
    return nats.cumsum(axis=0)


def candidates(text: str, names: Sequence[Name], losses: np.ndarray | None = None) -> list[Passage]:
    """All passages of running prose in `text`, in order, with their scores."""
    frequent = Counter(word.lower() for word in _WORD.findall(text))
    total = sum(frequent.values())
    found = []
    for match in PARAGRAPH.finditer(text):
        if match.end() - match.start() < SHORTEST or not is_prose(match.group()):
            continue
        for start, end in _pieces(text, match.start(), match.end()):
            found.append(Passage(start, end, _score(text[start:end], names, frequent, total)))
    if losses is None or not found:
        return found
    spread = losses[[p.end for p in found]] - losses[[p.start for p in found]]
    read = spread[:, 1] > 0
    if read.sum() < 2:
        return found
    mean = np.divide(spread[:, 0], spread[:, 1], out=np.zeros(len(found)), where=read)
    unusual = np.where(read, (mean - mean[read].mean()) / (mean[read].std() + 1e-6), 0.0)
    # More surprise is more news; far more is a table or a foreign language.
    bonus = 0.3 * np.clip(unusual, -1.5, 1.0) - 0.5 * np.clip(unusual - 2, 0, None)
    return [Passage(p.start, p.end, p.score + float(b)) for p, b in zip(found, bonus, strict=True)]


def is_prose(text: str) -> bool:
    """Running text: no table, list, verse, heading, index or licence."""
    letters = sum(c.isalpha() for c in text)
    digits = sum(c.isdigit() for c in text)
    capitals = sum(c.isupper() for c in text)
    lines = text.split("\n")
    even = len(lines) < 3 or sum(map(len, lines)) / len(lines) > 45  # verse and tables have short lines
    ends = bool(SENTENCE_END.search(text[-6:]))
    enough = letters > 0.7 * len(text) and digits < 0.03 * len(text) and capitals < 0.12 * letters
    return enough and even and ends and not _NOT_PROSE.search(text)


def _pieces(text: str, start: int, end: int) -> list[Span]:
    """A paragraph, or the runs of whole sentences it is cut into if it is long."""
    if end - start <= LONGEST:
        return [(start, end)]
    pieces: list[Span] = []
    for a, b in sentences(text, start, end):
        if pieces and b - pieces[-1][0] <= LONGEST:
            pieces[-1] = (pieces[-1][0], b)
        elif b - a <= LONGEST:
            pieces.append((a, b))
    return [(a, b) for a, b in pieces if b - a >= SHORTEST]


def _named(text: str, names: Sequence[Name]) -> tuple[list[Name], float]:
    """The names in a text, and how much they say of what the document is about."""
    named = [name for name in names if name.within(text)]
    return named, sum(math.sqrt(name.count / names[0].count) for name in named[:3])


def _score(passage: str, names: Sequence[Name], frequent: Counter[str], total: int) -> float:
    _, weight = _named(passage, names)
    words = [w.lower() for w in _WORD.findall(passage)]
    # Words that the document uses often but that are not everywhere: its subject.
    different = dict.fromkeys(words)  # in order, so that the sum has the same bits every time
    telling = [w for w in different if len(w) > 4 and 5 <= frequent[w] <= total / 500]
    subject = sum(math.log(frequent[w]) for w in telling) / (len(different) + 10)
    spoken = sum(passage.count(quote) for quote in _QUOTES) / (len(passage) / 100)
    asked = passage.count("?") + passage.count("!")
    size = min(len(passage), 600) / 600
    return 1.2 * weight + 0.8 * subject + 0.5 * size - 0.5 * min(spoken, 3) - 0.2 * min(asked, 4)


def sections(text: str, names: Sequence[Name], parts: int, losses: np.ndarray | None = None) -> list[list[Passage]]:
    """The passages of `parts` equal stretches of the document's prose, best first; a stretch without any is left out.

    Without prose (a table, code) each stretch of the text itself is the one passage of its section.
    """
    found = candidates(text, names, losses)
    if not found:
        return [[p] for p in _stretches(text, parts)]
    length = np.cumsum([p.end - p.start for p in found])
    groups: list[list[Passage]] = [[] for _ in range(parts)]
    for passage, upto in zip(found, length.tolist(), strict=True):
        middle = upto - (passage.end - passage.start) / 2
        groups[min(int(middle / length[-1] * parts), parts - 1)].append(passage)
    return [sorted(group, key=lambda p: (-p.score, p.start)) for group in groups if group]


def _stretches(text: str, parts: int) -> list[Passage]:
    if len(text) <= parts * LONGEST:
        bounds = [(i, min(i + LONGEST, len(text))) for i in range(0, len(text), LONGEST)]
    else:
        bounds = [(i * len(text) // parts, i * len(text) // parts + LONGEST) for i in range(parts)]
    return [Passage(a, b, 0.0) for a, b in (trimmed(text, *span) for span in bounds) if a < b]


def written(sentence: str) -> str:
    """A sentence on one line, without emphasis marks and without the conjunction that ties it to the one before."""
    line = _MARKS.sub("", " ".join(sentence.split())).replace("--", "—")
    line = re.sub(r"(?<=\w)- (?=[a-z])", "-", line)
    opening = _CONNECTIVE.match(line)
    if opening and not line[opening.end() :][:1].isspace() and len(line) > opening.end():
        rest = line[opening.end() :]
        line = rest[0].upper() + rest[1:]
    return line


def quotes(text: str, passage: Passage, names: Sequence[Name]) -> list[Quote]:
    """The sentences of a passage that are understood without the ones around them, in order."""
    low, high = SIZE if text.count(" ") > 0.05 * len(text) else DENSE_SIZE
    found = []
    for start, end in sentences(text, passage.start, passage.end):
        line = written(text[start:end])
        if low <= len(line) <= high and _stands_alone(line) and not _inside_speech(text[passage.start : start]):
            found.append(Quote(start, end, line, _line_score(line, names) + 0.5 * passage.score))
    return found


def _stands_alone(line: str) -> bool:
    """A statement with nothing spoken in it, which does not lean on the sentence before."""
    first = re.match(r"\W*(\w+)", line)
    if first is None or not first[1][0].isalnum() or first[1][0].islower() or first[1].lower() in _LEANING:
        return False
    return line[-1] in ".。" and line.count("(") == line.count(")") and not _SPOKEN.search(line)


def _inside_speech(before: str) -> bool:
    """Whether a quotation that began earlier in the passage is still open."""
    return before.count("“") > before.count("”") or before.count("„") > before.count("“") or before.count('"') % 2 == 1


def _line_score(line: str, names: Sequence[Name]) -> float:
    named, weight = _named(line, names)
    early = any(name.within(line[:60]) for name in named)
    leaning = len(_PRONOUN.findall(line)) + 1.0 * len(_FIRST_PERSON.findall(line))
    size = min(len(line), 140) / 140
    return 1.5 * weight + 0.7 * early + 0.8 * size - 0.25 * leaning - 0.3 * line.count(";") - 0.1 * line.count("—")


def nominate(text: str, memory: Memory, tokenizer: Tokenizer, names: list[Name], parts: int) -> list[list[Quote]]:
    """For each part of the document, in order, the sentences to choose among."""
    enough = max(1, len(sentences(text[:20_000])) // 3)  # a short text's summary is shorter than the text
    groups = []
    for group in sections(text, names, min(parts, enough), surprise(memory, tokenizer)):
        found = [quote for passage in group[:40] for quote in quotes(text, passage, names)]
        named = [quote for quote in found if any(name.within(quote.written) for name in names)]
        best = sorted(named or found, key=lambda q: (-q.score, q.start))[: 4 * NOMINATED]
        if best:
            groups.append(best)
    return groups


def opening_of(text: str, names: list[Name]) -> str:
    """What the document is mostly about, by its most frequent names; for English texts with at least three."""
    words = re.findall(r"[a-z]+", text[:200_000].lower())
    english = sum(word in ("the", "of", "and", "to") for word in words) > 0.08 * len(words)
    if not english or len(names) < 3 or names[2].count < 5:
        return ""
    few = [name.full for name in names[:4]]
    return f"The document is mostly about {', '.join(few[:-1])} and {few[-1]}."


def outline(memory: Memory, tokenizer: Tokenizer, parts: int) -> str:
    """What the document is about, found without running the model: its names and a sentence of each of its parts."""
    text = memory.text or ""
    if not text.strip():
        return ""
    names = proper_names(text, 8)
    best = [group[0].written for group in nominate(text, memory, tokenizer, names, parts)]
    return " ".join([opening, *best] if (opening := opening_of(text, names)) else best)
