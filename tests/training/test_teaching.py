"""A skill is learned from prompts and replies, and a run that was cut off ends as one that was not."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_model import byte_tokenizer, tiny_decoder

from ttt_docs.kernels.backends import CPU
from ttt_docs.model.decoder import Decoder
from ttt_docs.training.teaching import (
    Example,
    LowRankFactors,
    Plan,
    Teaching,
    Tree,
    _attention,
    _Changed,
    batches,
    encoded,
    examples_of,
    reply_losses,
    trees,
)

PLAN = Plan(rank=4, frozen=1, lr=0.02, steps=12, batch=256, save_every=4)
CHANCE = torch.Generator().manual_seed(2)


def example(prompt: int, reply: int) -> Example:
    ids = torch.randint(3, 300, (prompt + reply,), generator=CHANCE).tolist()
    return Example(ids[:prompt], [*ids[prompt:], 2])


EXAMPLES = [example(*sizes) for sizes in ((20, 3), (9, 5), (30, 1), (14, 8), (11, 2))]


def leaf(one: Example) -> Tree:
    return Tree([], [one])


def test_losses_are_those_of_each_example_alone():
    model = tiny_decoder()
    passage = EXAMPLES[0].prompt
    asked = [Example([*passage, 40 + i], [60 + i, 70, 2][i:]) for i in range(3)]
    other = [Example([*EXAMPLES[2].prompt, 9], [5, 2]), Example([*EXAMPLES[2].prompt, 8, 7], [2])]
    made = trees([*asked, *EXAMPLES[1:], *other], 200)
    assert sorted(len(tree.branches) for tree in made) == [1, 1, 1, 3, 3]
    together = reply_losses(model, CPU, made)
    whole = [Example(tree.shared + branch.prompt, branch.reply) for tree in made for branch in tree.branches]
    assert sorted(whole) == sorted([*asked, *EXAMPLES[1:], *other])
    alone = torch.cat([model_losses(model, one) for one in whole])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def model_losses(model: Decoder, one: Example) -> torch.Tensor:
    """Losses of the reply's tokens by a plain forward pass."""
    tokens = torch.tensor([one.tokens])
    positions, caches = model.positions(0, len(one.tokens) - 1, None), model.new_caches(None)
    x = model.run(model.hidden(tokens[:, :-1]), range(model.config.blocks), positions, caches)
    return model.token_nll(x, tokens[:, 1:])[0, len(one.prompt) - 1 :]


@pytest.mark.parametrize("rows", [3, 128])
def test_attention_some_rows_at_a_time(rows):
    q, k, v = (torch.randn(2, heads, 10, 8, generator=CHANCE) for heads in (6, 3, 3))
    visible = torch.ones(2, 1, 10, 10).tril().bool()
    visible[1, :, 7:, 2:5] = False
    bias = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
    torch.testing.assert_close(_attention(q, k, v, bias, rows), expected, atol=1e-5, rtol=1e-5)


def test_trees_share_half_a_prompt_at_least_and_stay_short():
    alike = [Example([1, 2, 3, 4, i], [9] * 4) for i in range(10)]
    made = trees([*alike, Example([1, 2, 5, 6, 7], [9])], 20)
    assert all(len(tree.tokens) <= 20 for tree in made) and sum(len(tree.branches) for tree in made) == 11
    assert all(2 * len(tree.shared) >= 4 for tree in made)


def test_factors_in_the_kernels_are_the_changed_weights():
    model = tiny_decoder().requires_grad_(False)
    factors = LowRankFactors(model, 3, seed=0)
    some = list(map(leaf, EXAMPLES))
    assert torch.equal(reply_losses(model, factors.kernels(CPU, model), some), reply_losses(model, CPU, some))
    with torch.no_grad():
        for up in factors.up.values():
            up.normal_(std=0.1, generator=CHANCE)
    learning = reply_losses(model, factors.kernels(CPU, model), some)
    teaching = Teaching.__new__(Teaching)
    teaching.model, teaching.factors, teaching.plan, teaching.step = model, factors, PLAN, 0
    changed = teaching.skill("tiny", "0").applied_to(model)
    torch.testing.assert_close(reply_losses(changed, CPU, some), learning, atol=1e-4, rtol=1e-4)
    learning.mean().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in factors.parameters().values())


def test_the_gradient_of_a_changed_product():
    shapes = ((2, 3, 5), (4, 5), (2, 5), (4, 2))
    x, weight, down, up = (torch.randn(s, generator=CHANCE, dtype=torch.float64).requires_grad_() for s in shapes)

    def product(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return _Changed.apply(x, (weight + up @ down).detach(), down, up)

    assert torch.autograd.gradcheck(product, (x, down, up))


def test_batches_hold_all_within_the_limit():
    some = list(map(leaf, EXAMPLES * 6))
    made = batches(some, 80, seed=3)
    assert sorted(len(e.tokens) for b in made for e in b) == sorted(len(e.tokens) for e in some)
    assert all(len(b) == 1 or max(len(e.tokens) for e in b) * len(b) <= 80 for b in made)
    assert made == batches(some, 80, seed=3) != batches(some, 80, seed=4)


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
