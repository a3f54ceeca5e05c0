"""Text of unknown length to tokens, in constant memory and independent of how the text arrived.

The text is cut at a single space or a single line break between two other characters. Byte-pair tokenizers split there
anyway, so the tokens of the segments are the tokens of the whole text. They are the same whether a document comes
whole, line by line or byte by byte. Runs of white space are not cut: "\\n\\n" is one token at the end of a text, and
two tokens before a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: A segment is at least this many characters (but the last), and at most SEGMENT + LONGEST.
SEGMENT = 4096
LONGEST = 65_536
#: A line break goes with what is before it, a space with what comes after it, as in tokens.
_SEAM = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")


def segments(pieces: Iterable[str]) -> Iterator[str]:
    """Cuts a text that arrives in any pieces; joined, the segments are the text."""
    held = ""
    for piece in pieces:
        held += piece
        start = 0
        while (cut := _cut(held, start)) is not None:
            yield held[start:cut]
            start = cut
        held = held[start:]
    if held:
        yield held


def _cut(text: str, start: int) -> int | None:
    """Where the segment of `text` that begins at `start` ends; None if more text is needed to tell."""
    longest = start + SEGMENT + LONGEST
    seam = _SEAM.search(text, start + SEGMENT, longest)
    if seam is not None:
        return seam.end()
    return longest if len(text) >= longest else None
