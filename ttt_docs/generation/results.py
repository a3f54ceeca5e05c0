"""What generation returns. Each result prints as its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # it brings torch along
    from ttt_docs.memory.memory import Memory

#: Where an answer came from: the fast weights, passages read again with full attention, or all parts of the document.
Route = Literal["memory", "lookup", "whole"]


@dataclass(frozen=True)
class Evidence:
    """A passage of a memory's text that supports an answer: `quote == memory.text[start:end]`."""

    quote: str
    page: str | None
    start: int  # characters
    end: int
    score: float  # of the search; larger is better, comparable within one answer
    chapter: str | None = None  # chapter or section
    document: str | None = None  # its name
    memory: int = 0  # which of the memories that were asked, from 0


def quote(memory: Memory, start: int, end: int, score: float, which: int = 0, at: int | None = None) -> Evidence:
    """The memory's text[start:end] with the page, chapter and document of character `at` (its start).

    Raises ValueError for a span outside the text.
    """
    text, at = memory.text, start if at is None else at
    if text is None or not 0 <= start < end <= len(text):
        raise ValueError(f"there is no text at characters {start} to {end}")
    page, chapter, document = memory.label_at(at, "page"), memory.label_at(at, "chapter"), memory.document_at(at)
    return Evidence(text[start:end], page, start, end, score, chapter, document.name if document else None, which)


@dataclass(frozen=True)
class Answer:
    """An answer to a question about the document."""

    text: str
    route: Route
    evidence: tuple[Evidence, ...] = ()
    seconds: float = 0.0
    reason: str = ""  # why it went that way, and how the answer was found
    verified: bool = False  # each name and number of it stands in its first quote, which is about the question
    confidence: float | None = None  # probability that it is right; None: not known
    answered: bool = True  # False: the document does not say

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class SummarySentence:
    """A sentence of a summary, and the places of the text that it stands in."""

    text: str
    evidence: tuple[Evidence, ...] = ()
    supported: bool = False  # its names and numbers stand there, and its other words near one another


@dataclass(frozen=True)
class SummarySection:
    """A part of a summary: what a chapter, or a stretch of the document, says."""

    title: str  # "" where the stretch has no name
    text: str
    pages: str | None  # "3" or "3 to 17"
    sentences: tuple[SummarySentence, ...]


@dataclass(frozen=True)
class Summary:
    """A summary. `text` is that of its sections, a paragraph each."""

    text: str
    tokens: int  # of the text
    route: Route = "memory"
    sections: tuple[SummarySection, ...] = ()
    note: str = ""  # what a reader should know of how it was made; may be empty

    @property
    def sentences(self) -> tuple[SummarySentence, ...]:
        """Those of all sections, in order."""
        return tuple(sentence for section in self.sections for sentence in section.sentences)

    def __str__(self) -> str:
        return self.text
