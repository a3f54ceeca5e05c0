"""Documents and a recipe that a test can train in a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ttt_docs.training.recipe import Recipe, load_recipe

WORDS = ["the", "ship", "lay", "still", "and", "captain", "counted", "waves", "nobody", "spoke", "of", "land"]


def write_books(path: Path, lengths: tuple[int, ...] = (700, 90, 400, 1000, 20, 650), seed: int = 0) -> Path:
    """JSON lines, one document of about `length` characters each."""
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for length in lengths:
            text = ""
            while len(text) < length:
                text += str(random.choice(WORDS)) + " "
            file.write(json.dumps({"text": text[:length]}) + "\n")
    return path


def tiny_recipe(folder: Path, *changes: str) -> Recipe:
    """A meta-trained model of two blocks on documents of bytes, 6 steps of 4 sequences of 32 tokens."""
    books = folder / "books.jsonl"
    if not books.exists():
        write_books(books)
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
name: tiny
sequence: 32
batch: 4
steps: 6
output: {folder / "run"}
model:
  config: custom
  changes: {{vocab_size: 259, blocks: 2, dim: 16, heads: 2, kv_heads: 2, head_dim: 8, mlp_dim: 24,
             suffix_blocks: 1, post_norm: true, qk_norm: true}}
reading: {{chunk: 8, window: 16, guard: null}}
data: {{train: [{books}], tokenizer: bytes, folder: {folder / "data"}}}
optimizer: {{lr: 3e-3, inner_warmup: 0.3}}
checkpoint: {{every: 2, keep: 2}}
compute: {{device: cpu, dtype: float32, micro_batch: 2}}
"""
    )
    return load_recipe(path, changes)
