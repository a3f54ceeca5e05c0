"""Reading with the compiled kernels: like the definitions, and to the same bits wherever it is interrupted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_native_attention import needs_native
from tiny_model import TINY, tiny_decoder
from torch import Tensor

from ttt_docs.kernels.backends import NATIVE, REFERENCE, Kernels
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ReadingState

pytestmark = needs_native

CHUNK = 64
READING = ReadingConfig(chunk=CHUNK, window=96, sinks=4, inner_rule="normalized", inner_lr=0.1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Decoder:
    """Sizes that every compiled kernel takes."""
    return tiny_decoder(
        TINY.model_copy(update={"dim": 64, "head_dim": 32, "mlp_dim": 96, "vocab_size": 320})
    ).bfloat16()


def tokens(chunks: int) -> Tensor:
    return torch.randint(3, 320, (1, chunks * CHUNK + 1), generator=torch.Generator().manual_seed(1))


def read(state: ReadingState, ids: Tensor, chunks: int) -> list[Tensor]:
    return [result.nll for result in state.read_whole(ids[:, : state.position + chunks * CHUNK + 1])]


def new(model: Decoder, kernels: Kernels = NATIVE) -> ReadingState:
    return ReadingState(model, READING, kernels=kernels)


def test_like_the_definitions(model: Decoder) -> None:
    ids = tokens(4)
    native, exact = (torch.cat(read(new(model, kernels), ids, 4), 1) for kernels in (NATIVE, REFERENCE))
    assert ((native - exact).norm() / exact.norm()) < 0.02  # bfloat16 all the way


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_going_on_gives_the_bits_of_reading_in_one_go(model: Decoder, cut: int) -> None:
    ids, whole, first, second = tokens(5), new(model), new(model), new(model)
    expected = read(whole, ids, 5)
    read(first, ids, cut)
    second.restore(first.position, first.fast, [cache.export() for cache in first.caches])
    assert all(torch.equal(a, b) for a, b in zip(expected[cut:], read(second, ids, 5 - cut), strict=True))
    assert whole.fast is not None and second.fast is not None and torch.equal(whole.fast, second.fast)


def test_weights_given_out_never_change(model: Decoder) -> None:
    ids, plain, state = tokens(10), new(model, NATIVE.replace(steps_into_memory=False)), new(model)
    given: list[tuple[Tensor, Tensor]] = []
    copies: list[ReadingState] = []
    for chunk in range(10):
        mine, theirs = (read(s, ids, 1) for s in (state, plain))
        assert torch.equal(mine[0], theirs[0])
        if chunk in (3, 5) and state.fast is not None:
            given.append((state.fast, state.fast.clone()))
        if chunk in (6, 7):
            copies.append(state.copy())
    assert all(torch.equal(now, then) for now, then in given)
    for copy in copies:
        again = new(model)
        read(again, ids, copy.position // CHUNK)
        assert copy.fast is not None and again.fast is not None and torch.equal(copy.fast, again.fast)
        assert torch.equal(torch.cat(read(copy, ids, 2), 1), torch.cat(read(again, ids, 2), 1))
