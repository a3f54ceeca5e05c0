"""What generation returns. Each result prints as its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # it brings torch along
    from ttt_docs.memory.memory import Memory

#: Where an answer came from: the fast weights, or the document's passages read again with full attention.
Route = Literal["memory", "lookup"]


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
    verified: bool = False  # every number, name and quoted string of it stands in the evidence

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Summary:
    """A summary, and the sentences of the document it is made of, in its order (empty where the model wrote freely)."""

    text: str
    tokens: int  # of the text; where the model wrote freely, all it generated, tries that failed a check included
    route: Route = "memory"
    outline: tuple[Evidence, ...] = ()

    def __str__(self) -> str:
        return self.text
