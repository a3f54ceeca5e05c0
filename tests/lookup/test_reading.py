"""Reading passages with the base model: what a batch computes, and copying under a constraint."""

from __future__ import annotations

import pytest
import torch

from ttt_docs.lookup.reading import LONGEST, asking, base_state, copy_answer, read_passages

TEXT = "The keeper was Edward\nMarlow. He came from Leith, by boat, in 1911. Nobody else came."
PASSAGES = [(0, 30), (30, len(TEXT)), (4, 17)]
QUESTION = "Who came?"


@pytest.fixture(scope="module")
def read(tiny_reader):
    return read_passages(tiny_reader.model, tiny_reader.tokenizer, TEXT, PASSAGES, QUESTION)


def test_a_batch_is_what_each_passage_gives_alone(tiny_reader, read):
    model, tokenizer = tiny_reader.model, tiny_reader.tokenizer
    asked, opening = asking(tokenizer, QUESTION)
    for passage, (start, end) in zip(read, PASSAGES, strict=True):
        tokens = tokenizer.encode(TEXT[start:end].replace("\n", " "))
        assert (passage.start, passage.end) == (start, end)
        state = base_state(model)
        nll = state.score(torch.tensor([[*tokens, *asked]]))[0, len(tokens) - 1 :]
        assert passage.fit == pytest.approx(-float(nll.sum()), rel=1e-4)
        state.run(torch.tensor([[*tokens, *asked, *opening][:-1]]))
        assert passage.state.position == state.position and passage.last == opening[-1]
        torch.testing.assert_close(
            passage.state.run(torch.tensor([[opening[-1]]]), commit=False),
            state.run(torch.tensor([[opening[-1]]]), commit=False),
            rtol=1e-4,
            atol=1e-4,
        )


def test_the_base_model_has_no_fast_weights(tiny_reader, tiny_tokenizer):
    retrofit = tiny_reader.model.config.model_copy(update={"prime_norm": False})
    assert base_state(tiny_reader.model).fast  # trained with them: it is none without
    model = type(tiny_reader.model)(retrofit).requires_grad_(False)
    assert not base_state(model).fast


def test_answers_are_copied_from_word_to_word(tiny_reader, read):
    for passage in read:
        copied = copy_answer(tiny_reader.model, tiny_reader.tokenizer, TEXT, passage)
        assert passage.start <= copied.start < copied.end <= passage.end and copied.confidence < 0
        assert copied.end - copied.start <= LONGEST  # one token per byte here
        assert TEXT[copied.start].isalnum() and not TEXT[copied.start - 1 : copied.start].isalnum()


def test_only_what_is_allowed(tiny_reader, read):
    allowed = [(15, 28), (43, 48)]
    copied = copy_answer(tiny_reader.model, tiny_reader.tokenizer, TEXT, read[0], allowed)
    assert (copied.start, copied.end) in allowed


def test_nothing_to_copy(tiny_reader):
    (passage,) = read_passages(tiny_reader.model, tiny_reader.tokenizer, "?!… —", [(0, 5)], QUESTION)
    assert copy_answer(tiny_reader.model, tiny_reader.tokenizer, "?!… —", passage) is None
