"""A skill is learned from prompts and replies, and a run that was cut off ends as one that was not."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_model import byte_tokenizer, tiny_decoder

from ttt_docs.kernels.backends import CPU
from ttt_docs.training.teaching import (
    Example,
    LowRankFactors,
    Plan,
    Teaching,
    batches,
    encoded,
    examples_of,
    reply_losses,
)

PLAN = Plan(rank=4, lr=0.02, steps=12, batch=256, save_every=4)
CHANCE = torch.Generator().manual_seed(2)


def example(prompt: int, reply: int) -> Example:
    ids = torch.randint(3, 300, (prompt + reply,), generator=CHANCE).tolist()
    return Example(ids[:prompt], [*ids[prompt:], 2])


EXAMPLES = [example(*sizes) for sizes in ((20, 3), (9, 5), (30, 1), (14, 8), (11, 2))]


def test_losses_are_those_of_each_example_alone():
    model = tiny_decoder()
    together = reply_losses(model, CPU, EXAMPLES)
    alone = torch.cat([reply_losses(model, CPU, [one]) for one in EXAMPLES])
    assert len(together) == sum(len(one.reply) for one in EXAMPLES)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_factors_in_the_kernels_are_the_changed_weights():
    model = tiny_decoder().requires_grad_(False)
    factors = LowRankFactors(model, 3, seed=0)
    assert torch.equal(reply_losses(model, factors.kernels(CPU), EXAMPLES), reply_losses(model, CPU, EXAMPLES))
    with torch.no_grad():
        for up in factors.up.values():
            up.normal_(std=0.1, generator=CHANCE)
    learning = reply_losses(model, factors.kernels(CPU), EXAMPLES)
    teaching = Teaching.__new__(Teaching)
    teaching.factors, teaching.plan, teaching.step = factors, PLAN, 0
    changed = teaching.skill("tiny", "0").applied_to(model)
    torch.testing.assert_close(reply_losses(changed, CPU, EXAMPLES), learning, atol=1e-4, rtol=1e-4)
    learning.mean().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in factors.parameters().values())


def test_batches_hold_all_within_the_limit():
    made = batches(EXAMPLES * 6, 80, seed=3)
    assert sorted(len(e.tokens) for b in made for e in b) == sorted(len(e.tokens) for e in EXAMPLES * 6)
    assert all(len(b) == 1 or max(len(e.tokens) for e in b) * len(b) <= 80 for b in made)
    assert made == batches(EXAMPLES * 6, 80, seed=3) != batches(EXAMPLES * 6, 80, seed=4)


def test_it_learns_and_a_run_that_was_cut_off_ends_the_same(tmp_path, monkeypatch):
    whole = Teaching(tiny_decoder(), tmp_path / "whole", EXAMPLES, EXAMPLES, PLAN)
    before = whole.dev_loss()
    whole.learn()
    assert whole.dev_loss() < 0.8 * before
    first = Teaching(tiny_decoder(), tmp_path / "cut", EXAMPLES, EXAMPLES, PLAN)
    save = first._save

    def cut() -> None:
        save()
        if first.step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(first, "_save", cut)
    with pytest.raises(KeyboardInterrupt):
        first.learn()
    second = Teaching(tiny_decoder(), tmp_path / "cut", EXAMPLES, EXAMPLES, PLAN)
    assert second.step == 8
    second.learn()
    for name, tensor in whole.factors.parameters().items():
        assert torch.equal(tensor, second.factors.parameters()[name]), name


def test_examples_are_read_from_json_lines(tmp_path):
    tokenizer = byte_tokenizer(tmp_path)
    rows = [{"user": "Who?", "assistant": "Ann"}, {"user": "x" * 400, "assistant": "y"}, {"user": "?", "assistant": ""}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, last = examples_of(path, tokenizer, 200)
    assert first == encoded(tokenizer, "Who?", "Ann") and len(first.reply) == 4
    assert last.reply == [tokenizer.eos_id]  # nothing to say: it ends at once
