"""Reading passages with the base model: what a batch computes."""

from __future__ import annotations

import pytest
import torch

from ttt_docs.generation.together import base_state
from ttt_docs.lookup.passage_reading import asked_tokens, question_fits

PASSAGES = ["The keeper was Edward\nMarlow.", "He came from Leith, by boat, in 1911. Nobody else came.", "Marlow"]
QUESTION = "Who came?"


def test_a_batch_is_what_each_passage_gives_alone(tiny_reader):
    model, tokenizer = tiny_reader.model, tiny_reader.tokenizer
    fits = question_fits(model, tokenizer, PASSAGES, QUESTION)
    asked = asked_tokens(tokenizer, QUESTION)
    passages = [tokenizer.encode(passage.replace("\n", " ")) for passage in PASSAGES]
    longest = max(map(len, passages))
    for passage, fit in zip(passages, fits, strict=True):
        tokens = tokenizer.encode("\n") * (longest - len(passage)) + passage
        nll = base_state(model).score(torch.tensor([[*tokens, *asked]]))[0, len(tokens) - 1 :]
        assert fit == pytest.approx(-float(nll.sum()), rel=1e-4)


def test_the_base_model_has_no_fast_weights(tiny_reader):
    retrofit = tiny_reader.model.config.model_copy(update={"prime_norm": False})
    assert base_state(tiny_reader.model).fast is not None  # trained with them: it is none without
    model = type(tiny_reader.model)(retrofit).requires_grad_(False)
    assert base_state(model).fast is None
