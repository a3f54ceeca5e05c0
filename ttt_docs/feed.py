"""Text of unknown length to tokens, in constant memory and independent of how the text arrived.

The text is cut at places that depend on the text alone, right after a line break before a letter, where byte-pair
tokenizers split anyway: tokens are the same whether a document comes whole, line by line or byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: A segment is at least this many characters (but the last), and at most SEGMENT + LONGEST.
SEGMENT = 4096
LONGEST = 65_536
_LINE = re.compile(r"\n(?=\S)")
_WORD = re.compile(r"\S(?=\s)")


def segments(pieces: Iterable[str]) -> Iterator[str]:
    """Cuts a text that arrives in any pieces; joined, the segments are the text."""
    held = ""
    for piece in pieces:
        held += piece
        while (cut := _cut(held)) is not None:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _cut(text: str) -> int | None:
    """Where the first segment of `text` ends; None if more text is needed to tell."""
    line = _LINE.search(text, SEGMENT - 1, SEGMENT + LONGEST)
    if line is not None:
        return line.end()
    if len(text) < SEGMENT + LONGEST:
        return None
    word = _WORD.search(text, SEGMENT - 1, SEGMENT + LONGEST)
    return word.end() if word is not None else SEGMENT + LONGEST
