"""A tiny random model as a checkpoint folder, and a text for it to read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.converted import write_checkpoint
from ttt_docs.weights.parameters import State, WeightSource, parameter_shapes, state_source

torch.set_num_threads(1)

TEXT = "\n".join(
    f"{day}. The ship lay still on day {day * 37 % 101}, and the captain, who had not slept, counted {day * 13} waves."
    for day in range(1, 91)
)


def write_tokenizer(folder: Path) -> None:
    """One token per byte, and the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    settings = {"bos_token": special[1], "eos_token": special[2], "chat_template": template + "<|im_start|>assistant\n"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def write_model(folder: Path, seed: int) -> Path:
    config = ModelConfig(
        name="tiny",
        vocab_size=320,
        blocks=2,
        dim=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_dim=24,
        rope_theta=10_000.0,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    noise = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(config)
    state = {name: 0.2 * torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    source = state_source(config, state, "test", write_tokenizer=write_tokenizer, licence="Apache-2.0")
    return write_checkpoint(folder, source)


def whole_state(source: WeightSource) -> State:
    """All parameters of a source, in memory."""
    shapes = parameter_shapes(source.config)
    state = {name: torch.full(shape, torch.nan, dtype=source.dtypes[name]) for name, shape in shapes.items()}
    for name, row, rows in source.pieces():
        assert rows.dtype == source.dtypes[name]
        state[name][row : row + len(rows)] = rows
    return state


def fingerprint(config: ModelConfig, state: State) -> str:
    """sha256 over the config (without its name) and every tensor's name, dtype, shape and bytes."""
    lines = [config.identity()]
    for name, tensor in sorted(state.items()):
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[tensor.dtype]
        digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        lines.append(f"{json.dumps([name, dtype, list(tensor.shape)])} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
