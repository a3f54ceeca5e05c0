"""Orbax checkpoints: the published one, ones written here in several chunkings, damaged ones, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import fingerprint, whole_state

from benchmarks.reference import load_reference, state_from_published
from ttt_docs.errors import CheckpointError, UsageError
from ttt_docs.model.config import CONFIGS, ModelConfig
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.converted import load_checkpoint
from ttt_docs.weights.loading import build_decoder
from ttt_docs.weights.published import config_of, import_checkpoint, open_orbax, published_layout

tensorstore = pytest.importorskip("tensorstore")
ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests" / "reference"
CONFIG = ModelConfig(
    name="tiny", vocab_size=40, blocks=4, dim=8, heads=2, kv_heads=2, head_dim=4, mlp_dim=12, suffix_blocks=1,
    post_norm=True, qk_norm=True,
)  # fmt: skip


def write_orbax(folder: Path, arrays: dict[str, np.ndarray], chunks=lambda shape: shape, compressor="zstd") -> Path:
    """A step of a checkpoint, as Orbax lays it out."""
    item = folder / "7" / "model_weights"
    base = {"driver": "file", "path": f"{item}/"}
    for path, array in arrays.items():
        kinds = {
            "zstd": {"id": "zstd", "level": 1},
            "zlib": {"id": "zlib", "level": 1},
            "bz2": {"id": "bz2", "level": 1},
        }
        metadata = {"shape": array.shape, "chunks": chunks(array.shape), "dtype": array.dtype.str}
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{path}/"},
            "metadata": {**metadata, "compressor": kinds.get(compressor)},
        }
        tensorstore.open(spec, create=True).result().write(array).result()
    return folder


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    layout = published_layout(CONFIG)
    return {path: random.standard_normal(published.shape, dtype=np.float32) for path, published in layout.items()}


def test_the_published_checkpoint_gives_the_reference_losses(tmp_path):
    reference = load_reference(REFERENCE / "tiny_meta.npz")
    (tmp_path / "config.json").write_text(json.dumps(reference.settings))
    folder = import_checkpoint(
        REFERENCE / "orbax_tiny_meta", tmp_path / "model", config_file=tmp_path / "config.json", progress=False
    )
    checkpoint = load_checkpoint(folder)
    assert fingerprint(checkpoint.config, checkpoint.state) == checkpoint.fingerprint
    reading = type(reference.reading)(**checkpoint.manifest["source"]["reading"])
    assert reading == reference.reading
    model = build_decoder(checkpoint.config, checkpoint.state, torch.device("cpu"), torch.float32)
    state = ReadingState(model, reading)
    tokens = reference.tokens.unsqueeze(0)
    nll = [result.nll[0] for result in state.read_whole(tokens)]
    assert (torch.cat(nll) - reference.token_nll).abs().max() < 5e-6


@pytest.mark.parametrize(
    ("chunks", "compressor"),
    [
        (lambda shape: shape, "zstd"),
        (lambda shape: (1, *shape[1:]), "zlib"),
        (lambda shape: tuple(max(1, size // 3) for size in shape), "zstd"),  # does not divide: chunks reach beyond
        (lambda shape: (shape[0], *(max(1, size // 2) for size in shape[1:])), None),
    ],
    ids=["one chunk", "block by block", "uneven", "sharded over dims"],
)
def test_any_chunking_gives_the_same_weights(tmp_path, arrays, chunks, compressor):
    folder = write_orbax(tmp_path, arrays, chunks, compressor)
    (tmp_path / "config.json").write_text(CONFIG.model_dump_json())
    written = import_checkpoint(folder, tmp_path / "model", config_file=tmp_path / "config.json", progress=False)
    expected, checkpoint = state_from_published(CONFIG, arrays), load_checkpoint(written)
    assert checkpoint.state.keys() == expected.keys()
    assert fingerprint(checkpoint.config, checkpoint.state) == checkpoint.fingerprint
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.state[name], tensor), name
    source = open_orbax(folder / "7" / "model_weights", CONFIG)
    state, name = whole_state(source), "blocks.1.attention.wqkv.weight"
    assert torch.equal(state[name], expected[name])


def test_what_is_missing_left_over_or_of_another_size_is_named(tmp_path, arrays):
    changed = dict(arrays)
    wq, w1 = (f"language_model.model.h.blocks.{key}.weight" for key in ("seq_modeling_block.wq", "feed_forward.w1"))
    del changed[wq]
    changed[w1] = np.zeros((4, 8, 13), np.float32)
    changed["language_model.extra"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as caught:
        open_orbax(write_orbax(tmp_path, changed), CONFIG)
    for part in (f"missing: {wq}", "unexpected: language_model.extra", f"{w1} [4, 8, 13], expected [4, 8, 12]"):
        assert part in str(caught.value)


def test_what_is_no_checkpoint(tmp_path, arrays):
    with pytest.raises(CheckpointError, match="not an Orbax checkpoint"):
        open_orbax(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match="compressed with bz2"):
        open_orbax(write_orbax(tmp_path / "a", arrays, compressor="bz2"), CONFIG)
    folder = write_orbax(tmp_path / "b", arrays)
    for file in (folder / "7" / "model_weights" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "config.json").write_text(CONFIG.model_dump_json())
    with pytest.raises(CheckpointError):
        import_checkpoint(folder, tmp_path / "model", config_file=tmp_path / "config.json", progress=False)
    assert not (tmp_path / "model").exists()


def test_sizes_and_configurations(tmp_path):
    assert config_of("1b", None)[0] == CONFIGS["1.3b"] and config_of("3b", None)[1].window == 8192
    for arguments in ((None, None), ("3b", tmp_path / "x"), ("7b", None), (None, tmp_path / "missing")):
        with pytest.raises(UsageError):
            config_of(*arguments)


def test_memory_stays_within_the_largest_array(tmp_path):
    """Each stacked array is one chunk, the worst case; peak memory is that of a process of its own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory of a process is read from /proc")
    config = ModelConfig(
        name="large", vocab_size=512, blocks=12, dim=256, heads=2, kv_heads=2, head_dim=128, mlp_dim=4096,
        suffix_blocks=2, post_norm=True, qk_norm=True,
    )  # fmt: skip
    noise = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)  # incompressible enough
    sizes = {path: published.shape for path, published in published_layout(config).items()}
    write_orbax(tmp_path, {path: np.resize(noise, shape) for path, shape in sizes.items()})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = (
        "import sys; from pathlib import Path; from ttt_docs.weights import published as orbax\n"
        "import tensorstore, zstandard; here = Path(sys.argv[1])\n"
        "config, _ = orbax.config_of(None, here / 'config.json')\n"
        "status = lambda key: int(Path('/proc/self/status').read_text().split(key + ':')[1].split()[0]) * 1024\n"
        "before = status('VmRSS')\n"
        "orbax.import_checkpoint(here, here / 'model', config_file=here / 'config.json', progress=False)\n"
        "print(status('VmHWM') - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True)
    largest = 4 * max(np.prod(shape) for shape in sizes.values())
    peak = int(ran.stdout)
    print(f"peak {peak / 2**20:.1f} MiB, largest array {largest / 2**20:.1f} MiB")
    assert peak <= 1.3 * largest


def test_a_tokenizer_is_put_beside_the_weights(tmp_path, arrays):
    folder = write_orbax(tmp_path, arrays)
    (tmp_path / "config.json").write_text(CONFIG.model_dump_json())
    options = {"config_file": tmp_path / "config.json", "progress": False}
    tokenizer = ROOT / "ttt_docs" / "training" / "byte_tokenizer"
    written = import_checkpoint(folder, tmp_path / "model", tokenizer=str(tokenizer), **options)
    assert (written / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        import_checkpoint(folder, written, **options)
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        import_checkpoint(folder, tmp_path / "other", tokenizer=str(tmp_path), **options)
