from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import fingerprint, whole_state

from ttt_docs.errors import CheckpointError
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.weights import converted as store
from ttt_docs.weights.converted import copy_tokenizer, is_finished, load_checkpoint, write_checkpoint
from ttt_docs.weights.huggingface import open_huggingface
from ttt_docs.weights.loading import retrofit
from ttt_docs.weights.parameters import Piece, WeightSource, state_source


@pytest.fixture
def source(llama):
    return open_huggingface(llama[1])


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_round_trip(source, tmp_path):
    folder = write_checkpoint(tmp_path / "m", source, {"licence": "mit", "repository": "a/b"})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config == source.config
    state = whole_state(source)
    assert checkpoint.state.keys() == state.keys()
    assert all(torch.equal(checkpoint.state[name], state[name]) for name in state)
    assert (folder / "tokenizer.json").is_file()
    assert checkpoint.fingerprint == fingerprint(source.config, state)
    manifest = checkpoint.manifest
    assert manifest["licence"] == "mit" and manifest["source"]["repository"] == "a/b"
    assert manifest["source"]["files"]["model.safetensors"] == store.sha256_file(source.files[0])
    assert manifest["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert not leftovers(tmp_path)
    assert fingerprint(checkpoint.config, checkpoint.state) == checkpoint.fingerprint


def test_mixed_dtypes_and_prime_mlps(source, tmp_path):
    """Odd sizes of two-byte tensors must not push the four-byte ones out of alignment."""
    config = source.config.model_copy(update={"vocab_size": 3, "tied_head": True, "dim": 32})
    state = {name: tensor.to(torch.bfloat16) for name, tensor in whole_state(source).items() if name != "head.weight"}
    state["embed.weight"] = state["embed.weight"][:3].clone()
    config, state = retrofit(config, state, 1)
    folder = write_checkpoint(
        tmp_path / "m",
        state_source(config, state, "state"),
    )
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config == config
    for name, tensor in state.items():
        assert checkpoint.state[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.state[name], tensor)
    assert not (folder / "tokenizer.json").exists()
    from safetensors.torch import load_file

    assert load_file(folder / "model.safetensors").keys() == state.keys()  # the library's own reader agrees


def test_the_fingerprint_depends_on_weights_and_config_not_on_the_name(source):
    state = whole_state(source)
    first = fingerprint(source.config, state)
    assert fingerprint(source.config.model_copy(update={"name": "other"}), state) == first
    assert fingerprint(source.config.model_copy(update={"sinks": 4}), state) != first
    changed = {**state, "final_norm.weight": state["final_norm.weight"] + 1}
    assert fingerprint(source.config, changed) != first
    assert store.derived_fingerprint(first, source.config) not in (first, store.derived_fingerprint("x", source.config))


def failing(source: WeightSource, error: BaseException, after: int = 5) -> WeightSource:
    def pieces() -> Iterator[Piece]:
        for seen, piece in enumerate(source.pieces()):
            if seen == after:
                raise error
            yield piece

    return replace(source, pieces=pieces)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x")])
def test_an_interrupted_conversion_leaves_nothing(source, tmp_path, error):
    with pytest.raises(type(error)):
        write_checkpoint(tmp_path / "m", failing(source, error))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_explained(source, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no space left.*TTT_DOCS_CACHE"):
        write_checkpoint(tmp_path / "m", failing(source, OSError(errno.ENOSPC, "full")))
    assert list(tmp_path.iterdir()) == []
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="no space left"):
        write_checkpoint(tmp_path / "m", source)


def test_a_killed_conversion_is_never_taken_for_a_finished_one(source, tmp_path):
    """What a power cut leaves: weights but no manifest, in the place of the folder or beside it."""
    folder = write_checkpoint(tmp_path / "m", source)
    (folder / "manifest.json").unlink()
    assert not is_finished(folder)
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        load_checkpoint(folder)
    stale = tmp_path / ".m.partial-old"
    stale.mkdir()
    os.utime(stale, (0, 0))
    running = tmp_path / ".m.partial-running"
    running.mkdir()
    write_checkpoint(folder, source)
    assert is_finished(folder)
    assert leftovers(tmp_path) == [running.name]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_cut_or_missing_file_is_noticed_and_converted_again(source, tmp_path, name):
    folder = write_checkpoint(tmp_path / "m", source)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"damaged: {name}"):
        load_checkpoint(folder)
    (folder / name).unlink()
    assert not is_finished(folder)
    write_checkpoint(folder, source)
    assert (folder / name).read_bytes() == data


def test_the_fingerprint_tells_flipped_bits(source, tmp_path):
    folder = write_checkpoint(tmp_path / "m", source)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    checkpoint = load_checkpoint(folder)
    assert fingerprint(checkpoint.config, checkpoint.state) != checkpoint.fingerprint


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"format": None}, {"files": {}}, {"files": None}, {"fingerprint": 5}]
)
def test_strange_manifests_are_refused(source, tmp_path, change):
    folder = write_checkpoint(tmp_path / "m", source)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(CheckpointError, match=r"not a finished checkpoint|newer than this package"):
        load_checkpoint(folder)


def test_two_conversions_at_once_give_one_checkpoint(source, tmp_path):
    barrier = threading.Barrier(2)

    def slow() -> WeightSource:
        def tokenizer(folder: Path) -> None:  # both have written their weights when either moves on
            barrier.wait(timeout=30)
            source.write_tokenizer(folder)

        return replace(source, write_tokenizer=tokenizer)

    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(write_checkpoint(tmp_path / "m", slow()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "m"] * 2
    assert is_finished(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_loading_imports_no_transformers_and_needs_no_network(source, tmp_path):
    folder = write_checkpoint(tmp_path / "m", source)
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from ttt_docs.weights.converted import load_checkpoint\n"
        "from ttt_docs.text.tokenizer import Tokenizer\n"
        "load_checkpoint(sys.argv[1]); Tokenizer(sys.argv[1]).encode_chat([('user', 'Hi')])\n"
        "assert not {'transformers', 'huggingface_hub', 'gguf'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, cwd=root)


def test_a_configuration_of_no_model_is_refused(source, tmp_path):
    folder = write_checkpoint(tmp_path / "m", source)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"heads"', '"hands"'))
    with pytest.raises(CheckpointError, match=r"config\.json is not a model configuration"):
        load_checkpoint(folder)


def test_a_folder_without_permission_names_the_setting(source, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\): set TTT_DOCS_CACHE"):
        write_checkpoint(tmp_path / "m", source)


def test_a_tokenizer_of_an_older_format_is_converted(llama, tmp_path):
    model = json.loads((llama[1] / "tokenizer.json").read_text("utf-8"))["model"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])), "utf-8")
    (old / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}), "utf-8")
    (tmp_path / "new").mkdir()
    copy_tokenizer(old, tmp_path / "new")
    text = "The sea, said the captain"
    assert Tokenizer(tmp_path / "new").encode(text) == Tokenizer(llama[1]).encode(text)


def test_a_tokenizer_that_cannot_be_converted_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="its tokenizer cannot be converted"):
        copy_tokenizer(tmp_path, tmp_path / "new")
