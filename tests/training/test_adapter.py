"""Adapters: what is in the file, reading with it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_files import tiny_recipe, write_books

from ttt_docs import TTTReader
from ttt_docs.errors import CheckpointError, MemoryMismatchError, UsageError
from ttt_docs.model.config import CONFIGS, ModelConfig
from ttt_docs.reader import reader_for
from ttt_docs.training.budget import flops_per_token
from ttt_docs.training.model_io import BYTE_TOKENIZER
from ttt_docs.training.record import code_identity
from ttt_docs.training.trainer import train
from ttt_docs.ttt import recompute
from ttt_docs.weights import adapter as adapter_module
from ttt_docs.weights import registry
from ttt_docs.weights.adapter import SHIPPED, adapted, chosen_adapter, load_adapter, pack_adapter
from ttt_docs.weights.converted import copy_tokenizer, load_checkpoint, write_checkpoint
from ttt_docs.weights.parameters import parameter_shapes, state_source

PLAIN = ModelConfig(
    name="plain", vocab_size=320, blocks=2, dim=16, heads=2, kv_heads=1, head_dim=8, mlp_dim=24, eos_token_ids=(2,)
)


def write_plain(folder: Path, seed: int) -> Path:
    noise = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(PLAIN)
    state = {name: 0.2 * torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    source = state_source(PLAIN, state, "test", write_tokenizer=partial(copy_tokenizer, BYTE_TOKENIZER))
    return write_checkpoint(folder, source, progress=False)


def adapter_recipe(folder: Path, *changes: str):
    start = ["model.config=null", "model.changes={}", f"model.pretrained={folder / 'plain'}", "model.suffix_blocks=1"]
    more = ["trains=adapter", "data.tokenizer=model", "reading.sinks=2", "reading.inner_rule=normalized", "steps=4"]
    return tiny_recipe(folder, *start, *more, *changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTT_DOCS_CACHE", str(folder / "cache"))
        write_plain(folder / "plain", seed=0)
        done = train(adapter_recipe(folder, "learned_inner_lr=true", "optimizer.lr=1e-2"), progress=False)
        yield folder, done.exported


def test_the_file_holds_only_what_was_trained(trained):
    folder, path = trained
    prime = {f"blocks.1.prime_mlp.{name}" for name in ("w1", "w2", "w3")}
    norms = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attention_norm", "mlp_norm")}
    state = load_file(path)
    assert state.keys() == prime | norms | {"final_norm.weight"}
    base = load_file(folder / "plain" / "model.safetensors")
    assert all((state[name] != base[name]).any() for name in norms)
    assert state["blocks.1.prime_mlp.w2"].any()
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["ttt-docs"])
    assert header["format"] == 1 and header["provenance"]["steps"] == 4 and header["provenance"]["tokens"] == 512
    assert header["provenance"]["recipe"]["optimizer"]["lr"] == 1e-2 and len(header["provenance"]["data"]) == 64
    assert header["provenance"]["code"] == code_identity() and "commit" not in header["provenance"]
    assert len(header["reading"]["inner_lr_factors"]) == 1 and header["reading"]["inner_lr_factors"] != [1.0]


def test_reading_with_an_adapter_is_another_model_with_its_own_reading(trained, tmp_path):
    folder, path = trained
    text = json.loads(write_books(tmp_path / "b.jsonl").read_text().splitlines()[0])["text"][:200]
    plain = TTTReader.from_pretrained(folder / "plain", dtype="float32", suffix_blocks=1, chunk=8, window=16)
    reader = TTTReader.from_pretrained(folder / "plain", adapter=path, dtype="float32")
    assert (reader.reading.chunk, reader.reading.window, reader.reading.sinks) == (8, 16, 2)
    assert reader.reading.inner_lr_factors and reader.fingerprint != plain.fingerprint
    memory, before = reader.ingest(text=text), plain.ingest(text=text)
    assert memory.nll.mean() < before.nll.mean() - 0.02
    memory.save(tmp_path / "m.ttt")
    again = TTTReader.from_pretrained(folder / "plain", adapter=str(path), dtype="float32", chunk=8)
    again.check(memory)
    with pytest.raises(MemoryMismatchError):
        plain.check(memory)
    assert TTTReader.from_pretrained(folder / "plain", adapter=path, chunk=4).reading.chunk == 4


def test_an_adapter_opens_its_base_only_from_the_registry(trained, monkeypatch):
    folder, path = trained
    with pytest.raises(CheckpointError, match="open that model, and give the file as its adapter"):
        TTTReader.from_pretrained(path)
    name = str(folder / "plain")
    monkeypatch.setitem(registry.REGISTRY, name, replace(registry.REGISTRY["smollm2-135m"], name=name))
    assert TTTReader.from_pretrained(path).fingerprint == TTTReader.from_pretrained(name, adapter=path).fingerprint


def test_what_does_not_fit_is_refused(trained, tmp_path):
    folder, path = trained
    other = write_plain(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="trained for another model"):
        TTTReader.from_pretrained(other, adapter=path)
    with pytest.raises(CheckpointError, match="there is no adapter"):
        TTTReader.from_pretrained(folder / "plain", adapter=tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="not an adapter of ttt-docs: it does not have an adapter's header"):
        load_adapter(folder / "plain" / "model.safetensors")
    with pytest.raises(UsageError, match="1 suffix blocks: leave suffix_blocks out"):
        TTTReader.from_pretrained(folder / "plain", adapter=path, suffix_blocks=2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state, header: state["blocks.1.prime_mlp.w1"].add_(1), "do not match their sha256"),
        (lambda state, header: state.update({"blocks.1.prime_mlp.w1": torch.zeros(3)}), "tensors that its model"),
        (lambda state, header: header.update(format=3), "adapter format 3, newer"),
        (lambda state, header: header.pop("reading"), "not an adapter of ttt-docs, or is damaged: it lacks 'reading'"),
        (lambda state, header: header["config"].update(dim=-1), "not an adapter of ttt-docs, or is damaged"),
    ],
)
def test_damaged_adapters_are_refused(trained, tmp_path, edit, message):
    _, path = trained
    state = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["ttt-docs"])
    edit(state, header)
    save_file(state, tmp_path / "a.safetensors", {"ttt-docs": json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path / "a.safetensors")


def test_a_packed_adapter_is_the_whole_one_but_for_rounding(trained, tmp_path):
    folder, path = trained
    base, whole = load_checkpoint(folder / "plain"), load_adapter(path)
    room = 80_000  # more than its terms take in 8 bits, beside the header's room
    small = pack_adapter(whole, base, tmp_path / "small.safetensors", room)
    again = load_adapter(tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size <= room
    assert again.reading == whole.reading and again.provenance == whole.provenance and again.digest == small.digest
    state, fingerprint = adapted(base, again)
    exact, other = adapted(base, whole)
    assert fingerprint != other and state.keys() == exact.keys()
    for name in exact:
        if ".prime_mlp." in name:
            start = base.state["blocks.1.mlp.w13.weight"].split(24)
            change = exact[name] - {"w1": start[0], "w2": 0, "w3": start[1]}[name[-2:]]
            assert change.norm() > 0.01 and (state[name] - exact[name]).norm() < 0.02 * change.norm()
        else:
            assert torch.equal(state[name], exact[name])
    reader = TTTReader.from_pretrained(folder / "plain", adapter=tmp_path / "small.safetensors", dtype="float32")
    assert reader.ingest(text="the ship lay still and the captain").nll.isfinite().all()


def test_what_cannot_be_packed_is_refused(trained, tmp_path):
    folder, path = trained
    base, whole = load_checkpoint(folder / "plain"), load_adapter(path)
    small = pack_adapter(whole, base, tmp_path / "small.safetensors", 80_000)
    with pytest.raises(UsageError, match="no whole prime MLPs to pack again"):
        pack_adapter(small, base, tmp_path / "smaller.safetensors", 70_000)
    with pytest.raises(UsageError, match="too few for"):
        pack_adapter(whole, base, tmp_path / "none.safetensors", 65_000)
    with pytest.raises(CheckpointError, match="trained for another model"):
        pack_adapter(
            whole, load_checkpoint(write_plain(tmp_path / "other", seed=1)), tmp_path / "n.safetensors", 80_000
        )
    assert not list(tmp_path.glob("n*.safetensors"))


@pytest.mark.parametrize("part", ["left8", "right4", "scale8"])
def test_a_packed_adapter_with_parts_that_do_not_fit_is_refused(trained, tmp_path, part):
    folder, path = trained
    file = tmp_path / "small.safetensors"
    pack_adapter(load_adapter(path), load_checkpoint(folder / "plain"), file, 80_000)
    state, name = load_file(file), f"blocks.1.prime_mlp.w2/{part}"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    longer = torch.cat([state[name], state[name].new_zeros(1, *state[name].shape[1:])])
    save_file(state | {name: longer}, file, header)
    with pytest.raises(CheckpointError, match=r"tensors that its model does not have: blocks\.1\.prime_mlp\.w2"):
        load_adapter(file)
    del state[name]
    save_file(state, file, header)
    with pytest.raises(CheckpointError, match="is not an adapter of ttt-docs, or is damaged"):
        load_adapter(file)


def test_a_run_goes_on_from_an_adapter_and_its_rates(trained, tmp_path):
    folder, path = trained
    more = ["learned_inner_lr=matrix", "model.suffix_blocks=null", f"model.adapter={path}", f"output={tmp_path}"]
    recipe = adapter_recipe(
        folder, *more, "steps=1", "optimizer.lr=1e-9", "optimizer.rates_lr=0.1", "optimizer.warmup=0"
    )
    before, after = load_adapter(path), load_adapter(train(recipe, progress=False).exported)
    assert before.state.keys() == after.state.keys()
    assert after.provenance["after"] == before.provenance and str(tmp_path.parent) not in json.dumps(after.provenance)
    assert after.provenance["recipe"]["data"]["train"] == ["books.jsonl"]
    assert all(torch.allclose(after.state[n], before.state[n], atol=1e-7) for n in before.state)
    moved = torch.tensor(after.reading.inner_lr_factors) - before.reading.inner_lr_factors[0]
    assert torch.allclose(moved.abs(), torch.full((3,), 0.1), atol=1e-3)  # AdamW's first step
    with pytest.raises(UsageError, match=r"1 suffix blocks: leave model\.suffix_blocks out"):
        train(adapter_recipe(folder, f"model.adapter={path}", "model.suffix_blocks=2"), progress=False)
    with pytest.raises(UsageError, match=r"model\.adapter is for model.pretrained as it is"):
        tiny_recipe(folder, f"model.adapter={path}")


@pytest.mark.parametrize("mode", ["meta", "naive"])
def test_a_suffix_is_trained_without_the_blocks_below(trained, tmp_path, monkeypatch, mode):
    folder, _ = trained
    calls = []
    genuine = recompute.gradients
    monkeypatch.setattr(recompute, "gradients", lambda out, *rest: calls.append(out) or genuine(out, *rest))
    recipe = adapter_recipe(folder, "trains=suffix", f"mode={mode}", "steps=1", f"output={tmp_path}")
    state = load_file(train(recipe, progress=False).exported)
    prime = {f"blocks.1.prime_mlp.{name}" for name in ("w1", "w2", "w3")}
    assert state.keys() == prime | {"blocks.1.mlp_norm.weight", "final_norm.weight"}
    assert bool(calls) == (mode == "naive")  # its suffix block; the scan over chunks has a backward pass of its own
    whole = recipe.model_copy(update={"trains": "adapter"})
    assert flops_per_token(recipe, PLAIN) < flops_per_token(whole, PLAIN)


def test_a_suffix_needs_prime_mlps(trained):
    with pytest.raises(UsageError, match="use trains: adapter"):
        adapter_recipe(trained[0], "trains=suffix", "mode=none", "model.suffix_blocks=null")


@pytest.mark.parametrize("mode", ["first-order", "naive", "none"])
def test_the_other_modes_train_too(trained, tmp_path, mode):
    folder, _ = trained
    recipe = adapter_recipe(
        folder, f"mode={mode}", f"output={tmp_path}", *(["model.suffix_blocks=null"] * (mode == "none"))
    )
    path = train(recipe, progress=False).exported
    reader = TTTReader.from_pretrained(folder / "plain", adapter=path, dtype="float32")
    assert reader.model.config.suffix_blocks == (0 if mode == "none" else 1)
    assert reader.ingest(text="the ship lay still and the captain").nll.isfinite().all()


def test_a_pretrained_model_of_another_architecture_is_refused(trained):
    folder, _ = trained
    with pytest.raises(CheckpointError, match=r"the recipe wants 125m\) do not fit their config"):
        train(adapter_recipe(folder, "model.config=125m"), progress=False)


@pytest.fixture
def shipped(trained, monkeypatch):
    """The trained adapter as one that comes with the package, for a model that goes by the plain one's path."""
    folder, path = trained
    name = str(folder / "plain")
    entry = replace(registry.REGISTRY["smollm2-135m"], name=name, adapter=str(path))
    monkeypatch.setitem(registry.REGISTRY, name, entry)
    return name, path


