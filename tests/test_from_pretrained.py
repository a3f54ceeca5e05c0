"""TTTReader.from_pretrained: parameters that work, and those that cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import TINY, byte_tokenizer, tiny_decoder

from ttt_docs import CheckpointError, Memory, MemoryMismatchError, TTTReader, UsageError
from ttt_docs.model.config import ModelConfig
from ttt_docs.reader import reader_for
from ttt_docs.weights.converted import write_checkpoint
from ttt_docs.weights.parameters import state_source


def write(folder: Path, config: ModelConfig) -> Path:
    state = tiny_decoder(config).state_dict()
    source = state_source(config, state, "test", write_tokenizer=byte_tokenizer)  # type: ignore[arg-type]
    return write_checkpoint(folder, source)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A model that never saw TTT."""
    return write(tmp_path_factory.mktemp("plain") / "model", TINY.model_copy(update={"suffix_blocks": 0}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A TTT model, with its own window."""
    return write(tmp_path_factory.mktemp("trained") / "model", TINY.model_copy(update={"window": 4096}))


def test_a_retrofit_gets_fast_weights_sinks_and_its_rule(plain):
    reader = TTTReader.from_pretrained(plain)
    config, reading = reader.model.config, reader.reading
    assert (config.suffix_blocks, config.sinks, reading.sinks) == (4, 4, 4)  # 8 blocks where there are as many
    assert (reading.window, reading.chunk, reading.inner_rule, reading.inner_lr) == (2048, 1024, "normalized", 0.3)
    initial = reader.model.fast_layout.views(reader.model.initial_fast_weights())
    assert all(not block.w2.any() for block in initial)  # at first the same model
    chosen = TTTReader.from_pretrained(str(plain), suffix_blocks=2, sinks=0, window=64, chunk=32, inner_rule="sgd")
    assert (chosen.model.config.suffix_blocks, chosen.reading.sinks, chosen.reading.inner_lr) == (2, 0, 1.0)
    assert chosen.fingerprint != reader.fingerprint
    with pytest.raises(MemoryMismatchError):
        reader.ingest(text="b", memory=chosen.ingest(text="a"))


def test_a_trained_model_reads_as_it_was_trained(trained):
    reader = TTTReader.from_pretrained(trained)
    reading = reader.reading
    assert (reading.window, reading.chunk, reading.sinks, reading.inner_rule, reading.inner_lr) == (
        4096, 1024, 0, "sgd", 1.0,
    )  # fmt: skip
    assert TTTReader.from_pretrained(trained, suffix_blocks=2, sinks=3).reading.sinks == 3
    assert TTTReader.from_pretrained(trained, learn=False).ingest(text="ab").fast == {}
    with pytest.raises(UsageError, match="2 suffix blocks"):
        TTTReader.from_pretrained(trained, suffix_blocks=3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 512, "chunk": 1024}, "larger window="),
        ({"window": 0}, "window"),
        ({"chunk": -1}, "chunk"),
        ({"sinks": -1}, "sinks"),
        ({"inner_lr": -0.1}, "inner_lr"),
        ({"inner_clip": -1.0}, "inner_clip"),
        ({"inner_rule": "adam"}, "inner_rule"),
        ({"suffix_blocks": 0}, "suffix_blocks"),
        ({"suffix_blocks": 5}, "suffix_blocks"),
        ({"dtype": "nonsense"}, "float32 or bfloat16"),
        ({"dtype": "manual_seed"}, "float32 or bfloat16"),
        ({"dtype": "float64"}, "float32 or bfloat16"),
        ({"dtype": torch.float16}, "float32 or bfloat16"),
        ({"dtype": torch.int64}, "float32 or bfloat16"),
        ({"device": "toaster"}, "device='toaster'"),
        ({"device": "meta"}, "device='meta'"),
    ],
    ids=str,
)
def test_parameters_that_cannot_work(plain, parameters, message):
    with pytest.raises(UsageError, match=message):
        TTTReader.from_pretrained(plain, **parameters)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would work")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", torch.device("cuda")])
def test_cuda_where_there_is_none(plain, device):
    with pytest.raises(UsageError, match="use cpu"):
        TTTReader.from_pretrained(plain, device=device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float32, torch.bfloat16])
def test_dtypes(plain, dtype):
    reader = TTTReader.from_pretrained(plain, dtype=dtype, device=torch.device("cpu"))
    assert str(reader.model.dtype).endswith(str(dtype).removeprefix("torch."))
    memory = reader.ingest(text="abc")
    assert memory.fast[0]["w1"].dtype == torch.float32 and memory.window[0][0].dtype == reader.model.dtype


def test_every_kind_of_memory_of_another_retrofit_finds_its_reader(plain, tmp_path):
    """Some do not say how many blocks have fast weights (text alone, the window alone): the fingerprint does."""
    other = TTTReader.from_pretrained(plain, suffix_blocks=2, sinks=3, window=64, chunk=32, dtype="float32")
    exact = other.ingest(text="The ship lay still. " * 20)
    still = TTTReader.from_pretrained(plain, suffix_blocks=2, sinks=3, window=64, chunk=32, learn=False)
    unread = other.ingest(text="Nothing read.", learn=False)
    memories = [exact, exact.compact(other), unread, still.ingest(text="Read.")]
    for memory in memories:
        loaded = Memory.load(memory.save(tmp_path / "memory.ttt"))
        reader = reader_for(loaded, lambda **settings: TTTReader.from_pretrained(plain, dtype="float32", **settings))
        assert reader.fingerprint == memory.fingerprint and reader.model.config.suffix_blocks == 2
    with pytest.raises(MemoryMismatchError, match="another model"):
        reader_for(
            replace(exact, fingerprint="0" * 64), lambda **settings: TTTReader.from_pretrained(plain, **settings)
        )


@pytest.mark.parametrize(
    "parameters",
    [{"name": None}, {"name": 5}, {"device": None}, {"device": 7.5}, {"suffix_blocks": "2"}, {"sinks": "x"},
     {"window": "wide"}, {"chunk": 0.5}, {"dtype": 16}],
    ids=str,
)  # fmt: skip
def test_arguments_of_a_wrong_type(plain, parameters):
    with pytest.raises(UsageError):
        TTTReader.from_pretrained(**{"name": plain, **parameters})


def test_no_model_of_that_name():
    with pytest.raises(CheckpointError):
        TTTReader.from_pretrained("smollm2-136m")
