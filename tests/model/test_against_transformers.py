"""The same numbers as transformers: what a converted and retrofitted model computes before its first update."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import whole_state

from ttt_docs import Memory, TTTReader
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.huggingface import open_huggingface
from ttt_docs.weights.loading import build_decoder, retrofit

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "examples" / "portrait.txt"
SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 24},
}


def logits_of(model: Decoder, tokens: torch.Tensor, window: int, sinks: int) -> torch.Tensor:
    state = ReadingState(model, ReadingConfig(chunk=1, window=window, sinks=sinks))
    half = tokens.shape[1] // 2  # in two runs: the second one finds the first one's keys in the cache
    x = torch.cat([state.run(tokens[:, :half]), state.run(tokens[:, half:])], dim=1)
    return model.logits(x, state.kernels)


@pytest.mark.parametrize("suffix_blocks", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, suffix_blocks: int, tmp_path: Path) -> None:
    """Inside the window where attention was full, and beyond it where the model has one (Mistral)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family])).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # far from linear, and norms that are not 1
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if parameter.dim() == 1 else 5 * parameter)
    theirs.save_pretrained(tmp_path)
    source = open_huggingface(tmp_path)
    config, state = source.config, whole_state(source)
    assert config.window == FAMILIES[family].get("sliding_window")
    if suffix_blocks:
        config, state = retrofit(config, state, suffix_blocks, sinks=0)
    ours = build_decoder(config, state, torch.device("cpu"), torch.float32)
    tokens = torch.randint(3, 131, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.std() > 0.1
    got = torch.cat([logits_of(ours, row[None], config.window or 64, 0) for row in tokens])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.real
def test_logits_of_the_default_model() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from decode import transformers_model
    finally:
        sys.path.pop(0)
    reader = TTTReader.from_pretrained("smollm2-135m", dtype="float32")
    tokens = torch.tensor([reader.tokenizer.encode(BOOK.read_text("utf-8")[:4000])[:512]])
    assert tokens.shape[1] == 512
    with torch.no_grad():
        expected = transformers_model(reader)(tokens).logits
        got = logits_of(reader.model, tokens, reader.reading.window, reader.reading.sinks)
    difference = float((got - expected).abs().max())
    print(f"largest difference of a logit: {difference:.2e}")
    assert difference < 1e-4
    losses = [torch.nn.functional.cross_entropy(x[0, :-1], tokens[0, 1:]) for x in (got, expected)]
    assert abs(losses[0] - losses[1]) < 1e-5


@pytest.mark.real
def test_reading_the_example_book_lowers_its_loss(tmp_path: Path) -> None:
    text = " ".join(BOOK.read_text("utf-8").split(" ")[:3000])
    learning = TTTReader.from_pretrained("smollm2-135m", chunk=256, window=512)
    plain = TTTReader.from_pretrained("smollm2-135m", chunk=256, window=512, learn=False)
    memory, without = learning.ingest(text=text), plain.ingest(text=text)
    half = len(memory.tokens) // 2
    assert memory.nll[half:].mean() < without.nll[half:].mean()
    assert memory.skipped == 0
    loaded = Memory.load(memory.save(tmp_path / "book.ttt"))
    continued = learning.continue_text(loaded, max_new_tokens=20, temperature=0)
    assert continued.strip() and continued == learning.continue_text(memory, max_new_tokens=20, temperature=0)
