"""Writes ttt_docs/lookup/word_vectors.npz: what common words are like, taken from a language model's input embedding.

    python benchmarks/router/make_vectors.py --model smollm2-135m

One small vector for each of the tokenizer's commonest whole words (it learned them in order of frequency): the model's
embedding, centred, turned to its main directions, of length 1, in 8 bits. So the router knows something of words that
no question of the training half has. The model itself is not needed afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ttt_docs import TTTReader

OUT = Path(__file__).resolve().parents[2] / "ttt_docs" / "lookup" / "word_vectors.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--words", type=int, default=12_000)
    parser.add_argument("--dim", type=int, default=32)
    options = parser.parse_args()
    reader = TTTReader.from_pretrained(options.model, dtype="float32")
    rows = {}
    for token in range(reader.tokenizer.vocab_size):
        written = reader.tokenizer.decode([token])
        word = written.strip()
        if written == f" {word}" and len(word) > 2 and word.isascii() and word.isalpha() and word.islower():
            rows[word] = token
        if len(rows) == options.words:
            break
    vectors = reader.model.embed.weight.detach().float().numpy()[list(rows.values())]
    vectors = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(vectors, full_matrices=False)
    vectors = vectors @ directions[: options.dim].T
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    packed = np.round(vectors * 127).astype(np.int8)
    np.savez_compressed(OUT, words=np.array(" ".join(rows)), vectors=packed)
    print(f"{len(rows)} words, {OUT.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
