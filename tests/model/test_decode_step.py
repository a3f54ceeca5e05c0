"""The path for single tokens computes what the path for chunks computes."""

from __future__ import annotations

import pytest
import torch
from tiny_model import TINY, tiny_decoder

from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decode_step import TokenSteps
from ttt_docs.ttt.state import ReadingState

FAMILIES = {
    "retrofit": {"prime_norm": False},
    "paper": {"post_norm": True, "qk_norm": True},
    "qk norm, own head": {"qk_norm": True, "tied_head": False},
    "bias": {"attention_bias": True},
    "no fast weights": {"suffix_blocks": 0},
    "one key head": {"kv_heads": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("start", [1, 5, 15, 30, 31, 33, 35, 50])
def test_single_tokens_give_the_logits_of_the_chunk_path(family, sinks, start, monkeypatch):
    monkeypatch.setattr("ttt_docs.model.decode_step.ROOM", 24)  # the buffer moves on in the middle
    model = tiny_decoder(TINY.model_copy(update=FAMILIES[family]))
    tokens = torch.randint(0, 300, (1, 100), generator=torch.Generator().manual_seed(start))
    state = ReadingState(model, ReadingConfig(chunk=16, window=32, sinks=sinks))
    state.run(tokens[:, :start])
    single = TokenSteps(model, state.caches, state.views, [state.position])
    expected = model.logits(state.run(tokens[:, start:]), state.kernels)[0]
    for i, token in enumerate(tokens[0, start:].tolist()):
        torch.testing.assert_close(single.step([token])[0], expected[i], atol=1e-4, rtol=1e-4)


def test_the_state_stays_as_it_was():
    model = tiny_decoder()
    state = ReadingState(model, ReadingConfig(chunk=16, window=32, sinks=4))
    state.run(torch.arange(40)[None])
    before = [cache.export() for cache in state.caches]
    single = TokenSteps(model, state.caches, state.views, [state.position])
    for token in range(20):
        single.step([token])[0]
    for cache, (k, v) in zip(state.caches, before, strict=True):
        now_k, now_v = cache.export()
        assert torch.equal(now_k, k) and torch.equal(now_v, v)
    assert state.position == 40


@pytest.mark.parametrize("family", ["retrofit", "paper", "no fast weights"])
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("start", [0, 20, 50])
def test_sequences_in_a_batch_give_the_logits_of_each_alone(family, sinks, start, monkeypatch):
    """Sequences of several lengths after one memory of `start` tokens; one of them ends before the others."""
    monkeypatch.setattr("ttt_docs.model.decode_step.ROOM", 24)
    model = tiny_decoder(TINY.model_copy(update=FAMILIES[family]))
    generator = torch.Generator().manual_seed(start)
    memory = torch.randint(0, 300, (1, start), generator=generator)
    lengths = [12, 5, 9]
    prompts = [torch.randint(0, 300, (1, n), generator=generator) for n in lengths]
    then = torch.randint(0, 300, (3, 40), generator=generator)
    reading = ReadingConfig(chunk=16, window=32, sinks=sinks)
    base = ReadingState(model, reading)
    if start:
        base.run(memory)
    alone = []
    for prompt, tokens in zip(prompts, then, strict=True):
        state = base.copy()
        state.run(prompt)
        alone.append(model.logits(state.run(tokens[None]), state.kernels)[0])
    together = base.select([0] * 3)
    padded = torch.cat([torch.nn.functional.pad(p, (0, max(lengths) - p.shape[1])) for p in prompts])
    together.run(padded)
    steps = TokenSteps(model, together.caches, base.views, [start + n for n in lengths])
    for i in range(25):
        torch.testing.assert_close(
            steps.step(then[:, i].tolist()), torch.stack([a[i] for a in alone]), atol=1e-4, rtol=1e-4
        )
    steps = steps.of([0, 2])
    for i in range(25, 40):
        expected = torch.stack([alone[0][i], alone[2][i]])
        torch.testing.assert_close(steps.step(then[[0, 2], i].tolist()), expected, atol=1e-4, rtol=1e-4)
