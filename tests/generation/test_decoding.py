from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ttt_docs.errors import MemoryMismatchError, UsageError
from ttt_docs.generation.chat import text_pieces
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.sampling import sampling_of
from ttt_docs.memory.memory import memories_equal
from ttt_docs.reader import TTTReader

TEXT = "The sea was calm. Old Käpt’n Ahab looked at the white whale, and the whale looked back at him."


@pytest.fixture(scope="module")
def narrow_reader(tiny_reader):
    """The same with a window of 32 tokens."""
    reading = tiny_reader.reading.model_copy(update={"window": 32})
    return TTTReader(tiny_reader.model, tiny_reader.tokenizer, reading, name="tiny", fingerprint="ab" * 32)


@pytest.fixture(scope="module")
def memory(narrow_reader):
    return narrow_reader.ingest(text=TEXT, progress=False)


def copy_of(memory):
    fast = {i: {n: w.clone() for n, w in block.items()} for i, block in memory.fast.items()}
    window = {i: (k.clone(), v.clone()) for i, (k, v) in memory.window.items()}
    return replace(memory, fast=fast, window=window, tokens=memory.tokens.clone(), nll=memory.nll.clone())


def test_decoding_equals_reading_the_same_tokens(tiny_reader, memory):
    """Updates come where reading makes them, and the state afterwards is bit for bit what reading leaves."""
    decoding = Decoding(tiny_reader.model, memory)
    new = list(generate(decoding, (), sampling_of(max_new_tokens=50, seed=3), frozenset()))
    tokens = [*memory.tokens.tolist(), *new[:-1]]  # the last token was not run
    read = Decoding(tiny_reader.model, replace(memory, position=0, tokens=memory.tokens[:0], nll=memory.nll[:0]))
    read.feed(tokens)
    assert decoding.updates == (len(tokens) - 1) // 16 - memory.chunks >= 3
    assert decoding.base.position == read.base.position
    assert torch.equal(decoding.base.fast, read.base.fast)
    assert decoding.tail == read.tail


def test_steps_give_the_logits_of_one_long_prompt(tiny_reader, memory):
    tokens = list(range(40, 90))
    stepping, whole = Decoding(tiny_reader.model, memory), Decoding(tiny_reader.model, memory)
    logits = stepping.feed(tokens[:1])
    for token in tokens[1:]:
        logits = stepping.step(token)
    torch.testing.assert_close(logits, whole.feed(tokens), atol=1e-4, rtol=1e-4)


def test_no_run_is_repeated_however_long_ago_it_was(tiny_reader, memory):
    decoding = Decoding(tiny_reader.model, memory, learn=False)
    sampling = sampling_of(max_new_tokens=600, no_repeat_ngram=2, temperature=0, repetition_penalty=1)
    new = list(generate(decoding, (), sampling, frozenset()))
    assert len(new) == 600 and len(set(pairwise(new))) == 599


def test_learning_can_be_switched_off(tiny_reader, memory):
    decoding = Decoding(tiny_reader.model, memory, learn=False)
    list(generate(decoding, (), sampling_of(max_new_tokens=50), frozenset()))
    assert decoding.updates == 0
    assert decoding.base.position == memory.position


def test_nothing_changes_the_memory(tiny_reader):
    memory = tiny_reader.ingest(text=TEXT, progress=False)
    before = copy_of(memory)
    tiny_reader.continue_text(memory, 60)
    tiny_reader.summarize(memory)
    answer = tiny_reader.ask(memory, "Who looked?", route="memory", max_new_tokens=4)
    assert (answer.route, answer.evidence, str(answer)) == ("memory", (), answer.text) and answer.seconds > 0
    assert memories_equal(memory, before)


def test_continuations_are_reproducible_and_streams_are_the_same(tiny_reader, memory):
    whole = tiny_reader.continue_text(memory, 60, seed=5)
    assert whole == tiny_reader.continue_text(memory, 60, seed=5)
    assert whole == "".join(tiny_reader.continue_text(memory, 60, seed=5, stream=True))
    assert whole != tiny_reader.continue_text(memory, 60, seed=6)


def test_a_stream_starts_before_it_is_finished(tiny_reader, memory):
    stream = tiny_reader.continue_text(memory, 10_000, stream=True, learn=False)
    assert len([next(stream) for _ in range(5)]) == 5


def test_short_memories_are_continued_too(tiny_reader):
    assert isinstance(tiny_reader.continue_text(tiny_reader.ingest(text="a", progress=False), 5), str)


def test_an_empty_memory_cannot_be_continued(tiny_reader, memory):
    empty = replace(memory, tokens=memory.tokens[:0], nll=memory.nll[:0], position=0, fast={}, window={})
    with pytest.raises(UsageError, match="read a document"):
        tiny_reader.continue_text(empty)


def test_memories_of_another_model_are_refused(tiny_reader, memory):
    other = replace(memory, fingerprint="cd" * 32)
    for call in (tiny_reader.continue_text, tiny_reader.summarize, lambda m: tiny_reader.ask(m, "Who?")):
        with pytest.raises(MemoryMismatchError):
            call(other)


@pytest.mark.parametrize("text", ["Ahab’s 白鯨 🐋 swims", "plain", ""])
@pytest.mark.parametrize("stop", [(), ("swims",), ("’s 白", "zzz"), ("🐋 s",)])
def test_pieces_are_whole_characters_up_to_the_stop_text(tiny_tokenizer, text, stop):
    pieces = list(text_pieces(tiny_tokenizer.encode(text), tiny_tokenizer, stop))
    found = [at for s in stop if (at := text.find(s)) >= 0]
    assert "".join(pieces) == text[: min(found, default=len(text))]
    assert all(pieces) and not any("\ufffd" in piece for piece in pieces)


def test_a_started_stop_text_that_does_not_come_is_given_out(tiny_tokenizer):
    assert "".join(text_pieces(tiny_tokenizer.encode("one two thr"), tiny_tokenizer, ("three",))) == "one two thr"


def test_questions_are_checked(tiny_reader, memory):
    with pytest.raises(UsageError, match="empty"):
        tiny_reader.ask(memory, "  ")
    with pytest.raises(UsageError, match="window"):
        tiny_reader.ask(memory, "Who is it that asks?", route="memory", max_new_tokens=4)
    with pytest.raises(UsageError, match="use auto, memory, lookup"):
        tiny_reader.ask(memory, "Who?", route="guess")
