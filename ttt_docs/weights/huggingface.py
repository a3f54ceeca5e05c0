"""Hugging Face folders of Llama-family models: config.json to ModelConfig, safetensors to our names."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.converted import copy_tokenizer, open_safetensors
from ttt_docs.weights.parameters import TABLES, Part, Shapes, WeightSource, fields_of, parts_source, refuse

#: model_type -> its defaults.
FAMILIES: dict[str, dict[str, Any]] = TABLES["defaults"]

_BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$")  # recomputed, some old checkpoints store it
_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def config_from_huggingface(config: dict[str, Any], name: str) -> ModelConfig:
    """A `config.json` of a Llama-family model as a ModelConfig (full attention, no prime MLPs).

    Raises:
        CheckpointError: an architecture or a feature that this decoder does not have, named.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{name}: architecture {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    values = {**FAMILIES[model_type], **config}
    try:
        return _config(values, model_type, name)
    except KeyError as error:
        raise CheckpointError(f"{name}: config.json has no {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: config.json cannot be used: {error}") from error


def _config(values: dict[str, Any], model_type: str, name: str) -> ModelConfig:
    heads, dim = values["num_attention_heads"], values["hidden_size"]
    activation, bias = values.get("hidden_act", "silu"), values.get("attention_bias") and model_type != "qwen2"
    unsupported = {
        "mlp_bias": values.get("mlp_bias"),
        "attention_bias (it also adds one to the output projection)": bias,
        f"hidden_act {activation!r} (only 'silu')": activation != "silu",
        "quantization_config (convert the original weights, or a GGUF file)": values.get("quantization_config"),
        "partial_rotary_factor": values.get("partial_rotary_factor", 1.0) not in (None, 1.0),
    }
    refuse(name, unsupported)
    theta, scaling = _rope(values, name)
    return ModelConfig(
        name=name,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or dim // heads,
        qk_norm=model_type == "qwen3",
        norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_head=values.get("tie_word_embeddings", False),
        attention_bias=model_type == "qwen2",
        window=_window(values, model_type, name),
        bos_token_id=values.get("bos_token_id"),
        eos_token_ids=tuple(_as_list(values.get("eos_token_id"))),
        **fields_of("huggingface", values),
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _rope(values: dict[str, Any], name: str) -> tuple[float, dict[str, float | str] | None]:
    """Theta and Llama 3 scaling, from `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (before)."""
    parameters = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or parameters
    theta = float(parameters.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise CheckpointError(f"{name}: RoPE scaling {kind!r} is not supported; supported: default, llama3")
    return theta, {"rope_type": "llama3", **{key: float(scaling[key]) for key in _SCALING_KEYS}}


def _window(values: dict[str, Any], model_type: str, name: str) -> int | None:
    layer_types = set(values.get("layer_types") or ())
    if len(layer_types) > 1:
        raise CheckpointError(f"{name}: layer_types mixing {', '.join(sorted(layer_types))} is not supported")
    if layer_types - {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"{name}: layer_types {layer_types.pop()!r} is not supported")
    if layer_types == {"full_attention"}:
        return None
    if model_type.startswith("qwen") and layer_types != {"sliding_attention"}:
        if not values.get("use_sliding_window"):
            return None
        first = values.get("max_window_layers", 28)  # the first layer that has the window
        if first >= values["num_hidden_layers"]:
            return None
        if first > 0:
            raise CheckpointError(f"{name}: a sliding window in some layers only (max_window_layers) is not supported")
    return values.get("sliding_window")


def open_huggingface(folder: Path, name: str | None = None) -> WeightSource:
    """A folder with config.json and safetensors (one file, or shards with an index) as a source of weights.

    Raises:
        CheckpointError: no config or no weights, pickled weights only, an unsupported model, tensors that do not fit.
    """
    name = name or folder.name
    values = _json(folder / "config.json")
    generation = folder / "generation_config.json"
    config = config_from_huggingface(values, name)
    if generation.is_file():  # chat models often list their end-of-turn tokens only here
        eos = dict.fromkeys([*config.eos_token_ids, *_as_list(_json(generation).get("eos_token_id"))])
        config = config.model_copy(update={"eos_token_ids": tuple(eos)})
    files = weight_files(folder)
    holder: dict[str, Path] = {}
    shapes: Shapes = {}
    dtypes: dict[str, torch.dtype] = {}
    for file in files:
        with open_safetensors(file) as handle:
            for key in handle.keys():  # noqa: SIM118 (not a dict)
                if _BUFFERS.search(key) or (config.tied_head and key == "lm_head.weight"):
                    continue  # a tied model's copy of the embedding
                view = handle.get_slice(key)
                if view.get_dtype() not in _SAFETENSORS_DTYPES:
                    raise CheckpointError(f"{file}: tensor {key} has dtype {view.get_dtype()}, which is not supported")
                holder[key], shapes[key] = file, tuple(view.get_shape())
                dtypes[key] = _SAFETENSORS_DTYPES[view.get_dtype()]

    def read(part: Part) -> torch.Tensor:
        with open_safetensors(holder[part.theirs]) as handle:
            return handle.get_tensor(part.theirs)

    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    has_tokenizer = any((folder / file).is_file() for file in tokenizers)
    return parts_source(
        config,
        "huggingface",
        shapes,
        dtypes,
        read,
        folder,
        files=tuple(files),
        write_tokenizer=partial(copy_tokenizer, folder) if has_tokenizer else None,
        licence=_licence(folder),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index where it has one.

    Raises:
        CheckpointError: none, an incomplete set, or pickles only (unpickling runs code, so they are never opened).
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
        outside = [file.name for file in files if file.parent != folder]
        missing = [file.name for file in files if not file.is_file()]
        if outside or missing or not files:
            raise CheckpointError(f"{folder}: incomplete weights, missing {', '.join(outside + missing) or 'all'}")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise CheckpointError(
            f"{folder} holds pickled weights (.bin), which can run code when opened; "
            "save them as safetensors first: model.save_pretrained(folder, safe_serialization=True)"
        )
    raise CheckpointError(f"{folder} holds no weights: model.safetensors or model.safetensors.index.json is needed")


def _licence(folder: Path) -> str | None:
    """The `license:` line of a model card, if there is one."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    match = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match.group(1) if match else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value
