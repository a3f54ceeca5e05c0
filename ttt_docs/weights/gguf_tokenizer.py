"""The vocabulary of a GGUF file as tokenizer.json and tokenizer_config.json.

Byte-level BPE vocabularies are built with the `tokenizers` package directly: transformers' own conversion leaves out
the pre-tokenizer that `tokenizer.ggml.pre` names, and so splits numbers otherwise than the model was trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttt_docs.errors import CheckpointError

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
