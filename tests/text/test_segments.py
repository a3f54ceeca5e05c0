"""Text in pieces to tokens: nothing may depend on how the text arrived, nor on where it was cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ttt_docs.text import segments as feed
from ttt_docs.text.segments import segments

#: The two rules by which nearly all byte-level tokenizers split text before merging bytes.
GPT2 = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
LLAMA3 = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            behavior="isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
BOOK = (Path(__file__).parents[2] / "examples" / "portrait.txt").read_text("utf-8")
WORDS = st.sampled_from(
    ["a", "the", "Stephen", "don't", "--", ".", "12", "1906", "é", "e\u0301", "“", "漢字", "🙂", "\x1c"]
)
SPACES = st.sampled_from(
    [" ", " ", " ", "\n", "\n\n", "\n\n\n", "  ", "\t", " \n", "\n ", "\r\n", "\xa0", "\u2003", ""]
)
TEXTS = st.lists(st.tuples(WORDS, SPACES), max_size=60).map(lambda pairs: "".join(a + b for a, b in pairs))


def trained(split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A byte-pair tokenizer that has learned merges of white space as well as of letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([BOOK[:50_000], "a\n\nb\n\n\nc.\n\nd  e   f \n g\r\n\r\nh\t\ti\n\n" * 200], trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[GPT2, LLAMA3], ids=["gpt2", "llama3"])
def tokenizer(request) -> Tokenizer:
    return trained(request.param)


@contextmanager
def short() -> Iterator[None]:
    """Segments short enough for a generated text to have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "SEGMENT", 5)
        patch.setattr(feed, "LONGEST", 200)
        yield


@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_segments_are_the_text_however_it_comes(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    with short():
        whole = list(segments([text]))
        assert "".join(whole) == text and all(whole)
        assert list(segments(text[a:b] for a, b in pairwise(edges))) == whole
        assert list(segments(iter(text))) == whole


@settings(max_examples=300)
@given(text=TEXTS)
def test_tokens_of_segments_are_the_tokens_of_the_whole(tokenizer, text):
    with short():
        parts = list(segments([text]))
    if max(map(len, parts), default=0) < 200:  # else there was no place to cut
        assert [i for part in parts for i in tokenizer.encode(part).ids] == tokenizer.encode(text).ids


def test_tokens_of_a_book(tokenizer):
    assert [i for segment in segments([BOOK]) for i in tokenizer.encode(segment).ids] == tokenizer.encode(BOOK).ids


@pytest.mark.parametrize("text", ["", "x", " ", "\n" * 9, "x" * 300_000, " " * 300_000, "x\n\n" * 100_000])
def test_texts_without_a_place_to_cut(text):
    parts = list(segments([text]))
    assert "".join(parts) == text
    assert all(len(part) <= feed.SEGMENT + feed.LONGEST for part in parts)


def test_segments_have_their_sizes():
    sizes = [len(segment) for segment in segments([BOOK])]
    assert min(sizes[:-1]) >= feed.SEGMENT and max(sizes) < feed.SEGMENT + 200


def test_time_grows_with_the_text_only():
    """All of a text of 50 million characters comes in one piece: the rest must not be copied for every segment."""
    began = time.process_time()
    assert sum(map(len, segments(["word " * 10_000_000]))) == 50_000_000
    assert time.process_time() - began < 5
