"""GGUF files (llama.cpp): metadata to ModelConfig, dequantized blocks to our names, vocabulary to tokenizer.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.parameters import (
    GGUF,
    WeightSource,
    check_parts,
    halves_from_interleaved,
    source_parts,
    stored_dtype,
)

#: general.architecture values that this decoder can run (a Mistral file calls itself llama).
ARCHITECTURES = ("llama", "qwen2", "qwen3")

#: Llama 3.x files store only the resulting frequency factors; these are the settings they were made from.
_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0}


def open_gguf(path: Path, name: str | None = None) -> WeightSource:
    """A single .gguf file as a source of weights; quantized blocks are dequantized to float32, one tensor at a time.

    llama.cpp's converter permutes the q and k rows of llama models so that RoPE pairs are interleaved; this is undone.

    Raises:
        CheckpointError: not a GGUF file, an unsupported model, tensors that do not fit its metadata.
    """
    from gguf import GGMLQuantizationType, GGUFReader, dequantize

    try:
        reader: Any = GGUFReader(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is not an intact GGUF file: {error}") from error
    tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
    metadata = _Metadata(reader, path)
    factors = tensors.pop("rope_freqs.weight", None)
    try:
        config = config_from_gguf(metadata, tensors, name or path.stem, None if factors is None else factors.data)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be used: {error}") from error
    # GGUF lists dimensions fastest first
    shapes = {key: tuple(int(size) for size in tensor.shape)[::-1] for key, tensor in tensors.items()}
    parts = source_parts(config, GGUF, "blk.")
    check_parts(config, parts, shapes, str(path))
    permuted = metadata["general.architecture"] == "llama"

    def dtype(key: str) -> torch.dtype:
        return torch.bfloat16 if tensors[key].tensor_type == GGMLQuantizationType.BF16 else torch.float32

    stored = {key: stored_dtype(dtype(part) for part in names) for key, names in parts.items()}

    def read(key: str, target: torch.dtype) -> torch.Tensor:
        try:
            values = dequantize(tensors[key].data, tensors[key].tensor_type)
        except (NotImplementedError, ValueError) as error:  # gguf: a quantization it does not know, broken data
            kind = tensors[key].tensor_type.name
            raise CheckpointError(f"{path}: tensor {key} ({kind}) cannot be dequantized: {error}") from error
        rows = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shapes[key]).to(target)
        if permuted and ".attn_q." in key:
            return halves_from_interleaved(rows, config.heads)
        if permuted and ".attn_k." in key:
            return halves_from_interleaved(rows, config.kv_heads)
        return rows

    def tensor(key: str) -> torch.Tensor:
        loaded = [read(part, stored[key]) for part in parts[key]]
        return torch.cat(loaded) if len(loaded) > 1 else loaded[0]

    return WeightSource(
        config,
        stored,
        tensor,
        kind="gguf",
        files=(path,),
        write_tokenizer=_tokenizer_writer(metadata, path),
        licence=metadata.get("general.license"),
    )


class _Metadata:
    """The key/value part of a GGUF file, decoded one key at a time (the vocabulary is large)."""

    def __init__(self, reader: Any, path: Path) -> None:
        self._fields, self._path = reader.fields, path

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise CheckpointError(f"{self._path}: metadata {key!r} is missing")
        return self._fields[key].contents()


def config_from_gguf(metadata: _Metadata, tensors: dict[str, Any], name: str, factors: Any = None) -> ModelConfig:
    """ModelConfig from GGUF metadata; `factors` is the data of rope_freqs.weight, which Llama 3.x files carry.

    Raises:
        CheckpointError: an architecture or a feature that this decoder does not have, named.
    """
    arch = metadata["general.architecture"]
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{name}: GGUF architecture {arch!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if "blk.0.ffn_gate_inp.weight" in tensors:
        raise CheckpointError(f"{name}: mixture-of-experts models are not supported")
    dim, heads = metadata[f"{arch}.embedding_length"], metadata[f"{arch}.attention.head_count"]
    head_dim = metadata.get(f"{arch}.attention.key_length", dim // heads)
    rotated = metadata.get(f"{arch}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(f"{name}: RoPE on {rotated} of {head_dim} head dimensions is not supported")
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise CheckpointError(f"{name}: RoPE scaling {scaling!r} is not supported in GGUF files")
    theta = float(metadata.get(f"{arch}.rope.freq_base", 10_000.0))
    eos = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    kv_heads = metadata.get(f"{arch}.attention.head_count_kv", heads)
    if isinstance(kv_heads, list) or isinstance(heads, list):
        raise CheckpointError(f"{name}: a number of heads that differs between blocks is not supported")
    return ModelConfig(
        name=name,
        vocab_size=int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 1,
        blocks=metadata[f"{arch}.block_count"],
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=metadata[f"{arch}.feed_forward_length"],
        qk_norm=arch == "qwen3",
        norm_eps=_short(metadata[f"{arch}.attention.layer_norm_rms_epsilon"]),
        rope_theta=theta,
        rope_scaling=None if factors is None else _llama3_scaling(np.asarray(factors), theta, head_dim, name),
        tied_head="output.weight" not in tensors,
        attention_bias=arch == "qwen2",
        max_positions=metadata[f"{arch}.context_length"],
        window=metadata.get(f"{arch}.attention.sliding_window") or None,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
    )


def _short(value: float) -> float:
    """A float32 as the decimal number it was written from: 9.999999747378752e-06 is 1e-5."""
    return float(f"{value:.7g}")


def _llama3_scaling(factors: np.ndarray, theta: float, head_dim: int, name: str) -> dict[str, float | str]:
    """Llama 3 RoPE scaling whose frequency factors are `factors`.

    Raises:
        CheckpointError: the factors are not those of any Llama 3.x model.
    """
    low, high, length = _LLAMA3_SCALING.values()
    factor = _short(float(factors.max()))
    expected = []
    for index in range(head_dim // 2):
        turns = length * theta ** (-2 * index / head_dim) / (2 * math.pi)  # full turns within the original length
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        expected.append(1 / ((1 - smooth) / factor + smooth))
    if factors.shape != (head_dim // 2,) or not np.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(f"{name}: its RoPE frequency factors are not Llama 3's; use the safetensors version")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3_SCALING}


def _tokenizer_writer(metadata: _Metadata, path: Path) -> Callable[[Path], None] | None:
    if metadata.get("tokenizer.ggml.model") is None:
        return None
    return lambda target: write_gguf_tokenizer(metadata.get, path, target)


Get = Callable[..., Any]

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: tokenizer.ggml.pre -> what splits the text before the byte-level BPE (llama.cpp, src/llama-vocab.cpp).
#: "digits": each digit alone, then GPT-2's pattern; "gpt2": that pattern; anything else is a pattern of its own.
PRE_TOKENIZERS = {
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "gpt-2": "gpt2",
    "default": "gpt2",
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # gguf.TokenType


def write_gguf_tokenizer(get: Get, path: Path, target: Path) -> None:
    """Write the tokenizer of a GGUF file into the folder `target`; `get(key)` reads the file's metadata.

    Raises:
        CheckpointError: a kind of vocabulary or pre-tokenizer that is not known (a guess would be silently wrong).
    """
    kind = get("tokenizer.ggml.model")
    if kind == "gpt2":
        _write_byte_level_bpe(get, path, target)
    elif kind == "llama":
        _write_with_transformers(path, target)
    else:
        raise CheckpointError(f"{path}: GGUF vocabulary {kind!r} is not supported; use the safetensors version")
    tokens = get("tokenizer.ggml.tokens")
    ids = {key: get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "unknown", "padding")}
    settings: dict[str, Any] = {
        "bos_token": ids["bos"],
        "eos_token": ids["eos"],
        "unk_token": ids["unknown"],
        "pad_token": ids["padding"],
    }
    settings = {key: tokens[index] for key, index in settings.items() if index is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["clean_up_tokenization_spaces"] = False
    settings["add_bos_token"] = bool(get("tokenizer.ggml.add_bos_token", kind == "llama"))
    if get("tokenizer.chat_template"):
        settings["chat_template"] = get("tokenizer.chat_template")
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (target / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _write_byte_level_bpe(get: Get, path: Path, target: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pre = get("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise CheckpointError(f"{path}: pre-tokenizer {pre!r} is not known; use the safetensors version of this model")
    tokens = get("tokenizer.ggml.tokens")
    types = get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in get("tokenizer.ggml.merges", [])]
    rule = PRE_TOKENIZERS[pre]
    own_pattern = rule not in ("digits", "gpt2")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule == _LLAMA3))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own_pattern)
    if own_pattern:
        first: Any = pre_tokenizers.Split(Regex(rule), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    elif rule == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    bos = get("tokenizer.ggml.bos_token_id")
    if get("tokenizer.ggml.add_bos_token", False) and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    tokenizer.save(str(target / "tokenizer.json"))


def _write_with_transformers(path: Path, target: Path) -> None:
    """SentencePiece vocabularies: transformers rebuilds merges from their scores."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
