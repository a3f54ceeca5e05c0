"""GGUF files (llama.cpp): metadata to ModelConfig, dequantized blocks to our names, vocabulary to tokenizer.json.

Byte-level BPE vocabularies are built with the `tokenizers` package directly. The conversion of transformers leaves out
the pre-tokenizer that `tokenizer.ggml.pre` names, so it splits numbers in another way than the model was trained with.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.parameters import (
    Part,
    WeightSource,
    fields_of,
    halves_from_interleaved,
    parts_source,
    refuse,
)

#: general.architecture values that this decoder can run (a Mistral file calls itself llama).
ARCHITECTURES = ("llama", "qwen2", "qwen3")

#: Llama 3.x files store only the resulting frequency factors; these are the settings they were made from.
_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192.0}

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: tokenizer.ggml.pre -> what splits the text before the byte-level BPE (llama.cpp, src/llama-vocab.cpp).
#: "digits": each digit alone, then GPT-2's pattern; "gpt2": that pattern; anything else is a pattern of its own.
PRE_TOKENIZERS = {
    **dict.fromkeys(("smollm", "starcoder", "refact"), "digits"),
    **dict.fromkeys(("gpt-2", "default"), "gpt2"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}


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
    factors = tensors.pop("rope_freqs.weight", None)
    try:
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        config = _config(metadata, tensors, name or path.stem, None if factors is None else factors.data)
    except KeyError as error:
        raise CheckpointError(f"{path}: metadata {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be used: {error}") from error
    # GGUF lists dimensions fastest first
    shapes = {key: tuple(int(size) for size in tensor.shape)[::-1] for key, tensor in tensors.items()}
    bfloat16 = GGMLQuantizationType.BF16
    dtypes = {key: torch.bfloat16 if t.tensor_type == bfloat16 else torch.float32 for key, t in tensors.items()}
    permuted = metadata["general.architecture"] == "llama"

    def read(part: Part) -> torch.Tensor:
        tensor = tensors[part.theirs]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:  # gguf: a quantization it does not know, broken data
            kind = tensor.tensor_type.name
            raise CheckpointError(f"{path}: tensor {tensor.name} ({kind}) cannot be dequantized: {error}") from error
        rows = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(part.shape)
        return halves_from_interleaved(rows, part.heads) if permuted and part.heads else rows

    def write_tokenizer(target: Path) -> None:
        try:
            _write_tokenizer(metadata, path, target)
        except KeyError as error:
            raise CheckpointError(f"{path}: metadata {error} is missing") from None

    return parts_source(
        config,
        "gguf",
        shapes,
        dtypes,
        read,
        path,
        files=(path,),
        write_tokenizer=write_tokenizer if "tokenizer.ggml.model" in metadata else None,
        licence=metadata.get("general.license"),
    )


def _config(metadata: dict[str, Any], tensors: dict[str, Any], name: str, factors: Any) -> ModelConfig:
    """ModelConfig from GGUF metadata; `factors` is the data of rope_freqs.weight, which Llama 3.x files carry.

    Raises:
        CheckpointError: an architecture or a feature that this decoder does not have, named.
    """
    arch = metadata["general.architecture"]
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{name}: GGUF architecture {arch!r} is not supported; supported: {known}")
    own = {key.removeprefix(f"{arch}."): value for key, value in metadata.items()}
    dim, heads = own["embedding_length"], own["attention.head_count"]
    kv_heads = own.get("attention.head_count_kv", heads)
    head_dim = own.get("attention.key_length", 0 if isinstance(heads, list) else dim // heads)
    rotated = own.get("rope.dimension_count", head_dim)
    scaling = own.get("rope.scaling.type", "none")
    unsupported = {
        "a mixture of experts": "blk.0.ffn_gate_inp.weight" in tensors,
        "a number of heads that differs between blocks": isinstance(kv_heads, list) or isinstance(heads, list),
        f"RoPE on {rotated} of {head_dim} head dimensions": rotated != head_dim,
        f"RoPE scaling {scaling!r} in GGUF files": scaling != "none",
    }
    refuse(name, unsupported)
    theta = float(own.get("rope.freq_base", 10_000.0))
    eos = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    return ModelConfig(
        name=name,
        vocab_size=int(tensors["token_embd.weight"].shape[1]) if "token_embd.weight" in tensors else 1,
        kv_heads=kv_heads,
        head_dim=head_dim,
        qk_norm=arch == "qwen3",
        norm_eps=_short(own["attention.layer_norm_rms_epsilon"]),
        rope_theta=theta,
        rope_scaling=None if factors is None else _llama3_scaling(np.asarray(factors), theta, head_dim, name),
        tied_head="output.weight" not in tensors,
        attention_bias=arch == "qwen2",
        window=own.get("attention.sliding_window") or None,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
        **fields_of("gguf", own),
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
    # how often each pair of dimensions rotates within the original length
    rotations = length * theta ** (-2 * np.arange(head_dim // 2) / head_dim) / (2 * math.pi)
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(f"{name}: its RoPE frequency factors are not Llama 3's; use the safetensors version")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3_SCALING}


def _write_tokenizer(metadata: dict[str, Any], path: Path, target: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a GGUF file, into the folder `target`.

    Raises:
        CheckpointError: a kind of vocabulary or pre-tokenizer that is not known (a guess would be silently wrong).
    """
    kind = metadata["tokenizer.ggml.model"]
    if kind == "gpt2":
        backend = _byte_level_bpe(metadata, path)
    elif kind == "llama":  # SentencePiece: transformers rebuilds merges from the scores
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        backend = tokenizer.backend_tokenizer
    else:
        raise CheckpointError(f"{path}: GGUF vocabulary {kind!r} is not supported; use the safetensors version")
    backend.save(str(target / "tokenizer.json"))
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}
    settings: dict[str, Any] = {key: tokens[index] for key, index in ids.items() if index is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["clean_up_tokenization_spaces"] = False
    settings["add_bos_token"] = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (target / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _byte_level_bpe(metadata: dict[str, Any], path: Path) -> Any:
    from gguf import TokenType
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise CheckpointError(f"{path}: pre-tokenizer {pre!r} is not known; use the safetensors version of this model")
    rule = PRE_TOKENIZERS[pre]
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule == _LLAMA3))
    split: list[Any] = []
    if rule == "digits":
        split = [pre_tokenizers.Digits(individual_digits=True)]
    elif rule != "gpt2":
        split = [pre_tokenizers.Split(Regex(rule), "isolated")]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in ("digits", "gpt2"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level]) if split else byte_level
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", False) and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    types = metadata.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    added = [
        AddedToken(token, special=kind == TokenType.CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer
