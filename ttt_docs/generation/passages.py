"""The salient passages of a document: what a summary is built on.

A passage is a paragraph, or a few sentences of a long one. It scores by the proper names and frequent words it carries,
by how much reading it surprised the model, and by standing in running prose. They are grouped by the part of the
document they stand in, so that a summary can cover it all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_docs.memory.memory import Memory
from ttt_docs.text.names import TITLES, Name
from ttt_docs.text.segments import segments
from ttt_docs.text.tokenizer import Tokenizer

#: Characters of a passage.
SHORTEST, LONGEST = 120, 900
_PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
_SENTENCE_END = re.compile(r"(?:[.!?…]+|[。！？]+)[\"'”’»)\]_*]*(?=\s|$)|[。！？]+[」』”]*")
_LAST_WORD = re.compile(r"(?<!\w)(\w+)\W*$")
#: Titles that are written with a dot, and the characters to look back for one.
_DOTTED = TITLES - {"sir", "king", "queen", "la", "le"}
_LONGEST_TITLE = max(map(len, _DOTTED)) + 4
_WORD = re.compile(r"[^\W\d_]{2,}")
_NOT_PROSE = re.compile(
    r"copyright|all rights reserved|gutenberg|transcriber|typograph|hyphenation|unbalanced quotation|isbn|proofread|"
    r"\[illustration|license|printed in|first edition|published by|et seq\b",
    re.IGNORECASE,
)
_QUOTES = '"“”«»„'


@dataclass(frozen=True)
class Passage:
    """`text[start:end]` of the document, and its score."""

    start: int
    end: int
    score: float


def sentences(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Spans of the sentences in text[start:end], white space around them left out."""
    end = len(text) if end is None else end
    spans, begin = [], start
    for match in _SENTENCE_END.finditer(text, start, end):
        rest = text[match.end() : min(match.end() + 3, end)].lstrip()
        if rest[:1].islower() or (match.group()[0] == "." and _abbreviated(text, begin, match.start())):
            continue
        spans.append((begin, match.end()))
        begin = match.end()
    spans.append((begin, end))
    trimmed = [(a + len(text[a:b]) - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in spans]
    return [(a, b) for a, b in trimmed if a < b]


def _abbreviated(text: str, start: int, dot: int) -> bool:
    """Whether the dot at `dot` ends a title or an initial, and no sentence."""
    word = _LAST_WORD.search(text, max(start, dot - _LONGEST_TITLE), dot)
    last = word.group(1) if word else ""
    return last.lower() in _DOTTED or (len(last) == 1 and last.isupper() and last != "I")


def surprise(memory: Memory, tokenizer: Tokenizer) -> np.ndarray | None:
    """Cumulative loss over the characters of the memory's text, float32 [characters + 1, 2]: nats, and tokens counted.

    Characters that were not read have none of either. None if the text is not there.
    """
    if memory.text is None:
        return None
    nats = np.zeros((len(memory.text) + 1, 2))
    ids, nll = memory.tokens.numpy(), memory.nll.numpy()
    at = len(ids) - _text_tokens(memory)
    offset = 0
    for segment in (segment for part in _parts(memory) for segment in segments([part])):
        if at >= len(ids):
            break
        pieces, spans = tokenizer.encode_with_offsets(segment)
        count = min(len(pieces), len(ids) - at)
        if list(ids[at : at + count]) != pieces[:count]:
            break  # another text than the one that was read: what follows stays neutral
        for (begin, _), loss in zip(spans[:count], nll[at : at + count].tolist(), strict=True):
            nats[offset + begin + 1] += (loss, 1)
        at, offset = at + count, offset + len(segment)
    return nats.cumsum(axis=0)


def _text_tokens(memory: Memory) -> int:
    """How many of the memory's tokens belong to its text: all but a BOS in front."""
    return len(memory.tokens) - (memory.documents[0].first_token if memory.documents else 0)


def _parts(memory: Memory) -> list[str]:
    """The text as it was fed: each document by itself, with what separates it from the one before."""
    assert memory.text is not None
    ends = [*(d.end for d in memory.documents[:-1]), len(memory.text)]
    return [memory.text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def candidates(text: str, names: Sequence[Name], losses: np.ndarray | None = None) -> list[Passage]:
    """All passages of running prose in `text`, in order, with their scores."""
    frequent = Counter(word.lower() for word in _WORD.findall(text))
    total = sum(frequent.values())
    found = []
    for match in _PARAGRAPH.finditer(text):
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
    ends = bool(_SENTENCE_END.search(text[-6:]))
    enough = letters > 0.7 * len(text) and digits < 0.03 * len(text) and capitals < 0.12 * letters
    return enough and even and ends and not _NOT_PROSE.search(text)


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A paragraph, or the runs of whole sentences it is cut into if it is long."""
    if end - start <= LONGEST:
        return [(start, end)]
    pieces: list[tuple[int, int]] = []
    for a, b in sentences(text, start, end):
        if pieces and b - pieces[-1][0] <= LONGEST:
            pieces[-1] = (pieces[-1][0], b)
        elif b - a <= LONGEST:
            pieces.append((a, b))
    return [(a, b) for a, b in pieces if b - a >= SHORTEST]


def _score(passage: str, names: Sequence[Name], frequent: Counter[str], total: int) -> float:
    named = [name for name in names if name.within(passage)]
    weight = sum(math.sqrt(name.count / names[0].count) for name in named[:3]) if names else 0.0
    words = [w.lower() for w in _WORD.findall(passage)]
    # Words that the document uses often but that are not everywhere: its subject.
    telling = [w for w in set(words) if len(w) > 4 and 5 <= frequent[w] <= total / 500]
    subject = sum(math.log(frequent[w]) for w in telling) / (len(set(words)) + 10)
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
    spans = [(a + len(text[a:b]) - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in bounds]
    return [Passage(a, b, 0.0) for a, b in spans if a < b]
