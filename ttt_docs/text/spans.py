"""Pages and chapters: from a character of a text to the page and the chapter it stands on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A page or chapter: characters `start` (included) to `end` (excluded) of the text it belongs to."""

    kind: str  # "page" | "chapter"
    label: str
    start: int
    end: int


def span_at(spans: Sequence[Span], character: int, kind: str | None = None) -> Span | None:
    """The span that holds a character: of one `kind`, or of any where they do not overlap. None where there is none.

    `spans` of a kind are in order and do not overlap; a document may have pages and chapters.
    """
    own = spans if kind is None else [span for span in spans if span.kind == kind]
    at = bisect_right(own, character, key=lambda span: span.start) - 1
    return own[at] if at >= 0 and character < own[at].end else None


def label_at(spans: Sequence[Span], character: int, kind: str) -> str | None:
    """The label of the page or chapter that holds a character."""
    span = span_at(spans, character, kind)
    return None if span is None else span.label


def spans_from_starts(kind: str, starts: Sequence[tuple[int, str]], length: int) -> tuple[Span, ...]:
    """Spans that cover `length` characters without a gap: each runs from its start to the next one's.

    `starts` are (offset, label) in order. Empty spans are left out; text before the first start is "front matter".
    """
    starts = [(offset, label) for offset, label in starts if offset < length]
    if not starts:
        return ()
    if starts[0][0] > 0:
        starts = [(0, "front matter"), *starts]
    ends = [offset for offset, _ in starts[1:]] + [length]
    return tuple(Span(kind, label, start, end) for (start, label), end in zip(starts, ends, strict=True) if start < end)


def moved_spans(spans: Iterable[Span], by: int, limit: int) -> tuple[Span, ...]:
    """The spans, `by` characters later and cut off at `limit`; those that are empty then are left out."""
    moved = (Span(span.kind, span.label, span.start + by, min(span.end + by, limit)) for span in spans)
    return tuple(span for span in moved if span.start < span.end)
