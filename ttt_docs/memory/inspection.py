"""What a memory is, for people: of a file without reading its tensors, and of a loaded memory."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from torch import Tensor

from ttt_docs.memory.checks import FAST_NAMES, check_layout
from ttt_docs.memory.format import opened
from ttt_docs.memory.header import RawHeader, TensorEntry, read_header
from ttt_docs.memory.memory import Memory

_SIDES = ("left8", "right8")


def inspect_memory(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the header of a memory file says, as values that JSON can hold.

    Only the header is read: it and the file's size are checked as on loading, the tensors' values and the checksum
    are not. Under `bytes` stand the sizes of the file's parts, under `fast` and `window` the blocks and the shapes
    (`w1`, `w3` [mlp, dim], `w2` [dim, mlp]; keys and values [kv_heads, cached, head_dim]).

    Raises:
        MemoryFormatError: as for `Memory.load`.
    """
    with opened(path) as file:
        raw = read_header(file)
        check_layout(raw.header, raw.table, raw.data_bytes)
    header, table = raw.header, raw.table
    tokens = header_tokens(raw)
    return {
        "path": os.fspath(path),
        "format_version": header.format_version,
        "package_version": header.package_version,
        "created": header.created.isoformat(),
        "model": header.model,
        "fingerprint": header.fingerprint,
        "reading": header.reading.model_dump(mode="json"),
        "precision": header.precision if header.packed is None else "compact",
        "tokens": tokens,
        "position": header.position,
        "chunks": header.position // header.reading.chunk,
        "pending": tokens - header.position,
        "skipped": header.skipped,
        "documents": [
            {
                "name": document.name,
                "sha256": document.sha256,
                "start": document.start,
                "end": document.end,
                "complete": document.complete,
                "spans": dict(Counter(span.kind for span in document.spans)),  # how many of each kind
            }
            for document in header.documents
        ],
        "text": "text" in table,
        "fast": _describe(table, "fast", header.fast_blocks, FAST_NAMES)
        if header.packed is None
        else _describe_change(table, header.fast_blocks),
        "window": _describe(table, "window", header.window_blocks, ("k",)),
        "bytes": {
            "file": 8 + len(raw.json) + raw.data_bytes,
            "header": 8 + len(raw.json),
            "fast": _nbytes(table, "fast") + _nbytes(table, "change"),
            **{part: _nbytes(table, part) for part in ("window", "tokens", "nll", "text")},
        },
        "extra": dict(header.extra),
    }


def header_tokens(raw: RawHeader) -> int:
    """Tokens in a memory of which only the header is at hand."""
    return raw.table["tokens"].shape[0] if raw.header.packed is None else raw.header.packed.tokens


def _nbytes(table: dict[str, TensorEntry], part: str) -> int:
    return sum(entry.nbytes for name, entry in table.items() if name.split("/")[0] == part)


def _describe(
    table: dict[str, TensorEntry], part: str, blocks: tuple[int, ...], names: tuple[str, ...]
) -> dict[str, Any]:
    """Blocks, dtype and shapes of the fast weights or the window; all blocks have the same."""
    if not blocks:
        return {"blocks": []}
    first = {name: table[f"{part}/{blocks[0]}/{name}"] for name in names}
    shapes = {name: list(entry.shape) for name, entry in first.items()}
    return {
        "blocks": list(blocks),
        "dtype": first[names[0]].dtype,
        **(shapes if part == "fast" else {"shape": shapes["k"]}),
    }


def _describe_change(table: dict[str, TensorEntry], blocks: tuple[int, ...]) -> dict[str, Any]:
    """Blocks and shapes of a compact memory's fast weights, and how many terms stand for them in all."""
    if not blocks:
        return {"blocks": []}
    whole = {name: [table[f"change/{blocks[0]}/{name}/{side}"].shape[1] for side in _SIDES] for name in FAST_NAMES}
    terms = {n: sum(e.shape[0] for name, e in table.items() if name.endswith(n)) for n in ("scale8", "scale4")}
    return {"blocks": list(blocks), "dtype": "I8", **whole, "terms": terms}


def summary(memory: Memory) -> dict[str, Any]:
    """How reading went, as values that JSON can hold.

    `mean_nll` and the four of `nll_by_quarter` are in nats per token (None where there is no token); a first token
    that nothing predicted (loss 0) is left out. `fast_norms` gives per block the Frobenius norm of each matrix.
    """
    nll = memory.nll.detach().double().cpu()
    if nll.numel() and nll[0] == 0:
        nll = nll[1:]
    return {
        "tokens": memory.tokens.numel(),
        "position": memory.position,
        "chunks": memory.chunks,
        "pending": memory.pending.numel(),
        "skipped": memory.skipped,
        "mean_nll": _mean(nll),
        "nll_by_quarter": [_mean(quarter) for quarter in nll.tensor_split(4)],
        "fast_norms": {
            block: {name: float(weights[name].detach().norm()) for name in FAST_NAMES}
            for block, weights in memory.fast.items()
        },
        "bytes": memory.nbytes(),
    }


def _mean(losses: Tensor) -> float | None:
    return float(losses.mean()) if losses.numel() else None
