"""A text as sentences, and as passages: runs of whole sentences that overlap, each an exact span of the text.

A sentence here is the smallest piece that is looked at by itself: a sentence of prose, or a line where lines are what
the text is made of (tables, lists, code).
"""

from __future__ import annotations

import numpy as np

from ttt_docs.text.sentences import Span

#: Characters of a passage, of which at least OVERLAP are the next one's too where sentences allow it.
SIZE, OVERLAP = 700, 150


def passages(spans: list[Span]) -> tuple[np.ndarray, np.ndarray]:
    """First and last sentence (excluded) of each passage, int32 [passages] each."""
    firsts, lasts = [], []
    first = 0
    while first < len(spans):
        last = first + 1
        while last < len(spans) and spans[last][1] - spans[first][0] <= SIZE:
            last += 1
        firsts.append(first)
        lasts.append(last)
        if last == len(spans):
            break
        following = last
        while following - 1 > first and spans[last - 1][1] - spans[following - 1][0] <= OVERLAP:
            following -= 1
        first = following
    return np.array(firsts, dtype=np.int32), np.array(lasts, dtype=np.int32)
