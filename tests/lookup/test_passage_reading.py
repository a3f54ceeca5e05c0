"""Reading passages with the base model: what a batch computes, and copying under a constraint."""

from __future__ import annotations

import pytest
import torch

from ttt_docs.lookup.passage_reading import LONGEST, asking, base_state, copy_answer, read_passages

TEXT = "The keeper was Edward\nMarlow. He came from Leith, by boat, in 1911. Nobody else came."
PASSAGES = [(0, 30), (30, len(TEXT)), (4, 17)]
QUESTION = "Who came?"


@pytest.fixture
def read(tiny_reader):
    return read_passages(tiny_reader.model, tiny_reader.tokenizer, TEXT, PASSAGES, QUESTION)


def test_a_batch_is_what_each_passage_gives_alone(tiny_reader, read):
    model, tokenizer = tiny_reader.model, tiny_reader.tokenizer
    asked, opening = asking(tokenizer, QUESTION)
    passages = [tokenizer.encode(TEXT[start:end].replace("\n", " ")) for start, end in PASSAGES]
    longest = max(map(len, passages))
    assert read.spans == PASSAGES and read.last == opening[-1]
    after = read.state.run(torch.tensor([[opening[-1]]] * len(PASSAGES)), commit=False)
    for row, passage in enumerate(passages):
        tokens = tokenizer.encode("\n") * (longest - len(passage)) + passage
        state = base_state(model)
        nll = state.score(torch.tensor([[*tokens, *asked]]))[0, len(tokens) - 1 :]
        assert read.fits[row] == pytest.approx(-float(nll.sum()), rel=1e-4)
        alone = state.run(torch.tensor([[*tokens, *asked, *opening]]))[:, -1:]
        torch.testing.assert_close(after[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_the_base_model_has_no_fast_weights(tiny_reader, tiny_tokenizer):
    retrofit = tiny_reader.model.config.model_copy(update={"prime_norm": False})
    assert base_state(tiny_reader.model).fast is not None  # trained with them: it is none without
    model = type(tiny_reader.model)(retrofit).requires_grad_(False)
    assert base_state(model).fast is None


def test_answers_are_copied_from_word_to_word(tiny_reader, read):
    for row, (start, end) in enumerate(PASSAGES):
        copied = copied_from(tiny_reader, read, row)
        assert start <= copied.start < copied.end <= end and copied.confidence < 0
        assert copied.end - copied.start <= LONGEST  # one token per byte here
        assert TEXT[copied.start].isalnum() and not TEXT[copied.start - 1 : copied.start].isalnum()


def test_an_answer_does_not_depend_on_its_batch(tiny_reader, read):
    together = copied_from(tiny_reader, read, 1)  # the longest: nothing stands before it
    alone = read_passages(tiny_reader.model, tiny_reader.tokenizer, TEXT, PASSAGES[1:2], QUESTION)
    again = copied_from(tiny_reader, alone, 0)
    assert (again.start, again.end) == (together.start, together.end)
    assert again.confidence == pytest.approx(together.confidence, rel=1e-3)


def test_only_what_is_allowed(tiny_reader, read):
    for allowed in ([(15, 28), (4, 10)], [(43, 48)]):
        copied = copied_from(tiny_reader, read, 1, allowed=allowed)
        assert (copied.start, copied.end) in allowed
    inside = copied_from(tiny_reader, read, 1, span=(30, 48))
    assert 30 <= inside.start < inside.end <= 48


def test_only_where_it_may_begin(tiny_reader, read):
    boat = TEXT.index("boat")
    assert copied_from(tiny_reader, read, 1, beginnings={boat}).start == boat
    assert copied_from(tiny_reader, read, 1, beginnings=set()) is None


def test_nothing_to_copy(tiny_reader):
    read = read_passages(tiny_reader.model, tiny_reader.tokenizer, "?!… —", [(0, 5)], QUESTION)
    assert copy_answer(tiny_reader.model, tiny_reader.tokenizer, "?!… —", read, 0) is None


def copied_from(reader, read, row, **options):
    return copy_answer(reader.model, reader.tokenizer, TEXT, read, row, **options)
