from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import whole_state

from tests.weights.conftest import SIZES, build, rope_theta
from ttt_docs.errors import CheckpointError
from ttt_docs.weights.huggingface import config_from_huggingface, open_huggingface
from ttt_docs.weights.parameters import parameter_shapes


def assert_same_weights(model, state):
    """Every value of a transformers model is where our names say."""
    theirs = model.state_dict()
    config = model.config
    torch.testing.assert_close(state["embed.weight"], theirs["model.embed_tokens.weight"], rtol=0, atol=0)
    torch.testing.assert_close(state["final_norm.weight"], theirs["model.norm.weight"], rtol=0, atol=0)
    if not config.tie_word_embeddings:
        assert torch.equal(state["head.weight"], theirs["lm_head.weight"])
    for index in range(config.num_hidden_layers):
        ours, layer = f"blocks.{index}.", f"model.layers.{index}."
        for kind in ("weight", "bias") if ours + "attention.wqkv.bias" in state else ("weight",):
            parts = [theirs[f"{layer}self_attn.{key}_proj.{kind}"] for key in "qkv"]
            assert torch.equal(state[f"{ours}attention.wqkv.{kind}"], torch.cat(parts))
        gate, up = theirs[layer + "mlp.gate_proj.weight"], theirs[layer + "mlp.up_proj.weight"]
        assert torch.equal(state[ours + "mlp.w13.weight"], torch.cat([gate, up]))
        assert torch.equal(state[ours + "mlp.w2.weight"], theirs[layer + "mlp.down_proj.weight"])
        assert torch.equal(state[ours + "attention.wo.weight"], theirs[layer + "self_attn.o_proj.weight"])
        assert torch.equal(state[ours + "attention_norm.weight"], theirs[layer + "input_layernorm.weight"])
        assert torch.equal(state[ours + "mlp_norm.weight"], theirs[layer + "post_attention_layernorm.weight"])
        if ours + "attention.q_norm.weight" in state:
            assert torch.equal(state[ours + "attention.q_norm.weight"], theirs[layer + "self_attn.q_norm.weight"])
            assert torch.equal(state[ours + "attention.k_norm.weight"], theirs[layer + "self_attn.k_norm.weight"])


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 16}),
        ("mistral", {"sliding_window": 64}),
        ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
        ("qwen2", {}),
    ],
)
def test_every_family_comes_over_exactly(tmp_path, model_type, changes):
    model = build(model_type, **changes)
    model.save_pretrained(tmp_path)
    source = open_huggingface(tmp_path)
    state = whole_state(source)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == parameter_shapes(source.config)
    assert_same_weights(model, state)
    config = source.config
    assert config.head_dim == changes.get("head_dim", 8)
    assert config.window == (64 if model_type == "mistral" else None)
    assert config.qk_norm == (model_type == "qwen3")
    assert config.attention_bias == (model_type == "qwen2")
    assert config.tied_head == changes.get("tie_word_embeddings", False)
    assert (config.max_positions, config.bos_token_id, config.eos_token_ids) == (128, 1, (2,))
    assert config.norm_eps == model.config.rms_norm_eps
    assert config.rope_theta == rope_theta(model.config)


def test_shards_and_bfloat16_stay_as_they_are(tmp_path):
    model = build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    source = open_huggingface(tmp_path)
    state = whole_state(source)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert_same_weights(model, state)
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="incomplete weights, missing model-0000"):
        open_huggingface(tmp_path)


def test_float16_becomes_float32(tmp_path):
    model = build("llama").to(torch.float16)
    model.save_pretrained(tmp_path)
    state = whole_state(open_huggingface(tmp_path))
    assert torch.equal(state["embed.weight"], model.state_dict()["model.embed_tokens.weight"].float())


BASE = {"model_type": "llama", **SIZES}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "places",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
    ],
)
def test_rope_settings_in_both_places(places):
    config = config_from_huggingface(BASE | places, "x")
    assert config.rope_theta == 5e5
    assert config.rope_scaling == {"rope_type": "llama3", **LLAMA3}


def test_end_tokens_as_number_list_and_from_the_generation_config(llama, tmp_path):
    assert config_from_huggingface(BASE | {"eos_token_id": [7, 8]}, "x").eos_token_ids == (7, 8)
    assert config_from_huggingface(BASE | {"eos_token_id": None}, "x").eos_token_ids == ()
    folder = shutil.copytree(llama[1], tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert open_huggingface(folder).config.eos_token_ids == (2, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported: llama, mistral"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "RoPE scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "no 'factor'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types mixing"),
        ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 1}, "max_window_layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"vocab_size": "many"}, "cannot be used"),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_by_name(changes, message):
    with pytest.raises(CheckpointError, match=message):
        config_from_huggingface(BASE | changes, "x")


def test_missing_extra_and_misshapen_tensors_are_named(llama, tmp_path):
    folder = shutil.copytree(llama[1], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.extra"] = torch.zeros(1)
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(3, 32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # a buffer, no complaint
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_huggingface(folder)
    message = str(caught.value)
    assert "missing: model.norm.weight;" in message
    assert "unexpected: model.layers.0.mlp.extra;" in message
    assert "wrong shape: model.layers.1.self_attn.k_proj.weight [3, 32], expected [16, 32]" in message
    assert "inv_freq" not in message


def test_pickles_broken_files_and_empty_folders_are_refused(llama, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_huggingface(folder)
    shutil.copyfile(llama[1] / "config.json", folder / "config.json")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_huggingface(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled weights"):
        open_huggingface(folder)
    (folder / "model.safetensors").write_bytes((llama[1] / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not an intact safetensors file"):
        open_huggingface(folder)


def test_an_index_cannot_point_outside_its_folder(llama, tmp_path):
    folder = shutil.copytree(llama[1], tmp_path / "m")
    index = {"weight_map": {"model.norm.weight": "../m/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="incomplete weights"):
        open_huggingface(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ("[]", "does not hold a JSON object")])
def test_a_broken_config_is_refused(llama, tmp_path, content, message):
    folder = shutil.copytree(llama[1], tmp_path / "m")
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_huggingface(folder)


def test_tensors_of_integers_are_refused_and_the_licence_is_read(llama, tmp_path):
    folder = shutil.copytree(llama[1], tmp_path / "m")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.")
    assert open_huggingface(folder).licence == "mit"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has dtype I8, which is not supported"):
        open_huggingface(folder)


def test_a_window_that_no_layer_has_is_none():
    qwen = BASE | {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 64}
    assert config_from_huggingface(qwen | {"max_window_layers": 2}, "x").window is None
    assert config_from_huggingface(qwen | {"max_window_layers": 0}, "x").window == 64
    assert config_from_huggingface(qwen | {"layer_types": ["full_attention"] * 2}, "x").window is None
    with pytest.raises(CheckpointError, match="layer_types 'chunked_attention' is not supported"):
        config_from_huggingface(BASE | {"layer_types": ["chunked_attention"] * 2}, "x")
