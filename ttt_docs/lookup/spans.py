"""The runs of words of a passage, as tokens: for answers that stand in the passage as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from ttt_docs.text.tokenizer import Tokenizer

#: Words of a run, at most.
WORDS = 24
_WORD = re.compile(r"[^\s]+")
_OPENING = re.compile(r"^[\"'“‘«„(\[*_#|>-]+")


class PassageSpans:
    """The runs of words of one passage. A run begins and ends with a word."""

    def __init__(self, passage: str, tokenizer: Tokenizer) -> None:
        line = " ".join(passage.split())
        words = [match.span() for match in _WORD.finditer(line)]
        texts = []
        for i, (start, end) in enumerate(words):
            opening = _OPENING.match(line[start:end])
            first = start + (opening.end() if opening else 0)
            if first < end:
                texts.append(line[first : words[min(i + WORDS, len(words)) - 1][1]])
        self.runs = tokenizer.encode_batch(texts)
        # A run may end before a token that begins with no letter or digit.
        self.ends = {token: not tokenizer.decode([token])[:1].isalnum() for token in {*chain.from_iterable(self.runs)}}
        self._before: tuple[list[int], list[int]] = ([], list(range(len(self.runs))))

    def after(self, tokens: Sequence[int]) -> tuple[list[int], bool]:
        """As `generation.together.Spans`. Calls go on from one another: each has one token more than the last."""
        done, alive = self._before
        if list(tokens[: len(done)]) != done:
            done, alive = [], list(range(len(self.runs)))
        for n in range(len(done), len(tokens)):
            alive = [i for i in alive if len(self.runs[i]) > n and self.runs[i][n] == tokens[n]]
        self._before = list(tokens), alive
        n = len(tokens)
        following = {self.runs[i][n] for i in alive if len(self.runs[i]) > n}
        may_end = n > 0 and any(len(self.runs[i]) == n or self.ends[self.runs[i][n]] for i in alive)
        return sorted(following), may_end or not following
