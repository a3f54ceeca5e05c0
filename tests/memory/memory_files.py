"""Small memories, and tools to change their files as a broken disk or a stranger would."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ttt_docs.errors import MemoryFormatError
from ttt_docs.memory import Memory, ReadDocument, Span
from ttt_docs.model.config import ReadingConfig

TEXT = "Käpt’n Ahab: call me Ishmael."


def make_memory(seed: int = 0, window_dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Memory:
    """Blocks 0-2 with a window, 1-2 with fast weights; 8 tokens read in chunks of 4, 2 pending."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "model": "tiny",
        "fingerprint": "ab" * 32,
        "reading": ReadingConfig(chunk=4, window=6, sinks=1, inner_rule="normalized", inner_lr=0.3),
        "fast": {b: {"w1": torch.randn(3, 2), "w2": torch.randn(2, 3), "w3": torch.randn(3, 2)} for b in (1, 2)},
        "window": {
            b: (torch.randn(1, 7, 2).to(window_dtype), torch.randn(1, 7, 2).to(window_dtype)) for b in (0, 1, 2)
        },
        "position": 8,
        "tokens": torch.randint(0, 50, (10,), dtype=torch.int32),
        "nll": torch.cat([torch.zeros(1), torch.rand(9)]),
        "text": TEXT,
        "documents": (
            ReadDocument("a.pdf", 0, 12, "cd" * 32, True, (Span("page", "i", 0, 5), Span("page", "ii", 5, 12))),
            ReadDocument("ü/b.txt", 12, len(TEXT), None, False),
        ),
        "skipped": 1,
        "extra": {"note": "для меня"},
    }
    return Memory(**{**fields, **changes})


def unpack(raw: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, the JSON document in it, and the tensor bytes."""
    length = int.from_bytes(raw[:8], "little")
    outer = json.loads(raw[8 : 8 + length])
    return outer, json.loads(outer["__metadata__"]["ttt_docs"]), raw[8 + length :]


def pack(outer: dict[str, Any], document: Any, data: bytes) -> bytes:
    """The reverse of `unpack`, with a right checksum: what is wrong inside must be found by other checks."""
    text = document if isinstance(document, str) else json.dumps(document)
    outer = {**outer, "__metadata__": {"ttt_docs": text, "crc32": "00000000"}}
    return seal(json.dumps(outer, separators=(",", ":")).encode(), data)


def seal(header: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(data, zlib.crc32(header))
    header = header.replace(b'"crc32":"00000000"', b'"crc32":"%08x"' % crc)
    return len(header).to_bytes(8, "little") + header + data


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any], bytearray], Any]) -> Path:
    """Change header, document and tensor bytes in place, then seal the file again."""
    outer, document, data = unpack(path.read_bytes())
    changed = bytearray(data)
    change(outer, document, changed)
    path.write_bytes(pack(outer, document, bytes(changed)))
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def refused(path: Path) -> str:
    """The message of the refusal; it always names the file and ends with advice."""
    with pytest.raises(MemoryFormatError) as caught:
        Memory.load(path)
    message = str(caught.value)
    assert path.name in message and message.isprintable()
    return message
