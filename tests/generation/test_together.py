"""Sequences written or scored in a batch come out as each would alone."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_decoder

from ttt_docs.errors import UsageError
from ttt_docs.generation import together
from ttt_docs.generation.sampling import sampling_of
from ttt_docs.generation.together import groups, score_together, write_together
from ttt_docs.model.config import ReadingConfig
from ttt_docs.ttt.state import ReadingState

CHANCE = torch.Generator().manual_seed(3)
PROMPTS = [torch.randint(0, 300, (n,), generator=CHANCE).tolist() for n in (12, 5, 20, 9, 5)]


@pytest.fixture(params=[0, 50])
def state(request) -> ReadingState:
    """A new one, and one whose window has left the beginning."""
    state = ReadingState(tiny_decoder(), ReadingConfig(chunk=16, window=64, sinks=4))
    if request.param:
        list(state.read(torch.randint(0, 300, (1, 97), generator=CHANCE)[:, : 2 * 16 + 1]))
        state.run(torch.randint(0, 300, (1, request.param), generator=CHANCE))
    return state


@pytest.mark.parametrize("more", [{"temperature": 0}, {"temperature": 1, "seed": 5, "no_repeat_ngram": 2}])
def test_written_as_alone(state, more, monkeypatch):
    monkeypatch.setattr(together, "SEQUENCES", 3)
    sampling = sampling_of(max_new_tokens=30, **more)
    ends = frozenset(range(0, 300, 30))  # some end early
    found = write_together(state, PROMPTS, sampling, ends)
    for index, (prompt, written) in enumerate(zip(PROMPTS, found, strict=True)):
        seed = sampling.model_copy(update={"seed": sampling.seed + index})
        (alone,) = write_together(state, [prompt], seed, ends)
        assert written.tokens == alone.tokens and written.ended == alone.ended
        assert written.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_scored_as_written(state):
    sampling = sampling_of(max_new_tokens=20, temperature=0, repetition_penalty=1)
    found = write_together(state, PROMPTS, sampling, frozenset())
    losses = score_together(state, PROMPTS, [written.tokens for written in found])
    for written, nll in zip(found, losses, strict=True):
        assert (-nll).tolist() == pytest.approx(written.logprobs, abs=1e-4)


def test_the_state_stays_as_it_was(state):
    before = [cache.export() for cache in state.caches] if state.position else []
    write_together(state, PROMPTS, sampling_of(max_new_tokens=5), frozenset())
    for cache, (k, v) in zip(state.caches, before, strict=bool(before)):
        assert torch.equal(cache.export()[0], k) and torch.equal(cache.export()[1], v)


def test_groups_hold_all_within_the_limits(monkeypatch):
    monkeypatch.setattr(together, "TOKENS", 100)
    lengths = [40, 10, 90, 33, 20, 60, 120]
    made = list(groups(lengths))
    assert sorted(i for group in made for i in group) == list(range(7))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 100 for g in made)


def test_bad_prompts(state):
    with pytest.raises(UsageError, match="empty"):
        write_together(state, [[1], []], sampling_of(max_new_tokens=5), frozenset())
    with pytest.raises(UsageError, match="fit the window of 64"):
        write_together(state, [[1] * 50], sampling_of(max_new_tokens=20), frozenset())


def test_silence_is_a_probability_and_can_be_forbidden(state):
    sampling, ends = sampling_of(max_new_tokens=3, temperature=0), frozenset(range(150))
    free, forced = (write_together(state, PROMPTS, sampling, ends, never) for never in (False, True))
    assert all(written.tokens and written.tokens[0] not in ends for written in forced)
    for one, other in zip(free, forced, strict=True):
        assert one.silent == pytest.approx(other.silent) and 0 < one.silent < 1
        assert one.tokens == other.tokens or (not one.tokens and one.ended)
