from __future__ import annotations

import pytest
import torch
from tiny_checkpoint import whole_state

from ttt_docs.errors import UsageError
from ttt_docs.weights.huggingface import open_huggingface
from ttt_docs.weights.loading import retrofit
from ttt_docs.weights.parameters import parameter_shapes


def test_prime_mlps_are_copies_with_a_zero_output(llama):
    source = open_huggingface(llama[1])
    base = {name: tensor.to(torch.bfloat16) for name, tensor in whole_state(source).items()}
    before = {name: tensor.clone() for name, tensor in base.items()}
    config, state = retrofit(source.config, base, suffix_blocks=1)
    assert (config.suffix_blocks, config.sinks, config.prime_norm, config.post_norm) == (1, 4, False, False)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == parameter_shapes(config)
    w13 = base["blocks.1.mlp.w13.weight"].float()
    assert torch.equal(torch.cat([state["blocks.1.prime_mlp.w1"], state["blocks.1.prime_mlp.w3"]]), w13)
    assert not state["blocks.1.prime_mlp.w2"].any()
    for key in ("w1", "w2", "w3"):
        assert state[f"blocks.1.prime_mlp.{key}"].dtype == torch.float32
        state[f"blocks.1.prime_mlp.{key}"].add_(1)  # fast weights change, the model they came from must not
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_impossible_retrofits_are_refused(llama):
    source = open_huggingface(llama[1])
    config, state = source.config, whole_state(source)
    for count in (0, 3):
        with pytest.raises(UsageError, match="between 1 and 2"):
            retrofit(config, state, suffix_blocks=count)
    with pytest.raises(UsageError, match="negative"):
        retrofit(config, state, 1, sinks=-1)
    with pytest.raises(UsageError, match="TTT model already"):
        retrofit(*retrofit(config, state, 1), 1)
