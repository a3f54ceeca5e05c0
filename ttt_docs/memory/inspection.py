"""What a memory is, for people: of a file without reading its tensors, and of a loaded memory."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from torch import Tensor

from ttt_docs.memory.checks import FAST_NAMES
from ttt_docs.memory.format import RawHeader, opened, read_header
from ttt_docs.memory.memory import Memory


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
    header = raw.header
    nbytes: Counter[str] = Counter()
    for name, entry in raw.table.items():
        nbytes[name.split("/")[0]] += entry.nbytes
    return {
        "path": os.fspath(path),
        "format_version": header.format_version,
        "package_version": header.package_version,
        "created": header.created.isoformat(),
        "model": header.model,
        "fingerprint": header.fingerprint,
        "reading": header.reading.model_dump(mode="json"),
        "precision": header.precision if header.packed is None else "compact",
        "tokens": raw.tokens,
        "position": header.position,
        "chunks": header.position // header.reading.chunk,
        "pending": raw.tokens - header.position,
        "skipped": header.skipped,
        "documents": [
            {name: getattr(document, name) for name in ("name", "sha256", "start", "end", "complete")}
            | {"spans": dict(Counter(span.kind for span in document.spans))}  # how many of each kind
            for document in header.documents
        ],
        "text": "text" in raw.table,
        "fast": _fast(raw),
        "window": _window(raw),
        "bytes": {
            "file": raw.header_bytes + raw.data_bytes,
            "header": raw.header_bytes,
            "fast": nbytes["fast"] + nbytes["change"],
            **{part: nbytes[part] for part in ("window", "tokens", "nll", "text")},
        },
        "extra": dict(header.extra),
    }


def _fast(raw: RawHeader) -> dict[str, Any]:
    """Blocks, dtype and shapes of the fast weights; how many terms stand for all of them in a compact memory."""
    header, sizes = raw.header, raw.sizes
    if not header.fast_blocks:
        return {"blocks": []}
    wide, high = [sizes["mlp"], sizes["dim"]], [sizes["dim"], sizes["mlp"]]
    found = {"blocks": list(header.fast_blocks), "dtype": sizes["fast"], "w1": wide, "w2": high, "w3": wide}
    if header.packed is None:
        return found
    terms = {n: sum(e.shape[0] for name, e in raw.table.items() if name.endswith(n)) for n in ("scale8", "scale4")}
    return found | {"dtype": "I8", "terms": terms}


def _window(raw: RawHeader) -> dict[str, Any]:
    """Blocks, dtype and shape of the window; all blocks have the same."""
    sizes, blocks = raw.sizes, list(raw.header.window_blocks)
    if not blocks:
        return {"blocks": []}
    shape = [sizes["kv_heads"], sizes["keys"], sizes["head_dim"]]
    return {"blocks": blocks, "dtype": sizes["window"], "shape": shape}


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
