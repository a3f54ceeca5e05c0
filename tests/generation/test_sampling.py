from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_docs.errors import UsageError
from ttt_docs.generation.sampling import Runs, choose, sampling_of

VOCAB = 1000
seeds = st.integers(0, 2**32)


def logits_of(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def drawn(logits, history=(), **values) -> int:
    sampling = sampling_of(**values)
    return choose(logits, list(history), sampling, sampling.generator())


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_greedy_is_the_maximum(seed):
    logits = logits_of(seed)
    assert drawn(logits, temperature=0, repetition_penalty=1) == int(logits.argmax())


@given(seed=seeds, top_k=st.integers(1, 20), top_p=st.floats(0.05, 1.0), temperature=st.floats(0.1, 3.0))
@settings(max_examples=50, deadline=None)
def test_drawn_tokens_are_within_top_k_and_top_p(seed, top_k, top_p, temperature):
    logits = logits_of(seed)
    token = drawn(logits, seed=seed, top_k=top_k, top_p=top_p, temperature=temperature, repetition_penalty=1)
    order = logits.argsort(descending=True)[:top_k]
    assert token in order.tolist()
    probability = torch.softmax(logits[order] / temperature, 0)
    before = probability[: order.tolist().index(token)].sum()
    assert before < top_p + 1e-4


@given(seed=seeds, top_p=st.floats(0.5, 1.0))
@settings(max_examples=20, deadline=None)
def test_flat_distributions_reach_beyond_the_likeliest(seed, top_p):
    tokens = {
        choose(torch.zeros(VOCAB), [], sampling_of(top_p=top_p, temperature=1), torch.Generator().manual_seed(seed + i))
        for i in range(60)
    }
    assert len(tokens) > 40


def test_frequencies_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampling = sampling_of(temperature=1, top_p=1, repetition_penalty=1)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([choose(logits, [], sampling, generator) for _ in range(4000)]), minlength=4)
    torch.testing.assert_close(counts / 4000, torch.softmax(logits, 0), atol=0.03, rtol=0)


def test_repetition_penalty_moves_seen_tokens_down_whatever_their_sign():
    logits = torch.full((VOCAB,), -9.0)
    logits[:3] = torch.tensor([2.0, 1.9, -0.1])
    assert drawn(logits, history=[0], temperature=0, repetition_penalty=1.2) == 1
    logits[:2] = torch.tensor([-0.99, -1.0])
    logits[2] = -5
    assert drawn(logits, history=[0, 0], temperature=0, repetition_penalty=1.2) == 1
    assert logits[0] == -0.99, "the caller's logits stay"


@given(history=st.lists(st.integers(0, 3), max_size=30), n=st.integers(1, 4))
def test_completions_are_the_tokens_that_would_repeat_a_run(history, n):
    runs = {tuple(history[i : i + n]) for i in range(len(history) - n + 1)}
    for token in range(4):
        would = len(history) >= n and tuple([*history, token][-n:]) in runs
        assert (token in Runs(n, history).completions()) == would


def test_seed_decides():
    logits = logits_of(0, 1.0)
    draws = [drawn(logits, seed=seed) for seed in range(20)]
    assert draws == [drawn(logits, seed=seed) for seed in range(20)]
    assert len(set(draws)) > 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.5),
        ("seed", -1),
        ("max_new_tokens", 0),
        ("no_repeat_ngram", -1),
        ("stop", ("",)),
        ("stop", 3),
        ("temprature", 1),
    ],
)
def test_bad_values_name_the_parameter(name, value):
    with pytest.raises(UsageError, match=name):
        sampling_of(**{name: value})
