"""A small book in two chapters, with text that tries to be more than text."""

from __future__ import annotations

from ttt_docs import Document
from ttt_docs.documents import Span

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=document.title='owned'> & \"quoted\" </style></svg>"
)
SENTENCES = [
    f"On day {day} the captain counted {day * 37 % 101} waves from the deck, and wrote their number into his log. "
    for day in range(12)
]
TEXT = "".join(["Chapter I\n\n", *SENTENCES[:8], "\n\nChapter II\n\n", f"He read: {HOSTILE}. " * 3, *SENTENCES[8:]])
SECOND = TEXT.index("Chapter II")


def small_book(name: str = "book.txt") -> Document:
    spans = [Span("chapter", "Chapter I", 0, SECOND), Span("chapter", f"Chapter II {HOSTILE}", SECOND, len(TEXT))]
    return Document.from_text(TEXT, name=name, spans=spans)
