"""Other files, and JSON made to confuse: refused before anything in them is used."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from memory_files import make_memory, pack, refused, unpack
from safetensors.torch import save_file

from ttt_docs.errors import MemoryFormatError
from ttt_docs.memory import Memory


@pytest.fixture
def path(tmp_path) -> Path:
    return make_memory().save(tmp_path / "book.ttt")


def test_missing_folder_and_special_files(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.ttt")
    assert "does not exist" in refused(tmp_path / "no" / "such" / "folder.ttt")
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.ttt")
    assert "not an ordinary file" in refused(tmp_path / "pipe.ttt")
    (tmp_path / "file").touch()
    assert "cannot be read" in refused(tmp_path / "file" / "book.ttt")
    assert "cannot be read" in refused(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refused(tmp_path / "loop")
    with pytest.raises(MemoryFormatError, match="name"):
        Memory.load("a\0b")


def test_no_permission(path, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    with pytest.raises(MemoryFormatError, match="no permission"):
        Memory.load(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"abc", "not a memory file"),
        (b"%PDF-1.7\n" + bytes(100), "not a memory file"),
        (b"PK\x03\x04" + bytes(100), "not a memory file"),
        (struct.pack("<Q", 2**63) + b"{}", "not a memory file"),
        (struct.pack("<Q", 2) + b"[]", "not a memory file"),
        (struct.pack("<Q", 0), "not a memory file"),
        (struct.pack("<Q", 100) + b"{}", "ends within its header"),
        (struct.pack("<Q", 2) + b"{x", "not valid JSON"),
        (struct.pack("<Q", 4) + b'{"\xff"', "not valid JSON"),
    ],
)
def test_other_files(tmp_path, raw, words):
    (tmp_path / "book.ttt").write_bytes(raw)
    assert words in refused(tmp_path / "book.ttt")


def test_foreign_safetensors_files(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors", metadata)
        assert "holds no ttt-docs memory" in refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 200_000,
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"__metadata__":{"ttt_docs":"{}","ttt_docs":"{}"}}',
        b'{"__metadata__":{"ttt_docs":"{}","crc32":"\\ud800"}}',
        b'{"__metadata__":{"ttt_docs":"' + b"[" * 200_000 + b'"}}',
    ],
)
def test_deep_doubled_and_odd_json(tmp_path, header):
    (tmp_path / "book.ttt").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "not valid JSON" in refused(tmp_path / "book.ttt")


def test_half_a_surrogate_pair_in_the_description(path):
    outer, document, data = unpack(path.read_bytes())
    text = json.dumps(document).replace('"tiny"', '"\ud800"')
    path.write_bytes(pack(outer, text, data))
    assert "not valid JSON" in refused(path)


@pytest.mark.parametrize("document", ["[]", "null", "3", '"x"', '"\\ud800"'])
def test_descriptions_that_are_no_objects(path, document):
    outer, _, data = unpack(path.read_bytes())
    path.write_bytes(pack(outer, document, data))
    assert "not a JSON object" in refused(path)
