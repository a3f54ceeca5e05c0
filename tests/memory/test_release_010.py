"""What release 0.1.0 wrote: its memories load and read on, and its fingerprints and keys are still the same.

The files in `files-0.1.0` were made by that release with the model of `ramp_reader`, which read `TEXT` with its pages:
the exact memory, the compact one (at most 100,000 bytes), and `identities.json` with fingerprints and keys.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from memory_files import rewrite
from pydantic import BaseModel, Field, create_model
from tiny_checkpoint import fingerprint
from tiny_model import byte_tokenizer

from ttt_docs import Document, Memory, MemoryFormatError, TTTReader
from ttt_docs.memory import memories_equal
from ttt_docs.model import config as configs
from ttt_docs.model.config import CONFIGS, ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.store.store import key_of, memory_key
from ttt_docs.weights.converted import derived_fingerprint
from ttt_docs.weights.parameters import parameter_shapes

FILES = Path(__file__).parent / "files-0.1.0"
IDENTITIES = json.loads((FILES / "identities.json").read_text())
CONFIG = ModelConfig(
    name="ramp", vocab_size=300, blocks=3, dim=16, heads=2, kv_heads=1, head_dim=8, mlp_dim=24, suffix_blocks=2,
    sinks=2, prime_norm=False, eos_token_ids=(2,),
)  # fmt: skip
READING = ReadingConfig(chunk=16, window=32, sinks=2, inner_rule="normalized", inner_lr=0.1)
OTHER = ReadingConfig(
    chunk=16, window=64, sinks=4, inner_rule="balanced", inner_lr=0.25, inner_lr_factors=(1.0, 0.5), guard=None
)
TEXT = "\n".join(f"{day}. The ship lay still; the captain counted {day * 37 % 101} waves." for day in range(1, 11))


def ramp(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights that are the same bits everywhere: no random numbers, and every value is exact in float32."""
    state = {}
    for number, (name, shape) in enumerate(sorted(parameter_shapes(config).items())):
        values = (torch.arange(torch.Size(shape).numel()) * 37 + 11 * number) % 101 - 50
        state[name] = (values.float() / 128).reshape(shape)
        if len(shape) == 1:
            state[name] = 1 + state[name] / 8
    return state


@pytest.fixture(scope="module")
def ramp_reader(tmp_path_factory) -> TTTReader:
    state = ramp(CONFIG)
    model = Decoder(CONFIG)
    model.load_state_dict(state)
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return TTTReader(
        model.requires_grad_(False), tokenizer, READING, name="ramp", fingerprint=fingerprint(CONFIG, state)
    )


def test_fingerprints_and_keys_are_still_the_same(ramp_reader):
    assert ramp_reader.fingerprint == IDENTITIES["fingerprint"]
    derived = {name: derived_fingerprint("00" * 32, config) for name, config in {**CONFIGS, "ramp": CONFIG}.items()}
    assert derived == IDENTITIES["derived"]
    for name, reading in (("default", ReadingConfig()), ("other", OTHER)):
        assert memory_key(["ab" * 32], "cd" * 32, reading) == IDENTITIES["keys"][name]


@pytest.mark.parametrize("name", ["exact", "compact"])
def test_its_memories_load_and_read_on(ramp_reader, name, tmp_path):
    memory = Memory.load(FILES / f"{name}.ttt", expect_fingerprint=ramp_reader.fingerprint)
    assert memory.text == TEXT and memory.tokens.tolist() == ramp_reader.tokenizer.encode(TEXT)
    assert (memory.position, len(memory.pending), memory.reading) == (528, 2, READING)
    (document,) = memory.documents
    assert (document.name, [span.label for span in document.spans]) == ("ship.txt", ["i", "1"])
    assert document.metadata == {"format": "text", "title": "A Ship"} and (memory.index is None) == (name == "compact")
    again = Memory.load(memory.save(tmp_path / "again.ttt"))
    assert memories_equal(again, memory) and again.reading == memory.reading

    anew = ramp_reader.ingest(Document.from_text(TEXT, name="ship.txt"))
    # Another machine rounds otherwise, and a compact memory holds float16.
    torch.testing.assert_close(anew.nll, memory.nll, rtol=0, atol=2e-3 if name == "exact" else 1e-2)
    more = [ramp_reader.ingest(text=TEXT[::-1], memory=before) for before in (memory, anew)]
    assert more[0].position == more[1].position > memory.position
    torch.testing.assert_close(more[0].nll, more[1].nll, rtol=0, atol=2e-3 if name == "exact" else 0.3)


def test_the_key_of_its_exact_memory():
    assert key_of(Memory.load(FILES / "exact.ttt")) == IDENTITIES["key"]


def later(config: type[BaseModel]) -> type[BaseModel]:
    """The class as a later release might have it: with a field more."""
    return create_model(config.__name__, __base__=config, later=(int, Field(0)))


@pytest.mark.parametrize("base", [CONFIG, READING])
def test_a_field_that_is_added_later_changes_nothing_until_it_is_used(base):
    new = later(type(base))
    assert new(**base.model_dump()).identity() == base.identity()
    assert new(**base.model_dump(), later=0).identity() == base.identity()
    assert new(**base.model_dump(), later=1).identity() != base.identity()


def test_a_configuration_file_of_that_release_is_understood():
    values = {**CONFIG.model_dump(mode="json"), "pre_norm": True}  # a field that every file of 0.1.0 has
    assert ModelConfig.model_validate_json(json.dumps(values)) == CONFIG


def test_fields_of_a_newer_header_are_passed_over(tmp_path):
    """But not a reading parameter that this version does not know: numbers may depend on it."""
    path = tmp_path / "new.ttt"
    path.write_bytes((FILES / "exact.ttt").read_bytes())
    rewrite(path, lambda outer, document, data: document.update(colour="red"))
    assert memories_equal(Memory.load(path), Memory.load(FILES / "exact.ttt"))
    rewrite(path, lambda outer, document, data: document["reading"].update(momentum=0.9))
    with pytest.raises(MemoryFormatError, match=r"reading\.momentum.*upgrade"):
        Memory.load(path)


def test_the_fields_of_version_1_are_known():
    assert json.loads(CONFIG.identity()).keys() == set(configs._MODEL_FIELDS_1.split())
    assert ReadingConfig().identity().keys() == set(configs._READING_FIELDS_1.split())
