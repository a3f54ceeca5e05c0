from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_checkpoint import whole_state

from tests.weights.conftest import TEXT, build, write_gguf
from ttt_docs.errors import CheckpointError
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.weights.gguf_file import _llama3_scaling, open_gguf
from ttt_docs.weights.huggingface import open_huggingface

CHAT = [("system", "Be brief."), ("user", "Hi")]


def test_a_gguf_file_equals_the_model_it_was_made_from(llama, llama_gguf):
    expected, source = open_huggingface(llama[1]), open_gguf(llama_gguf)
    assert source.config == expected.config
    ours, theirs = whole_state(source), whole_state(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert source.licence == "mit"


def test_qwen3_rows_are_not_permuted(llama, tmp_path):
    model = build("qwen3", head_dim=16, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "hf")
    write_gguf(tmp_path / "q.gguf", model, llama[1], arch="qwen3", pre="qwen2")
    source, expected = open_gguf(tmp_path / "q.gguf"), open_huggingface(tmp_path / "hf")
    assert source.config.model_copy(update={"name": "hf"}) == expected.config
    ours = whole_state(source)
    for name, tensor in whole_state(expected).items():
        assert torch.equal(ours[name], tensor), name


def test_its_tokenizer_is_the_original_one(llama, llama_gguf, tmp_path):
    open_gguf(llama_gguf).write_tokenizer(tmp_path)
    ours, theirs = Tokenizer(tmp_path), Tokenizer(llama[1])
    for text in (TEXT, "in  1999, and 12,345\n\n\t日本", "<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode_chat(CHAT) == theirs.encode_chat(CHAT)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (1, 2, False)


def test_an_unknown_pre_tokenizer_is_refused(llama, tmp_path):
    write_gguf(tmp_path / "x.gguf", llama[0], llama[1], pre="klingon")
    with pytest.raises(CheckpointError, match="pre-tokenizer 'klingon'"):
        open_gguf(tmp_path / "x.gguf").write_tokenizer(tmp_path)


def test_what_is_no_usable_gguf_is_refused(llama, llama_gguf, tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(CheckpointError, match="does not exist"):
        open_gguf(path)
    path.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="not an intact GGUF"):
        open_gguf(path)
    path.write_bytes(llama_gguf.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="not an intact GGUF"):
        open_gguf(path)
    import gguf

    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'mamba' is not supported; supported: llama, qwen2, qwen3"):
        open_gguf(path)


def test_llama3_scaling_is_recovered_from_its_factors():
    theta, head_dim = 500_000.0, 64
    factors = []
    for i in range(head_dim // 2):  # as llama.cpp's converter computes them
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    values = np.array(factors, dtype=np.float32)
    assert _llama3_scaling(values, theta, head_dim, "x")["factor"] == 32.0
    values[10] *= 1.5
    with pytest.raises(CheckpointError, match="not Llama 3's"):
        _llama3_scaling(values, theta, head_dim, "x")


def test_metadata_that_is_missing_is_named(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_embedding_length(32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"metadata 'attention\.head_count' is missing"):
        open_gguf(tmp_path / "x.gguf")


def test_a_quantization_that_is_not_known_is_named(llama_gguf, monkeypatch):
    import gguf

    def refuse(data, kind):
        raise NotImplementedError(f"{kind.name} cannot be")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(CheckpointError, match=r"token_embd\.weight \(F32\) cannot be dequantized: F32 cannot be"):
        next(open_gguf(llama_gguf).pieces())
