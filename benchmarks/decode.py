"""Tokens per second of decoding, beside transformers' `generate` on the same weights.

    python benchmarks/decode.py --json

Both start from the same 2,048 tokens (our whole window) and generate greedily. The two alternate, so that a busy
machine slows both alike; what counts is the median of the runs' ratios. Prefill is not counted on either side:
transformers is timed at two lengths and the difference taken.

First both must generate the same tokens: in float32, within the window, with the prime MLPs at zero, which makes our
model the one that transformers has.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import torch
from shared import facts
from transformers import LlamaConfig, LlamaForCausalLM

from ttt_docs import TTTReader
from ttt_docs.generation.decoding import Decoding
from ttt_docs.memory.memory import Memory


def transformers_model(reader: TTTReader) -> LlamaForCausalLM:
    """The same weights in transformers: the reader's decoder without its prime MLPs."""
    c = reader.model.config
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.dim,
        intermediate_size=c.mlp_dim,
        num_hidden_layers=c.blocks,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        max_position_embeddings=c.max_positions,
        tie_word_embeddings=c.tied_head,
        attention_bias=c.attention_bias,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    rows = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
    state = {
        "model.embed_tokens.weight": reader.model.embed.weight,
        "model.norm.weight": reader.model.final_norm.weight,
    }
    state["lm_head.weight"] = reader.model.head_weight
    for i in range(c.blocks):
        block, to = reader.model.block(i), f"model.layers.{i}."
        for name, part in zip("qkv", block.attention.wqkv.weight.split(rows), strict=True):
            state[f"{to}self_attn.{name}_proj.weight"] = part.contiguous()
        state[f"{to}self_attn.o_proj.weight"] = block.attention.wo.weight
        gate, up = block.mlp.w13.weight.chunk(2)
        state[f"{to}mlp.gate_proj.weight"], state[f"{to}mlp.up_proj.weight"] = gate.contiguous(), up.contiguous()
        state[f"{to}mlp.down_proj.weight"] = block.mlp.w2.weight
        state[f"{to}input_layernorm.weight"] = block.attention_norm.weight
        state[f"{to}post_attention_layernorm.weight"] = block.mlp_norm.weight
    model.load_state_dict(state, assign=True, strict=False)
    model.tie_weights()
    rotary = type(model.model.rotary_emb)(config)  # its buffer is not in the weights: the meta device has none
    model.model.rotary_emb = rotary
    return model.eval().requires_grad_(False)  # the tensors are shared, and loading made them ask for gradient


def ours(reader: TTTReader, tokens: list[int], new: int) -> tuple[float, list[int]]:
    """Tokens per second after the prompt, and the tokens."""
    decoding = Decoding(reader.model, _nothing(reader), learn=False)
    logits = decoding.feed(tokens)
    out: list[int] = []
    began = time.perf_counter()
    for _ in range(new):
        out.append(int(logits.argmax()))
        logits = decoding.step(out[-1])
    return new / (time.perf_counter() - began), out


def _nothing(reader: TTTReader) -> Memory:
    empty = torch.zeros(0)
    return Memory(reader.name, reader.fingerprint, reader.reading, {}, {}, 0, empty.int(), empty)


@torch.no_grad()
def theirs(model: LlamaForCausalLM, tokens: list[int], new: int) -> tuple[float, list[int]]:
    ids = torch.tensor([tokens])

    def seconds(count: int) -> tuple[float, list[int]]:
        began = time.perf_counter()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - began, out[0, len(tokens) :].tolist()

    short, _ = seconds(1)
    whole, out = seconds(new + 1)
    return new / (whole - short), out[:new]


def check_tokens(options: argparse.Namespace) -> None:
    """Raises SystemExit unless both generate the same tokens from the same weights."""
    reader = TTTReader.from_pretrained(options.model, dtype="float32", window=options.context)
    for i in reader.model.config.suffix:
        reader.model.block(i).prime_mlp.w2.data.zero_()
    tokens = _prompt(reader, options.context - options.new)
    _, own = ours(reader, tokens, options.new)
    _, expected = theirs(transformers_model(reader), tokens, options.new)
    if own != expected:
        first = next(i for i, (a, b) in enumerate(zip(own, expected, strict=True)) if a != b)
        raise SystemExit(f"token {first} of {options.new} is not the one that transformers generates")


def _prompt(reader: TTTReader, count: int) -> list[int]:
    torch.manual_seed(0)
    tokens = torch.randint(100, reader.model.config.vocab_size, (count,)).tolist()
    tokens[:4] = reader.tokenizer.encode("Once upon a time, in a land far away")[:4]
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--context", type=int, default=2048, help="tokens before the first generated one")
    parser.add_argument("--new", type=int, default=128, help="tokens generated in each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.new >= options.context:
        parser.error(f"--new must be less than --context ({options.context})")
    check_tokens(options)
    reader = TTTReader.from_pretrained(options.model, dtype=options.dtype, window=options.context)
    model = transformers_model(reader)
    tokens = _prompt(reader, options.context)
    ours(reader, tokens, 8), theirs(model, tokens, 8)  # warm up
    pairs = [(ours(reader, tokens, options.new), theirs(model, tokens, options.new)) for _ in range(options.runs)]
    options.window = options.context
    result = facts(options, "random tokens, nothing read before them") | {
        "context": options.context,
        "new_tokens": options.new,
        "runs": options.runs,
        "ours_tokens_per_second": round(statistics.median(a[0] for a, _ in pairs), 1),
        "transformers_tokens_per_second": round(statistics.median(b[0] for _, b in pairs), 1),
        "ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 3),
        "same_tokens": f"{options.new}/{options.new}",  # or `check_tokens` would have stopped here
    }
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
