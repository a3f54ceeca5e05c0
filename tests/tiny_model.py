"""A tiny random model and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

torch.set_num_threads(1)

TINY = ModelConfig(
    name="tiny",
    vocab_size=300,
    blocks=4,
    dim=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    suffix_blocks=2,
    eos_token_ids=(2,),
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(folder: Path) -> Tokenizer:
    """One token per byte of UTF-8, three special tokens before them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"unk_token": special[0], "bos_token": special[1], "eos_token": special[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Tokenizer(folder)


def tiny_decoder(config: ModelConfig = TINY, seed: int = 0) -> Decoder:
    """A frozen float32 decoder whose weights are large enough for its choices to depend on what it read."""
    model = Decoder(config).initialize(torch.Generator().manual_seed(seed)).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(8)
        else:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model