def test_the_adapter_of_the_package_is_the_default(shipped):
    name, path = shipped
    reader = TTTReader.from_pretrained(name, dtype="float32")
    assert reader.fingerprint == TTTReader.from_pretrained(name, adapter=path).fingerprint
    assert reader.reading.inner_lr_factors and reader.reading.chunk == 8
    without = TTTReader.from_pretrained(name, adapter=None, suffix_blocks=1, dtype="float32")
    assert without.fingerprint != reader.fingerprint and without.reading.chunk == 1024
    assert TTTReader.from_pretrained(name, suffix_blocks=1, sinks=2).fingerprint == reader.fingerprint
    for other in ({"suffix_blocks": 2}, {"sinks": 1}):  # another retrofit is asked for: not what was trained
        retrofitted = TTTReader.from_pretrained(name, **other)
        assert retrofitted.fingerprint == TTTReader.from_pretrained(name, adapter=None, **other).fingerprint


def test_other_precisions_of_the_named_model_take_its_adapter_and_other_models_do_not(shipped, trained, tmp_path):
    name, _ = shipped
    other = str(write_plain(tmp_path / "other", seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.REGISTRY, other, replace(registry.REGISTRY[name], name=other))
        assert TTTReader.from_pretrained(other).reading.chunk == 8
        shipped_for = load_checkpoint(other)
        wider = replace(shipped_for, config=shipped_for.config.model_copy(update={"mlp_dim": 48}))
        assert chosen_adapter(SHIPPED, other, wider) is None
    assert chosen_adapter(SHIPPED, other, shipped_for) is None  # no registry name


def test_a_memory_finds_the_reader_it_was_read_with(shipped):
    name, _ = shipped
    opened = partial(TTTReader.from_pretrained, name, dtype="float32")
    for settings in ({}, {"adapter": None, "suffix_blocks": 1, "chunk": 8, "window": 16}, {"suffix_blocks": 2}):
        reader = opened(**settings)
        memory = reader.ingest(text="the ship lay still and the captain")
        assert reader_for(memory, opened).fingerprint == reader.fingerprint == memory.fingerprint
    with pytest.raises(MemoryMismatchError):
        reader_for(replace(memory, fingerprint="0" * 64), opened)


def test_the_shipped_file_is_small_and_says_where_it_comes_from():
    file = Path(adapter_module.__file__).parent / "adapters" / registry.REGISTRY["smollm2-135m"].adapter
    assert file.stat().st_size <= 20_000_000
    adapter = load_adapter(file)
    known = CONFIGS["smollm2-135m"].model_dump(include=adapter_module._ARCHITECTURE)
    assert adapter.config.model_dump(include=adapter_module._ARCHITECTURE) == known
    runs = [adapter.provenance]
    while "after" in runs[-1]:
        runs.append(runs[-1]["after"])
    stages = [(run["recipe"]["mode"], run["recipe"]["sequence"]) for run in runs]
    assert stages == [("meta", 32768), ("meta", 8192), ("naive", 8192)]
    for run in runs:
        assert all(Path(name).name == name for name in run["recipe"]["data"]["train"])
